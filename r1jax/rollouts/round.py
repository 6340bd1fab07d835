"""One round of rollouts: draw prompts, sample their completions, grade them.

With dynamic sampling (DAPO, arXiv:2503.14476, sec. 3.2), prompts are drawn
again until enough groups teach.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax import data
from r1jax.losses.advantages import zero_signal
from r1jax.rewards import Scores
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts import replay
from r1jax.rollouts.engine import Engine
from r1jax.rollouts.grading import sample_graded
from r1jax.types import Completion, Example, Params, Rollout, Tokenizer


class Round(NamedTuple):
  """P groups of G completions, and the way to their rewards."""

  rollout: Rollout
  examples: Sequence[Example]  # [P * G]: that of each completion.
  # [P * G]; None for those that another host reads and grades.
  completions: Sequence[Completion | None]
  scores: Callable[[], Scores]  # Waits for the graders.
  batches: int = 1  # Times that prompts were drawn.
  discarded: int = 0  # Completions that were sampled and not kept.
  teaching: int | None = None  # Groups that teach; None if it was not asked.

  @property
  def facts(self) -> dict[str, Any]:
    """The counts of a round, by name, which a record of it keeps."""
    names = ("batches", "discarded", "teaching")
    return {name: getattr(self, name) for name in names}


def make_sample(
  engine: Engine,
  dataset: Sequence[Example],
  tokenizer: Tokenizer,
  pool: GraderPool | None,
  *,
  rewards: Mapping[str, Any],
  template: str,
  seed: int,
  prompts_per_round: int,
  group_size: int,
  rounds: int,
  progress: Callable[[int, int], None] = lambda done, tokens: None,
) -> Callable[..., Round]:
  """`sample(params, round, max_tokens, attempt=0)`: one batch of prompts.

  The graders read each group as soon as it has ended. The result depends on the
  arguments alone.

  Args:
    engine: samples.
    dataset: prompts are drawn from it.
    tokenizer: of the policy.
    pool: grades.
    rewards: the spec of the rewards; see `r1jax.rewards`.
    template: writes a prompt around a question; see `data.templates`.
    seed: of the prompts and of everything sampled.
    prompts_per_round: P
    group_size: G
    rounds: the attempts that a round may take beyond the first.
    progress: see `Engine`.
  """

  def sample(
    params: Params, round: int, max_tokens: int, attempt: int = 0
  ) -> Round:
    examples = data.draw(
      dataset, prompts_per_round, seed=seed, step=round, attempt=attempt
    )
    rollout, grader = sample_graded(
      engine,
      params,
      examples,
      group_size,
      tokenizer,
      pool,
      rewards,
      template=template,
      max_tokens=max_tokens,
      seed=seed,
      round=round * (1 + rounds) + attempt,
      progress=progress,
    )
    texts = grader.texts(rollout)
    return Round(rollout, *texts, grader.scores)

  return sample


def sample_until_it_teaches(
  sample: Callable[..., Round],
  *,
  rounds: int,
  say: Callable[[str], None] = lambda text: None,
) -> Round:
  """`sample()`, or P groups that teach from up to `rounds` more attempts.

  A group teaches if its task reward (accuracy, where there is one: shaping such
  as a penalty on length would hide that all are right) is not the same for all
  completions. If the attempts do not suffice, groups that do not teach fill the
  round up, and `say` is told.

  Args:
    sample: of `make_sample`, but for the attempt.
    rounds: of dynamic sampling; 0 takes the first attempt as it is.
    say: takes a line for the user.
  """
  first = sample(attempt=0)
  if not rounds:
    return first
  prompts, group_size = first.rollout.lengths.shape
  attempts, teaches = [], np.zeros(0, bool)
  while teaches.sum() < prompts and len(attempts) <= rounds:
    attempt = sample(attempt=len(attempts)) if attempts else first
    scores = attempt.scores()
    task = scores.parts.get("accuracy", scores.total)
    teaches = np.concatenate(
      [teaches, ~zero_signal(task.reshape(prompts, group_size))]
    )
    attempts.append((attempt, scores))
  # Groups that teach come first; otherwise the order of sampling is kept.
  kept = np.argsort(~teaches, kind="stable")[:prompts]
  teaching = int(teaches[kept].sum())
  if teaching < prompts:
    say(
      f"{teaching} of {prompts} groups teach something after "
      f"{len(attempts)} samplings; going on with them (dynamic_sampling.rounds)"
    )
  merged = _kept_scores([scores for _, scores in attempts], kept, group_size)

  def flat(lists):
    every = [*itertools.chain(*lists)]
    starts = [p * group_size for p in kept]
    return [x for start in starts for x in every[start : start + group_size]]

  return Round(
    rollout=_kept_prompts([attempt.rollout for attempt, _ in attempts], kept),
    examples=flat([attempt.examples for attempt, _ in attempts]),
    completions=flat([attempt.completions for attempt, _ in attempts]),
    scores=lambda: merged,
    batches=len(attempts),
    discarded=(len(teaches) - prompts) * group_size,
    teaching=teaching,
  )


def dynamic_sampling(*, rounds: int) -> None:
  """The config section: attempts beyond the first; 0 for no dynamic sampling.

  Raises ValueError for a number below 0.
  """
  if rounds < 0:
    raise ValueError(f"dynamic_sampling.rounds is {rounds}, below 0")


def _kept_prompts(rollouts: Sequence[Rollout], kept: np.ndarray) -> Rollout:
  """The kept prompts of several rollouts, as one."""

  experts = None
  if rollouts[0].experts is not None:
    experts = replay.join([rollout.experts for rollout in rollouts], kept)

  def join(*arrays):
    if np.ndim(arrays[0]) == 0:
      return sum(arrays)
    widest = np.max([a.shape[1:] for a in arrays], axis=0)
    padded = [
      np.pad(a, [(0, 0), *((0, w - s) for w, s in zip(widest, a.shape[1:]))])
      for a in arrays
    ]
    return np.concatenate(padded)[kept]

  on_host = [rollout.replace(experts=None) for rollout in rollouts]
  return jax.tree.map(join, *on_host).replace(experts=experts)


def _kept_scores(
  scores: Sequence[Scores], kept: np.ndarray, group_size: int
) -> Scores:
  """The scores of the kept prompts, and the counts of all attempts."""
  take = lambda arrays: (
    np.concatenate(arrays).reshape(-1, group_size)[kept].reshape(-1)
  )
  named = lambda field: {
    name: take([getattr(s, field)[name] for s in scores])
    for name in getattr(scores[0], field)
  }
  feedback = [*itertools.chain(*(s.feedback for s in scores))]
  return Scores(
    total=take([s.total for s in scores]),
    parts=named("parts"),
    applies=named("applies"),
    counts={
      name: sum(s.counts[name] for s in scores) for name in scores[0].counts
    },
    feedback=[*take([np.array(feedback, object)])] if feedback else [],
  )
