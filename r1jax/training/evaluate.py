"""Evaluation of a policy: k completions of every problem, graded."""

import collections
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from r1jax import data, rewards
from r1jax.data import worked
from r1jax.rewards import accuracy
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts import grading
from r1jax.rollouts.engine import Engine
from r1jax.rollouts.grading import sample_graded
from r1jax.runtime import checkpoint, distributed, interrupt
from r1jax.training import inspection
from r1jax.types import Completion, Example, Params, Rollout, Tokenizer

MIN_STYLE_SHARE = 0.05  # Styles with fewer of the samples are not rated.


class Problems(NamedTuple):
  """A named set of test problems, and the number of samples of each."""

  name: str
  examples: Sequence[Example]
  samples: int


def evaluate(
  engine: Engine,
  params: Params,
  problems: Sequence[Problems],
  tokenizer: Tokenizer,
  pool: GraderPool,
  *,
  template: str,
  seed: int,
  accuracy_reward: Any = 1.0,
  progress: Callable[[int, int], None] = lambda done, tokens: None,
) -> dict[str, float]:
  """The metrics of every set, named "eval/<set>/<metric>"; see `measure`.

  The random stream depends on `seed` alone, so it is the same at every
  evaluation, and training does not depend on whether one took place. All hosts
  must call it; only the first host gets the metrics, others an empty dict.

  Args:
    engine: samples the completions.
    params: of the policy, in the layout of training.
    problems: the sets.
    tokenizer: of the policy.
    pool: grades the completions.
    template: name of the template around each question.
    seed: of the samples.
    accuracy_reward: the entry "accuracy" of the config's rewards, which
      configures graders that run programs.
    progress: called with the numbers of finished completions and tokens.
  """
  numbers, params = {}, engine.prepare(params)
  for index, (name, examples, samples) in enumerate(problems):
    rollout, grader = sample_graded(
      engine,
      params,
      examples,
      samples,
      tokenizer,
      pool,
      dict(accuracy=accuracy_reward, format=0.0),
      template=template,
      max_tokens=engine.max_tokens,
      seed=seed,
      round=index,
      evaluation=True,
      progress=progress,
    )
    scores = grader.scores()
    if not distributed.is_first():
      continue
    _, texts = grader.texts(rollout, read_all=True)
    shape = (len(examples), samples)
    measured = measure(
      examples,
      [texts[i : i + samples] for i in range(0, len(texts), samples)],
      scores.parts["accuracy"].reshape(shape),
      scores.parts["format"].reshape(shape),
    )
    numbers |= {f"eval/{name}/{key}": v for key, v in measured.items()}
  return numbers


def evaluation(
  *,
  every: int,
  seed: int,
  problems: int,
  samples: int,
  problems_between: int,
  samples_between: int,
  test: Mapping,
  larger: Mapping | None = None,
) -> dict[str, list[Problems]]:
  """The sets of test problems, "whole" and "between".

  "whole" is used at the first and the last step, "between" at other steps.

  Args:
    every: steps between two evaluations.
    seed: of the samples.
    problems: number of problems of each task in "whole".
    samples: number of samples of each problem in "whole".
    problems_between: number of problems of each task in "between".
    samples_between: number of samples of each problem in "between".
    test: the dataset section of the test problems.
    larger: the dataset section of problems that are larger than any trained on.
      They are added to "whole", under names that end in "+1", with
      `problems_between` problems and `samples_between` samples. None adds none.
  """
  del every, seed
  sets = by_task(data.load(**test), problems)
  whole = [Problems(n, e, samples) for n, e in sets.items()]
  between = [
    Problems(n, e[:problems_between], samples_between) for n, e in sets.items()
  ]
  if larger is not None:
    sets = by_task(data.load(**larger), problems_between)
    whole += [Problems(n + "+1", e, samples_between) for n, e in sets.items()]
  return {"whole": whole, "between": between}


def by_task(dataset: Sequence[Example], count: int) -> dict[str, list[Example]]:
  """The first `count` examples of every task, in the dataset's order."""
  sets = collections.defaultdict(list)
  for example in dataset:
    name = example.domain.rpartition("/")[2]
    if len(sets[name]) < count:
      sets[name].append(example)
  return dict(sets)


class Evaluator:
  """Evaluates the policy of a run at the planned steps, once each."""

  def __init__(self, config, writer, engine, tokenizer, pool):
    self._config, self._writer, self._engine = config, writer, engine
    self._tokenizer, self._pool = tokenizer, pool
    self._sets = None
    self._accuracy = config.rewards.to_dict().get("accuracy", 1.0)
    self._evaluated = {*checkpoint.read_scores(writer.workdir)}

  def is_due(self, step: int) -> bool:
    """Whether to evaluate at `step` now.

    True at the start, at the end and every `evaluation.every` steps, unless the
    step has been evaluated already.
    """
    every = self._config.evaluation.every
    planned = step == self._config.num_steps or step % every == 0
    return planned and step not in self._evaluated

  def evaluate(self, step: int, params) -> None:
    """Evaluates the policy of `step`; writes a row of metrics and a score.

    The score is the mean pass@1 over tasks.
    """
    config = self._config
    if self._sets is None:
      self._sets = evaluation(**config.evaluation.to_dict())
      for problems in self._sets["whole"]:
        inspection.check_prompts(problems.examples, self._tokenizer, config)
        rewards.check(problems.examples, accuracy=self._accuracy)
    whole = step in (0, config.num_steps)
    problems = self._sets["whole" if whole else "between"]
    console, began = self._writer.console, time.monotonic()
    total = sum(len(p.examples) * p.samples for p in problems)
    console.note(
      f"evaluating at step {step}: {total:,} completions of "
      f"{sum(len(p.examples) for p in problems)} problems"
    )
    numbers = evaluate(
      self._engine,
      params,
      problems,
      self._tokenizer,
      self._pool,
      template=config.template,
      seed=config.evaluation.seed,
      accuracy_reward=self._accuracy,
      progress=lambda done, tokens: console.phase(
        f"evaluating, {done} completions, {tokens:,} tokens"
      ),
    )
    numbers["perf/eval_time"] = time.monotonic() - began
    tasks = [p.name for p in problems if not p.name.endswith("+1")]
    with interrupt.deferred():
      self._writer.write(step, **numbers)
      checkpoint.write_score(
        self._writer.workdir,
        step,
        np.mean([numbers.get(f"eval/{name}/pass@1", 0.0) for name in tasks]),
      )
      self._evaluated.add(step)
    if not distributed.is_first():
      return
    for problem in problems:
      of = lambda key, name=problem.name: numbers[f"eval/{name}/{key}"]
      console.note(
        f"  {problem.name:20} pass@1 {of('pass@1'):.3f} "
        f"+- {of('pass@1_stderr'):.3f}  cons@{problem.samples} "
        f"{of(f'cons@{problem.samples}'):.3f}  "
        f"length {of('mean_length'):.1f}  truncated {of('truncated'):.3f}"
      )
    console.note(f"  in {numbers['perf/eval_time']:.1f} s")


def completions(
  rollout: Rollout,
  examples: Sequence[Example],
  tokenizer: Tokenizer,
  max_tokens: int,
  prefill: str = "",
) -> tuple[list[Example], list[Completion]]:
  """The example of each completion, and the completions, in order of groups."""
  groups = [
    grading.completions(rollout, p, tokenizer, max_tokens, prefill)
    for p in range(len(examples))
  ]
  members = range(rollout.lengths.shape[1])
  return (
    [example for example in examples for _ in members],
    [completion for group in groups for completion in group],
  )


def measure(
  examples: Sequence[Example],
  completions: Sequence[Sequence[Completion]],
  correct: np.ndarray,
  formatted: np.ndarray,
) -> dict[str, float]:
  """Metrics of k completions of each of P problems.

  Args:
    examples: [P], the problems.
    completions: [P][k], their completions.
    correct: [P, k], 1 or 0; NaN where grading failed, which counts as 0.
    formatted: [P, k], rewards for the format of the template.

  Returns:
    pass@1, the mean over all completions, and its standard error over problems
    (NaN for one problem); pass@k, the share of problems solved at least once;
    cons@k, the share of problems whose most frequent answer is correct; the
    mean length in tokens; the shares of completions that are truncated,
    unparsed and well formatted; the share of bare guesses; and pass@1 of the
    best style of working among styles with at least 5% of the completions.
  """
  samples = correct.shape[1]
  correct = np.nan_to_num(correct)
  per_problem = correct.mean(axis=1)
  flat = [c for group in completions for c in group]
  answers = [[accuracy.extract(c) for c in group] for group in completions]
  styles = np.array([worked.style(thought(c.text)) for c in flat])
  by_style = {
    name: correct.reshape(-1)[styles == name].mean()
    for name in sorted(set(styles))
    if np.mean(styles == name) >= MIN_STYLE_SHARE
  }
  error = math.nan
  if len(per_problem) > 1:
    error = per_problem.std(ddof=1) / math.sqrt(len(per_problem))
  return {
    "pass@1": per_problem.mean(),
    "pass@1_stderr": error,
    f"pass@{samples}": correct.any(axis=1).mean(),
    f"cons@{samples}": np.mean(
      [consensus(*row) for row in zip(examples, answers, correct, strict=True)]
    ),
    "mean_length": np.mean([c.num_tokens for c in flat]),
    "truncated": np.mean([c.finish == "length" for c in flat]),
    "unparsed": np.mean([a is None for group in answers for a in group]),
    "format": np.nan_to_num(formatted).mean(),
    "guess_share": np.mean(styles == "guess"),
    "best_style_pass@1": max(by_style.values(), default=math.nan),
  }


def consensus(
  example: Example,
  answers: Sequence[str | None],
  correct: Sequence[float] | np.ndarray,
) -> float:
  """1 if the most frequent of the answers is correct, else 0 (cons@k).

  Equivalent answers are counted together, None does not vote, and ties go to
  the answer that came first.
  """
  votes = collections.Counter()
  value_of = {}
  for answer, value in zip(answers, correct, strict=True):
    if answer is not None:
      key = accuracy.canonical(example, answer)
      votes[key] += 1
      value_of[key] = max(value_of.get(key, 0.0), float(value))
  if not votes:
    return 0.0
  return value_of[votes.most_common(1)[0][0]]


def thought(text: str) -> str:
  """The text between <think> and </think>; "" if there is none."""
  return text.partition("<think>")[2].partition("</think>")[0]


def pass_at_k(samples: int, correct: int, k: int) -> float:
  """The unbiased estimate of pass@k from n samples of which c are correct.

      pass@k = 1 - C(n - c, k) / C(n, k)      (arXiv:2107.03374, eq. 1)

  Examples:
    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 1, 4)
    (0.25, 0.5, 1.0)

  Raises ValueError unless 1 <= k <= n.
  """
  if not 1 <= k <= samples:
    raise ValueError(f"pass@{k} needs 1 <= k <= {samples} samples")
  return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def summarise(rows: Sequence[dict], **totals) -> dict:
  """The content of summary.json, from the rows of metrics.jsonl.

  It compares the evaluation at step 0 (the base model) with that at the last
  evaluated step (R1-Zero). Sets whose name ends in "+1" hold problems that are
  larger than any trained on, and are listed separately, under "larger".

  Raises ValueError if step 0 was not evaluated.
  """
  evaluations = {
    row["step"]: row
    for row in rows
    if any(key.startswith("eval/") for key in row)
  }
  if 0 not in evaluations:
    raise ValueError(
      "metrics.jsonl has no evaluation of step 0, the base model; delete "
      "checkpoints/scores.json and run again to evaluate it"
    )
  base, zero = evaluations[0], evaluations[max(evaluations)]
  names = [key.split("/")[1] for key in zero if key.endswith("/pass@1")]
  tasks, larger = {}, {}
  for name in names:
    of = lambda row, key, name=name: row.get(f"eval/{name}/{key}")
    of_k = lambda row, kind, name=name: next(
      value
      for key, value in row.items()
      if key.startswith(f"eval/{name}/{kind}@")
      and key != f"eval/{name}/pass@1"
      and not key.endswith("stderr")
    )
    (larger if name.endswith("+1") else tasks)[name] = {
      "base_pass_at_1": of(base, "pass@1"),
      "zero_pass_at_1": of(zero, "pass@1"),
      "base_pass_at_1_stderr": of(base, "pass@1_stderr"),
      "zero_pass_at_1_stderr": of(zero, "pass@1_stderr"),
      "base_cons_at_16": of_k(base, "cons"),
      "zero_cons_at_16": of_k(zero, "cons"),
      "base_pass_at_16": of_k(base, "pass"),
      "base_guess_share": of(base, "guess_share"),
      "base_best_style_pass_at_1": of(base, "best_style_pass@1"),
      "base_mean_length": of(base, "mean_length"),
      "zero_mean_length": of(zero, "mean_length"),
    }
  means = {
    key: float(np.mean([task[key] for task in tasks.values()]))
    for key in next(iter(tasks.values()))
    if not key.endswith("stderr")
  }
  return {"tasks": tasks, "larger": larger} | means | totals
