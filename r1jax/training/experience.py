"""From a rollout and its scores to what a GRPO update reads."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from r1jax import sharding
from r1jax.data.packing import pack_rollout
from r1jax.rollouts import replay
from r1jax.training.update import microbatches
from r1jax.types import FINISH_LENGTH, Experience, Packed, Params, Rollout


def minibatches(
  count: int, teaches: np.ndarray, *, seed: int, round: int
) -> list[np.ndarray]:
  """`count` random, disjoint, equal sets of the round's prompts.

  Whole groups move together. Those that teach [P] are dealt evenly: two sets
  differ by one at most. A function of `teaches` and (seed, round).
  """
  order = np.random.default_rng((seed, round)).permutation(len(teaches))
  order = order[np.argsort(~teaches[order], kind="stable")]
  return [order[i::count] for i in range(count)]


def which_teach(advantages: np.ndarray, counted: np.ndarray) -> np.ndarray:
  """True for groups [P] with a completion that moves the policy."""
  return np.any(counted & (advantages != 0), axis=1)


def pack_minibatch(
  rollout: Rollout,
  chosen: Sequence[int] | np.ndarray,
  *,
  width: int,
  max_rows: int,
  microbatch_rows: int,
) -> tuple[Packed, int]:
  """The completions of the chosen prompts as microbatches, and how many.

  Args:
    rollout: of the whole round.
    chosen: rows of its prompts.
    width: tokens of a row.
    max_rows: of a minibatch; unused ones cost nothing.
    microbatch_rows: rows that go through the model at once.
  """
  packed = pack_rollout(rollout, width, chosen=chosen, rows=max_rows)
  return microbatches(packed, microbatch_rows)


def which_count(
  rollout: Rollout, total: np.ndarray, *, mask_truncated: bool
) -> np.ndarray:
  """True for completions that are learned from: [P, G].

  Not those without a reward, nor, if masked, those cut at the token limit.
  """
  counted = np.isfinite(total)
  if mask_truncated:
    counted &= rollout.finish != FINISH_LENGTH
  return counted


def within(counted: np.ndarray, chosen: np.ndarray) -> np.ndarray:
  """`counted` [P, G] among the chosen prompts alone."""
  inside = np.zeros_like(counted)
  inside[chosen] = counted[chosen]
  return inside


def token_arrays(
  experience: Experience, packed: Packed
) -> dict[str, np.ndarray | None]:
  """What the loss reads beside `packed`, slot by slot, in the same layout.

  Where there is no origin, the weight is 0.
  """
  shape = experience.weights.shape
  filled = packed.origin >= 0
  at = np.maximum(packed.origin, 0)
  completion = at // shape[-1]

  def slots(values: Any) -> np.ndarray | None:
    if values is None:
      return None
    values = np.asarray(values, np.float32)
    index = at if values.shape == shape else completion
    return np.where(filled, values.reshape(-1)[index], np.float32(0))

  return {
    "old_logprobs": slots(experience.old_logprobs),
    "sampler_logprobs": slots(experience.rollout.logprobs),
    "reference_logprobs": slots(experience.reference_logprobs),
    "advantages": slots(experience.advantages),
    "weights": slots(experience.weights),
    "completion": completion.astype(np.int32),
    "experts": experts_of(experience.rollout, packed),
  }


def experts_of(rollout: Rollout, packed: Packed) -> np.ndarray | None:
  """The experts that the sampler used, slot by slot; None if not recorded."""
  return None if rollout.experts is None else replay.lay_out(rollout, packed)


def place(values: np.ndarray, packed: Packed, out: np.ndarray) -> None:
  """Writes the values of packed slots to their places in `out` [P, G, T]."""
  filled = packed.origin >= 0
  out.reshape(-1)[packed.origin[filled]] = values[filled]


def score_round(
  score: Callable,
  mesh: Mesh,
  rollout: Rollout,
  batches: Sequence[tuple[Packed, int]],
  params: Params,
) -> np.ndarray:
  """log p of every sampled token [P, G, Tc]; `score` is `make_score`'s."""
  values = np.zeros_like(rollout.logprobs)
  for packed, count in batches:
    rows = packed, experts_of(rollout, packed)
    made = score(params, sharding.assemble(mesh, rows), count)
    place(sharding.local(made), packed, values)
  return values


def spread(packed: Packed, count: int) -> tuple[float, float]:
  """How full the slots of `count` microbatches are, and how unequally.

  The share of slots in use, and the most tokens that a row of a microbatch
  holds over the mean.
  """
  used = (np.asarray(packed.positions[:, :count]) >= 0).sum(axis=-1)
  width = packed.positions.shape[-1]
  return used.mean() / width, used.max() / max(used.mean(), 1e-9)
