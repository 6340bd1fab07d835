"""Measuring a policy: k completions of every problem, and their worth."""

import collections
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from r1jax import data, rewards
from r1jax.data import chat, worked
from r1jax.rewards import accuracy
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts.engine import Engine
from r1jax.rollouts.grading import GroupGrader, completion
from r1jax.runtime import checkpoint, distributed, interrupt
from r1jax.training import inspection
from r1jax.types import Completion, Example, Params, Rollout, Tokenizer

MIN_STYLE_SHARE = 0.05  # Of the samples, for a style to be rated.


class Problems(NamedTuple):
  """A named set of test problems, and how often each is tried."""

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
  """The numbers of every set, named "eval/<set>/<number>"; see `measure`.

  Samples are drawn from `seed`'s own stream, the same at every evaluation, so
  that training does not depend on whether one took place. Hosts but the first
  help, and learn no numbers. `accuracy_reward` is that entry of a config's
  rewards: programs are run as it says.
  """
  numbers, params = {}, engine.prepare(params)
  for index, (name, examples, samples) in enumerate(problems):
    graders, limit = engine.hosts(len(examples)), engine.max_tokens
    spec = dict(accuracy=accuracy_reward, format=0.0)
    grader = GroupGrader(
      examples,
      graders,
      samples,
      tokenizer,
      limit,
      pool,
      spec,
      prefill=chat.prefill(template, tokenizer),
    )
    rollout = engine(
      params,
      chat.encode_prompts(examples, template, tokenizer),
      samples,
      seed=seed,
      round=index,
      evaluation=True,
      progress=progress,
      finished=grader.take,
    )
    scores = grader.scores()
    if not distributed.is_first():
      continue
    _, written = grader.texts(rollout)
    shape = (len(examples), samples)
    measured = measure(
      examples,
      [written[i : i + samples] for i in range(0, len(written), samples)],
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
  """The sets of problems to measure on, "whole" and "between".

  Args:
    every: steps between two measurements on the smaller sets.
    seed: of the samples.
    problems: of each task, at the start and at the end.
    samples: of each of those problems.
    problems_between: of each task, on the way.
    samples_between: of each of those.
    test: the dataset section of the test problems.
    larger: that of larger ones, measured at the start and the end, as often as
      on the way; their sets have "+1" in their name.
  """
  del every, seed
  sets = by_task(data.load(**test), problems)
  whole = [Problems(n, e, samples) for n, e in sets.items()]
  between = [
    Problems(n, e[:problems_between], samples_between) for n, e in sets.items()
  ]
  if larger is not None:
    beside = by_task(data.load(**larger), problems_between)
    whole += [Problems(n + "+1", e, samples_between) for n, e in beside.items()]
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
  """Measures the policy of a run every so many steps, once each."""

  def __init__(self, config, writer, engine, tokenizer, pool):
    self._config, self._writer, self._engine = config, writer, engine
    self._tokenizer, self._pool = tokenizer, pool
    self._sets = None
    self._accuracy = config.rewards.to_dict().get("accuracy", 1.0)
    self._evaluated = {*checkpoint.read_scores(writer.workdir)}

  def is_due(self, step: int) -> bool:
    """Whether to measure the policy of `step`: at the start, at the end, and
    every `evaluation.every` steps, once each."""
    every = self._config.evaluation.every
    planned = step == self._config.num_steps or step % every == 0
    return planned and step not in self._evaluated

  def evaluate(self, step: int, params) -> None:
    """Measures the policy of `step`, and writes a row and its score.

    The score is the mean pass@1 of the tasks.
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
) -> tuple[list[Example], list[Completion]]:
  """Every completion as text, group after group, and the example of each."""
  members = range(rollout.lengths.shape[1])
  return (
    [example for example in examples for _ in members],
    [
      completion(rollout, p, g, tokenizer, max_tokens)
      for p in range(len(examples))
      for g in members
    ],
  )


def measure(
  examples: Sequence[Example],
  written: Sequence[Sequence[Completion]],
  correct: np.ndarray,
  formatted: np.ndarray,
) -> dict[str, float]:
  """What k completions of each of P problems show.

  Args:
    examples: [P]
    written: [P][k]
    correct: [P, k] 1, 0, or NaN where it could not be graded; NaN counts as 0.
    formatted: [P, k]

  Returns:
    pass@1, the mean over all; its standard error, over problems; pass@k, the
    share of problems solved at least once; cons@k, the share whose most
    frequent answer is right; the mean length in tokens; shares truncated,
    unparsed and well formatted; the share of bare guesses; and pass@1 of the
    best style among those with at least 5% of the samples.
  """
  samples = correct.shape[1]
  correct = np.nan_to_num(correct)
  per_problem = correct.mean(axis=1)
  flat = [c for group in written for c in group]
  answers = [[accuracy.extract(c) for c in group] for group in written]
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
  """1 if the most frequent answer is right; answers that mean the same count
  together, none at all do not vote, and of equally frequent ones the first
  counts."""
  votes = collections.Counter()
  worth = {}
  for answer, value in zip(answers, correct, strict=True):
    if answer is not None:
      key = accuracy.canonical(example, answer)
      votes[key] += 1
      worth[key] = max(worth.get(key, 0.0), float(value))
  if not votes:
    return 0.0
  return worth[votes.most_common(1)[0][0]]


def thought(text: str) -> str:
  """What stands between the tags of thinking."""
  return text.partition("<think>")[2].partition("</think>")[0]


def pass_at_k(samples: int, correct: int, k: int) -> float:
  """The chance that k of the samples, drawn without return, hold a right one.

  1 - C(n - c, k) / C(n, k), unbiased (arXiv:2107.03374, eq. 1).
  """
  if not 1 <= k <= samples:
    raise ValueError(f"pass@{k} needs 1 <= k <= {samples} samples")
  return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def summarise(rows: Sequence[dict], **totals) -> dict:
  """The demo's summary.json from the rows of metrics.jsonl.

  The evaluation of step 0 is the base's, that of the last step R1-Zero's,
  whenever they took place. Sets whose name ends in "+1" are larger problems
  than any trained on, and stand apart.

  Raises ValueError if the base was not evaluated.
  """
  evaluations = {
    row["step"]: row
    for row in rows
    if any(key.startswith("eval/") for key in row)
  }
  if 0 not in evaluations:
    raise ValueError(
      "metrics.jsonl has no evaluation of step 0, the base's; delete "
      "checkpoints/scores.json and run again: the base is then evaluated"
    )
  base, zero = evaluations[0], evaluations[max(evaluations)]
  names = [key.split("/")[1] for key in zero if key.endswith("/pass@1")]
  tasks, larger = {}, {}
  for name in names:
    of = lambda row, key, name=name: row.get(f"eval/{name}/{key}")
    many = lambda row, kind, name=name: next(
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
      "base_cons_at_16": many(base, "cons"),
      "zero_cons_at_16": many(zero, "cons"),
      "base_pass_at_16": many(base, "pass"),
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
