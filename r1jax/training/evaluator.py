"""Evaluation of a policy: k completions of every problem, graded."""

import collections
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from r1jax import data, rewards
from r1jax.rewards import Scores
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts.engine import Engine
from r1jax.rollouts.grading import sample_graded
from r1jax.runtime import checkpoint, distributed, interrupt
from r1jax.training import inspection
from r1jax.training.measures import measure
from r1jax.types import Completion, Example, Params, Tokenizer


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
  parts = dict(accuracy=accuracy_reward, format=0.0)
  for index, asked in enumerate(problems):
    graded = sample_set(
      engine,
      params,
      asked,
      tokenizer,
      pool,
      parts,
      template=template,
      seed=seed,
      round=index,
      progress=progress,
    )
    if graded is not None:
      measured = measure(asked.examples, *graded)
      numbers |= {f"eval/{asked.name}/{key}": v for key, v in measured.items()}
  return numbers


def sample_set(
  engine: Engine,
  params: Params,
  problems: Problems,
  tokenizer: Tokenizer,
  pool: GraderPool,
  parts: Mapping[str, Any],
  *,
  template: str,
  **options: Any,
) -> tuple[list[list[Completion]], dict[str, np.ndarray]] | None:
  """The completions [P][k] of a set, and their rewards [P, k] by name.

  Rewards that apply to none of them are left out. None on all hosts but the
  first.

  Args:
    engine: samples the completions.
    params: of the policy, as `engine.prepare` returns them.
    problems: the set.
    tokenizer: of the policy.
    pool: grades the completions.
    parts: the rewards, as in a config.
    template: name of the template around each question.
    **options: of the engine's call: `seed`, `round` and `progress`.
  """
  examples, samples = problems.examples, problems.samples
  rollout, grader = sample_graded(
    engine,
    params,
    examples,
    samples,
    tokenizer,
    pool,
    parts,
    template=template,
    max_tokens=engine.max_tokens,
    evaluation=True,
    **options,
  )
  scores = grader.scores()
  if not distributed.is_first():
    return None
  _, texts = grader.texts(rollout, read_all=True)
  return by_problem(texts, scores, samples)


def by_problem(
  completions: Sequence[Completion], scores: Scores, samples: int
) -> tuple[list[list[Completion]], dict[str, np.ndarray]]:
  """The completions [P][k], and those rewards [P, k] that apply to any."""
  return (
    [
      [*completions[i : i + samples]]
      for i in range(0, len(completions), samples)
    ],
    {
      name: np.where(scores.applies[name], values, np.nan).reshape(-1, samples)
      for name, values in scores.parts.items()
      if scores.applies[name].any()
    },
  )


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
