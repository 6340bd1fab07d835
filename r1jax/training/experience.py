"""From a rollout and its scores to what a GRPO update reads."""

from collections.abc import Sequence

import numpy as np

from r1jax.data.packing import pack_rollout
from r1jax.losses.grpo import completion_weights
from r1jax.training.update import microbatches
from r1jax.types import Experience, Packed, Rollout


def minibatches(
  count: int, prompts: int, *, seed: int, round: int
) -> list[np.ndarray]:
  """`count` random, disjoint, equal sets of the round's prompts.

  Whole groups move together. A function of (seed, round).
  """
  order = np.random.default_rng((seed, round)).permutation(prompts)
  return np.split(order, count)


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


def minibatch_weights(
  rollout: Rollout, graded: np.ndarray, chosen: Sequence[int] | np.ndarray
) -> np.ndarray:
  """Each token's share in the update on the chosen prompts: [P, G, T]."""
  counted = np.zeros_like(graded)
  counted[chosen] = graded[chosen]
  return completion_weights(rollout.sampled_mask, counted).astype(np.float32)


def token_arrays(experience: Experience) -> dict[str, np.ndarray | None]:
  """What the loss gathers by `origin`, each flattened from [P, G, T]."""
  shape = experience.old_logprobs.shape
  spread = np.broadcast_to(np.float32(experience.advantages)[..., None], shape)
  reference = experience.reference_logprobs
  return {
    "old_logprobs": experience.old_logprobs.reshape(-1),
    "reference_logprobs": None if reference is None else reference.reshape(-1),
    "advantages": spread.reshape(-1),
    "weights": experience.weights.reshape(-1),
  }
