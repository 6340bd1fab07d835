"""Batches of GRPO updates, in packed layout, from a graded rollout."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Shaped

from r1jax.data.packing import pack_rollout
from r1jax.losses.kl import kl_penalties
from r1jax.parallel import sharding
from r1jax.rollouts import replay
from r1jax.types import FINISH_LENGTH, Batch, Packed, Rollout

BATCH_AXES = ("rows", None, "tokens")  # Logical axes of arrays [B, M, T].


def trained_completions(
  rollout: Rollout, rewards: Float[np.ndarray, "P G"], *, mask_truncated: bool
) -> Bool[np.ndarray, "P G"]:
  """A mask of the completions to train on.

  It excludes completions without a reward (NaN) and, with `mask_truncated`,
  those that were cut at the token limit.
  """
  trained = np.isfinite(rewards)
  if mask_truncated:
    trained &= rollout.finish != FINISH_LENGTH
  return trained


def groups_with_signal(
  advantages: Float[np.ndarray, "P G"], trained: Bool[np.ndarray, "P G"]
) -> Bool[np.ndarray, "P"]:
  """A mask of the groups with a trained completion of nonzero advantage."""
  return np.any(trained & (advantages != 0), axis=1)


def deal_prompts(
  count: int, has_signal: Bool[np.ndarray, "P"], *, seed: int, round: int
) -> list[Int[np.ndarray, "p"]]:
  """A random partition of the round's prompts into `count` equal sets.

  Groups stay whole. The numbers of groups with signal differ by at most one
  between sets. The result depends on `has_signal` and (seed, round) alone.
  """
  order = np.random.default_rng((seed, round)).permutation(len(has_signal))
  order = order[np.argsort(~has_signal[order], kind="stable")]
  return [order[i::count] for i in range(count)]


def pack_prompts(
  rollout: Rollout,
  prompts: Sequence[int] | np.ndarray,
  *,
  width: int,
  max_rows: int,
  microbatch_rows: int,
) -> tuple[Packed, int]:
  """The completions of some prompts as microbatches, and the count of those.

  Args:
    rollout: the whole round.
    prompts: indices of prompts in the rollout.
    width: slots (tokens) of a row.
    max_rows: rows of a batch; microbatches of unused rows are not computed.
    microbatch_rows: rows that go through the model at once.

  Raises ValueError if the completions need more than `max_rows` rows.
  """
  packed = pack_rollout(rollout, width, chosen=prompts, rows=max_rows)
  return microbatches(packed, microbatch_rows)


def make_batch(
  rollout: Rollout, packed: Packed, count: int, mesh: Mesh
) -> Batch:
  """A batch on the devices, ready for scoring.

  Its weights are 1 at every token that the policy sampled; `add_advantages`
  replaces them by the weights of the loss.

  Args:
    rollout: the whole round, on the host.
    packed: [B, M, T], from `pack_prompts`.
    count: number of microbatches that hold tokens, from `pack_prompts`.
    mesh: over which the rows are split.
  """
  completions = np.maximum(packed.origin, 0) // rollout.completions.shape[-1]
  experts = None
  if rollout.experts is not None:
    experts = replay.lay_out(rollout, packed)
  packed, completions, weights, logprobs, experts = sharding.rows_to_device(
    mesh,
    (
      packed,
      completions.astype(np.int32),
      per_slot(rollout.sampled_mask, packed),
      per_slot(rollout.logprobs, packed),
      experts,
    ),
  )
  return Batch(
    packed=packed,
    num_microbatches=np.int32(count),
    weights=weights,
    completions=completions,
    sampler_logprobs=logprobs,
    old_logprobs=logprobs,
    experts=experts,
  )


def per_slot(
  values: Shaped[np.ndarray, "P G Tc"], packed: Packed
) -> Float[np.ndarray, "B M T"]:
  """The value of the target of each slot; 0 for slots without a target."""
  values = np.asarray(values, np.float32).reshape(-1)
  return np.where(packed.origin >= 0, values[packed.origin], np.float32(0))


def microbatches(packed: Packed, rows: int) -> tuple[Packed, int]:
  """Rows [M * rows, T] as [rows, M, T], and the number of used microbatches."""
  width = packed.tokens.shape[1]
  used = (packed.positions >= 0).any(axis=1).reshape(-1, rows).any(axis=1)
  count = int(used.nonzero()[0].max(initial=-1)) + 1
  reshape = lambda x: np.swapaxes(x.reshape(-1, rows, width), 0, 1)
  return jax.tree.map(reshape, packed), count


def microbatch(batch: Batch, i: int | Int[Array, ""]) -> Batch:
  """Microbatch `i` of a batch, with arrays [B, T]."""
  return jax.tree.map(
    lambda x: jnp.take(x, i, axis=1) if jnp.ndim(x) > 1 else x, batch
  )


@jax.jit
def add_advantages(
  batch: Batch,
  advantages: Float[Array, "N"],
  weights: Float[Array, "N"],
  num_targets: Int[Array, ""] | int,
) -> Batch:
  """The batch with the advantage and the loss weight of every target.

  Args:
    batch: from `make_batch`.
    advantages: of the N = P * G completions of the round.
    weights: of each token of a completion in the loss; 0 for completions that
      are not part of this update.
    num_targets: number of tokens with a weight in the whole update.
  """

  def at_targets(values):
    values = values[batch.completions].astype(jnp.float32)
    values = jnp.where(batch.weights > 0, values, 0.0)
    return sharding.shard_constraint(values, *BATCH_AXES)

  return batch.replace(
    advantages=at_targets(advantages),
    weights=at_targets(weights),
    num_targets=num_targets,
  )


@functools.partial(
  jax.jit, static_argnames=("num_completions", "name", "coefficient")
)
def completion_kl(
  batch: Batch, num_completions: int, *, name: str, coefficient: float
) -> Float[Array, "N"]:
  """The KL penalty of each of N completions against the reference policy.

  It is 0 for completions that are not in the batch. See
  `losses.kl.kl_penalties`.
  """
  penalties = kl_penalties(
    batch.old_logprobs,
    batch.reference_logprobs,
    batch.weights > 0,
    batch.completions,
    num_completions,
    name=name,
    coefficient=coefficient,
  )
  return sharding.shard_constraint(penalties, None)
