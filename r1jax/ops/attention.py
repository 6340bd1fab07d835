"""Softmax attention within packed rows, and from new tokens to a cache.

In a packed row, query t sees key s when k_start[t] <= s <= t, or when
s < prefix_end[t] <= t. These two integers per query describe both independent
texts in one row and completions that share a prompt.

Rows of up to NAIVE tokens use `unrolled`, which computes all scores of a block
of queries at once. The memory of longer rows is linear in T. Their
implementation, `impl`, is one of:

  "pallas"     the TPU kernel in `kernels/attention.py`
  "interpret"  the same kernel, interpreted on a CPU
  "xla"        `blockwise`, in plain JAX
  None         "pallas" on TPUs, "xla" elsewhere

Short rows use the kernel only if `impl` names it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from r1jax.ops import blockwise, unrolled
from r1jax.ops.blockwise import NEVER
from r1jax.ops.linear import linear

NAIVE = 1024  # Longest rows, in tokens, for which `unrolled` is used.
BLOCK = 128  # Queries per block in `unrolled`.
LONG_BLOCK = 512  # Queries and keys per block in `blockwise`.

Output = tuple[Float[Array, "B T K G Hv"], Float[Array, "B T K G"]]


def packed_attention(
  queries: Float[Array, "B T K G H"],
  keys: Float[Array, "B S K H"],
  values: Float[Array, "B S K Hv"],
  *,
  scale: float,
  k_start: Int[Array, "B T"],
  prefix_end: Int[Array, "B T"],
  start: int | Int[Array, ""] | None = None,
  impl: str | None = None,
) -> Output:
  """Attention within packed rows, and the log-sum-exp of its scores in float32.

  Each of the K key/value heads serves G query heads.

  Args:
    queries: of T tokens of each row.
    keys: of all S tokens of each row.
    values: of the same tokens; their head size may differ.
    scale: factor of the scores.
    k_start: index, among the S keys, of the first key that a query sees.
    prefix_end: end of the shared prefix that a query also sees; 0 for none.
    start: index, among the S tokens, of the first query. It is given when a
      device holds only part of each row's queries; None if T = S.
    impl: the implementation; see above.
  """
  if _is_short(queries, start, impl):
    return _unrolled(queries, keys, values, scale, k_start, prefix_end)
  return _blockwise(
    _stored_keys_values,
    queries,
    (keys, values),
    (),
    scale=scale,
    k_start=k_start,
    prefix_end=prefix_end,
    start=0 if start is None else start,
    impl=impl,
  )


def latent_attention(
  queries: Float[Array, "B T N H"],
  latents: Float[Array, "B S C"],
  kv_up: Float[Array, "R N H2"],
  *,
  scale: float,
  k_start: Int[Array, "B T"],
  prefix_end: Int[Array, "B T"],
  start: int | Int[Array, ""] | None = None,
  impl: str | None = None,
) -> tuple[Float[Array, "B T N Hv"], Float[Array, "B T N"]]:
  """Multi-head latent attention, MLA, in packed rows (arXiv:2405.04434, 2.1).

  Also returns the log-sum-exp of the scores, in float32. Keys and values of all
  heads take far more memory than the latents, so in long rows they are computed
  for one block of tokens at a time.

  Args:
    queries: without position (NoPE), then with RoPE, along the head size H.
    latents: C numbers per token: the normalised latent of R numbers, then the
      key with RoPE, which all heads share.
    kv_up: up-projection of latents to each head's NoPE key and value.
    scale: factor of the scores.
    k_start: see `packed_attention`.
    prefix_end: see `packed_attention`.
    start: see `packed_attention`.
    impl: the implementation; see above.
  """
  rank = kv_up.shape[0]
  nope_size = queries.shape[-1] - (latents.shape[-1] - rank)
  expand = functools.partial(latent_keys_values, nope_size)
  queries = queries[:, :, :, None]
  if _is_short(queries, start, impl):
    keys, values = expand(kv_up, latents)
    out, lse = _unrolled(queries, keys, values, scale, k_start, prefix_end)
  else:
    out, lse = _blockwise(
      expand,
      queries,
      latents,
      kv_up,
      scale=scale,
      k_start=k_start,
      prefix_end=prefix_end,
      start=0 if start is None else start,
      impl=impl,
    )
  return out[:, :, :, 0], lse[..., 0]


def latent_keys_values(
  nope_size: int,
  kv_up: Float[Array, "R N H2"],
  latents: Float[Array, "B T C"],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N Hv"]]:
  """The keys and values of all heads, from latents; see `latent_attention`."""
  latent, rotated_key = jnp.split(latents, [kv_up.shape[0]], axis=-1)
  both = linear(latent, kv_up)
  keys, values = jnp.split(both, [nope_size], axis=-1)
  shape = (*keys.shape[:3], rotated_key.shape[-1])
  rotated_key = jnp.broadcast_to(rotated_key[:, :, None], shape)
  return jnp.concatenate([keys, rotated_key], axis=-1), values


def _is_short(queries, start, impl: str | None) -> bool:
  """Whether rows are whole and short, so that `unrolled` attends in them."""
  return start is None and queries.shape[1] <= NAIVE and impl in (None, "xla")


def _stored_keys_values(weights, stored):
  """An `expand` for `_blockwise` whose `stored` are keys and values already."""
  return stored


def _unrolled(queries, keys, values, scale, k_start, prefix_end) -> Output:
  queries = jnp.moveaxis(queries * scale, 1, 3)
  keys, values = (jnp.swapaxes(x, 1, 2) for x in (keys, values))
  length = queries.shape[3]
  # As few blocks as BLOCK allows, of nearly equal size.
  block = -(-length // -(-length // BLOCK))
  out, lse = unrolled.attention(
    queries, keys, values, k_start, prefix_end, block
  )
  return jnp.moveaxis(out, 3, 1), jnp.moveaxis(lse, 3, 1)


def _blockwise(
  expand: Callable,
  queries: Float[Array, "B T K G H"],
  stored: Any,
  weights: Any,
  *,
  scale: float,
  k_start: Int[Array, "B T"],
  prefix_end: Int[Array, "B T"],
  start: int | Int[Array, ""],
  impl: str | None,
) -> Output:
  """Attention to the keys and values [B, S, K, H] of `expand(weights, stored)`.

  Pads T and S to whole blocks and moves the heads in front of the tokens, as
  `blockwise.attention` expects them.
  """
  heads_first = lambda weights, stored: tuple(
    jnp.swapaxes(x, 1, 2) for x in expand(weights, stored)
  )
  length = queries.shape[1]
  block = min(LONG_BLOCK, length)
  pad = functools.partial(_pad_to_blocks, block)
  queries = pad(jnp.moveaxis(queries * scale, 1, 3), 3)
  stored = jax.tree.map(lambda x: pad(x, 1), stored)
  # Padding queries repeat the last query's limits, so that they see some key
  # and their softmax is finite. Padding keys come after every real query.
  k_start, prefix_end = (pad(x, 1, "edge") for x in (k_start, prefix_end))
  out, lse = blockwise.attention(
    heads_first,
    block,
    impl,
    queries,
    stored,
    weights,
    k_start,
    prefix_end,
    jnp.asarray(start),
  )
  out, lse = out[..., :length, :], lse[..., :length]
  return jnp.moveaxis(out, 3, 1), jnp.moveaxis(lse, 3, 1)


def _pad_to_blocks(block, x, axis, mode="constant"):
  padding = [(0, 0)] * x.ndim
  padding[axis] = (0, -x.shape[axis] % block)
  return jnp.pad(x, padding, mode=mode)


class Segment(NamedTuple):
  """M groups of cached tokens, each shared by B / M consecutive rows."""

  keys: Float[Array, "M K H S"]
  values: Float[Array, "M K S Hv"] | None  # None if keys serve as values.
  # Query t of a row sees the first lengths[..., t] of the S tokens. The last
  # two dimensions broadcast, and may be 1. None if all queries see all tokens.
  lengths: Int[Array, "M rows T"] | None


def cached_attention(
  queries: Float[Array, "B T K G H"],
  segments: Sequence[Segment],
  *,
  scale: float,
) -> Float[Array, "B T K G Hv"]:
  """Attention of T new tokens per row to cached tokens, themselves included.

  One softmax spans all segments. The segments are not concatenated, and each is
  read once for all rows that share it.

  Args:
    queries: of the new tokens.
    segments: the cached tokens.
    scale: factor of the scores.
  """
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  queries *= scale

  def by_segment(x, count):  # [B, T, K, ...] to [M, K, B/M, T, ...].
    return jnp.moveaxis(x.reshape(count, -1, *x.shape[1:]), 3, 1)

  def by_row(x):  # [M, K, B/M, T, ...] to [B, T, K, ...].
    x = jnp.moveaxis(x, 1, 3)
    return x.reshape(-1, *x.shape[2:])

  # R stands for the B/M rows of a group.
  scores = []
  for keys, _, lengths in segments:
    x = product("MKRTGH,MKHS->MKRTGS", by_segment(queries, len(keys)), keys)
    if lengths is not None:
      seen = jnp.arange(keys.shape[-1]) < lengths[..., None]
      x = jnp.where(seen[:, None, :, :, None], x, NEVER)
    scores.append(x)
  largest = functools.reduce(
    jnp.maximum, [by_row(x.max(-1, keepdims=True)) for x in scores]
  )
  # Sums of weighted values and of weights, over all segments.
  mixed, total = 0.0, 0.0
  for x, (keys, values, _) in zip(scores, segments, strict=True):
    weights = jnp.exp(x - by_segment(largest, len(x)))
    total += by_row(weights.sum(-1, keepdims=True))
    weights = weights.astype(keys.dtype)
    if values is not None:
      out = product("MKRTGS,MKSH->MKRTGH", weights, values)
    else:
      # The barrier stops XLA from swapping the operands, which would make the
      # product slower by half on CPUs.
      out = product("MKHS,MKRTGS->MKHRTG", keys, weights)
      out = jnp.moveaxis(jax.lax.optimization_barrier(out), 2, 5)
    mixed += by_row(out)
  return (mixed / total).astype(queries.dtype)
