"""The completions of a round: sampled, graded, and sampled again where DAPO
wants groups that teach something (arXiv:2503.14476, sec. 3.2)."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from r1jax import data
from r1jax.losses.advantages import zero_signal
from r1jax.rewards import Scores
from r1jax.training.evaluate import encode_prompts
from r1jax.training.grading import Grading
from r1jax.training.records import Record
from r1jax.types import Completion, Example, Params, Rollout

BARREN = 3  # Rounds in a row without a group that teaches end a run.


class Sampled(NamedTuple):
  """P groups, and the way to their scores."""

  rollout: Rollout  # P prompts, G completions each.
  examples: Sequence[Example]  # [P * G]: that of each completion.
  written: Sequence[Completion | None]  # [P * G]; all on the first host.
  scores: Callable[[], Scores]  # Waits for the graders.
  batches: int = 1  # Times that the engine was asked.
  discarded: int = 0  # Completions that were sampled and not kept.
  teaching: int | None = None  # Groups with a signal; None if nobody looked.

  @property
  def facts(self) -> dict[str, Any]:
    """What a record keeps of it beside arrays and text."""
    names = ("batches", "discarded", "teaching")
    return {name: getattr(self, name) for name in names}


def make_sample(
  config: ml_collections.ConfigDict, engine, dataset, words, pool, observer
):
  """`sample(params, step, attempt)`: G completions of each prompt of a round,
  which the graders begin to read; a function of its arguments alone."""
  spec, rounds = config.rewards.to_dict(), config.dynamic_sampling.rounds

  def sample(params: Params, step: int, attempt: int) -> Sampled:
    round, limit = step // config.minibatches, token_limit(config, step)
    examples = data.draw(
      dataset,
      config.prompts_per_round,
      seed=config.seed,
      step=round,
      attempt=attempt,
    )
    graders, size = engine.hosts(len(examples)), config.group_size
    grading = Grading(examples, graders, size, words, limit, pool, spec)
    rollout = engine(
      params,
      encode_prompts(examples, config.template, words),
      size,
      seed=config.seed,
      round=round * (1 + rounds) + attempt,
      max_tokens=limit,
      progress=observer.sampled,
      finished=grading.take,
    )
    return Sampled(rollout, *grading.texts(rollout), grading.scores)

  return sample


def token_limit(config: ml_collections.ConfigDict, step: int) -> int:
  """The tokens that a completion sampled at `step` may have: the last of
  `max_tokens` [(first step, tokens), ...] that has begun."""
  reached = [tokens for first, tokens in config.max_tokens if first <= step]
  return reached[-1] if reached else config.sampling.max_tokens


def recorded(record: Record) -> Sampled:
  """A round that was dumped, as if it were sampled now."""
  return Sampled(
    record.rollout,
    record.examples,
    record.written,
    lambda: record.scores,
    **record.facts,
  )


def dynamic_sampling(*, rounds: int) -> None:
  """How often groups that teach nothing are sampled again; 0 for never."""
  if rounds < 0:
    raise ValueError(f"dynamic_sampling.rounds is {rounds}, below 0")


def check_limits(max_tokens: Sequence, *, most: int) -> None:
  """Raises ValueError for a schedule of lengths that is none."""
  before = -1
  for entry in max_tokens:
    if len(entry) != 2 or not 0 < entry[1] <= most:
      raise ValueError(
        f"max_tokens has {entry}: each entry is (first step, tokens), and the "
        f"tokens are at most sampling.max_tokens {most}"
      )
    if not before < entry[0]:
      raise ValueError(
        f"max_tokens has {entry} after step {before}: first steps begin at 0 "
        "or later, and each is above the one before it"
      )
    before = entry[0]


def explain_nothing(scores: Scores, config: ml_collections.ConfigDict) -> str:
  """What to do when `BARREN` rounds had no group that teaches; the last one's
  scores tell whether its problems were too hard or too easy."""
  rounds = config.dynamic_sampling.rounds
  task = scores.parts.get("accuracy", scores.total)
  task = task[np.isfinite(task)]
  if not task.size:
    found, advice = "nothing could be graded", "look at the grader's errors"
  else:
    found = f"all rewards of a group were equal (mean {task.mean():.3g})"
    advice = "take problems that the model solves sometimes, or a larger group"
  return (
    f"no group of the last {BARREN} rounds teaches anything, though each was "
    f"sampled {1 + rounds} times (dynamic_sampling.rounds {rounds}): {found}; "
    f"{advice}"
  )


def explore(
  sample: Callable[[int], Sampled],
  *,
  rounds: int,
  say: Callable[[str], None] = lambda text: None,
) -> Sampled:
  """`sample(0)`, or P groups that teach from up to `rounds` more samplings.

  A group teaches if its task reward (accuracy, where there is one: shaping such
  as a penalty on length would hide that all are right) is not equal throughout.
  When the bound is reached, groups that do not teach fill the batch up, and
  `say` is told.
  """
  first = sample(0)
  if not rounds:
    return first
  prompts, group = first.rollout.lengths.shape
  parts, teaches = [], np.zeros(0, bool)
  while teaches.sum() < prompts and len(parts) <= rounds:
    part = sample(len(parts)) if parts else first
    scores = part.scores()
    task = scores.parts.get("accuracy", scores.total).reshape(prompts, group)
    teaches = np.concatenate([teaches, ~zero_signal(task)])
    parts.append((part, scores))
  # Those that teach first, each kind in the order in which it was sampled.
  kept = np.argsort(~teaches, kind="stable")[:prompts]
  teaching = int(teaches[kept].sum())
  if teaching < prompts:
    say(
      f"{teaching} of {prompts} groups teach something after "
      f"{len(parts)} samplings; going on with them (dynamic_sampling.rounds)"
    )
  merged = _merge([scores for _, scores in parts], kept, group)

  def flat(lists):
    together = [*itertools.chain(*lists)]
    return [x for p in kept for x in together[p * group : (p + 1) * group]]

  return Sampled(
    rollout=_take([part.rollout for part, _ in parts], kept),
    examples=flat([part.examples for part, _ in parts]),
    written=flat([part.written for part, _ in parts]),
    scores=lambda: merged,
    batches=len(parts),
    discarded=(len(teaches) - prompts) * group,
    teaching=teaching,
  )


def _take(rollouts: Sequence[Rollout], kept: np.ndarray) -> Rollout:
  """The kept prompts of several rollouts, as one."""

  def join(*arrays):
    if np.ndim(arrays[0]) == 0:
      return sum(arrays)
    widest = np.max([a.shape[1:] for a in arrays], axis=0)
    padded = [
      np.pad(a, [(0, 0), *((0, w - s) for w, s in zip(widest, a.shape[1:]))])
      for a in arrays
    ]
    return np.concatenate(padded)[kept]

  return jax.tree.map(join, *rollouts)


def _merge(scores: Sequence[Scores], kept: np.ndarray, group: int) -> Scores:
  take = lambda arrays: (
    np.concatenate(arrays).reshape(-1, group)[kept].reshape(-1)
  )
  said = [*itertools.chain(*(s.feedback for s in scores))]
  return scores[0]._replace(
    total=take([s.total for s in scores]),
    parts={
      name: take([s.parts[name] for s in scores]) for name in scores[0].parts
    },
    counts={
      name: sum(s.counts[name] for s in scores) for name in scores[0].counts
    },
    feedback=[said[p * group + g] for p in kept if said for g in range(group)],
  )
