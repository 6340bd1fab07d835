"""Microbatches of GRPO updates, in packed layout, from a graded rollout."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from r1jax.data import packing
from r1jax.losses.aggregation import token_weights
from r1jax.losses.kl import kl_penalties
from r1jax.parallel import sharding
from r1jax.parallel.mesh import row_shards
from r1jax.rollouts import replay
from r1jax.types import FINISH_LENGTH, Batch, Rollout

BATCH_AXES = ("rows", "tokens")  # Logical axes of arrays [B, T].


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
  mesh: Mesh,
  *,
  widths: Sequence[int],
  shard_rows: int,
) -> list[packing.Placement]:
  """Where the completions of some prompts are in the rows of microbatches.

  Args:
    rollout: the whole round.
    prompts: indices of prompts in the rollout.
    mesh: over which the rows are split.
    widths: slots (tokens) of a row; each microbatch has one of them, and the
      programs of training are compiled for each.
    shard_rows: rows of a microbatch in each part of the mesh.
  """
  rows = row_shards(mesh) * shard_rows
  return packing.pack_rollout(rollout, prompts, widths=widths, rows=rows)


def make_batch(
  rollout: Rollout, placement: packing.Placement, mesh: Mesh
) -> Batch:
  """A microbatch on the devices, ready for scoring.

  Its weights are 1 at every token that the policy sampled; `add_advantages`
  replaces them by the weights of the loss.

  Args:
    rollout: the whole round, on the host but for its experts.
    placement: from `pack_prompts`.
    mesh: over which the rows are split.
  """
  packed = packing.lay_out_rollout(rollout, placement)
  count, size = rollout.lengths.size, rollout.completions.shape[-1]
  per_slot = functools.partial(packing.per_slot, placement)
  packed, completions, weights, logprobs = sharding.rows_to_device(
    mesh,
    (
      packed,
      per_slot(np.arange(count), np.int32),
      per_slot(rollout.sampled_mask.reshape(-1, size), np.float32),
      per_slot(rollout.logprobs.reshape(-1, size), np.float32),
    ),
  )
  experts = None
  if rollout.experts is not None:
    experts = replay.lay_out(rollout.experts, packed, mesh)
  return Batch(
    packed=packed,
    weights=weights,
    completions=completions,
    sampler_logprobs=logprobs,
    old_logprobs=logprobs,
    experts=experts,
  )


@jax.jit
def add_advantages(
  batch: Batch,
  advantages: Float[Array, "N"],
  weights: Float[Array, "N"],
  num_targets: Int[Array, ""] | int,
) -> Batch:
  """The microbatch with the advantage and the loss weight of every target.

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


def weigh_batches(
  batches: Iterable[Batch],
  tokens: Int[np.ndarray, "P G"],
  trained: Bool[np.ndarray, "P G"],
  advantages: Float[np.ndarray, "P G"],
  **aggregation: Any,
) -> Iterator[Batch]:
  """The microbatches of an update, with advantages and weights.

  Args:
    batches: from `make_batch`.
    tokens: that were sampled, of each completion of the round.
    trained: the completions of this update that are trained on.
    advantages: of all completions.
    **aggregation: the config section; see `losses.aggregation`.
  """
  weights = token_weights(tokens, trained, **aggregation)
  num_targets = np.int32(tokens[trained].sum())
  for batch in batches:
    yield add_advantages(
      batch, advantages.reshape(-1), weights.reshape(-1), num_targets
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
