"""The one door to `kernels/`: each op in plain JAX, its specification."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from r1jax import sharding
from r1jax.models import blockwise, logprobs, unrolled
from r1jax.models import experts as routed
from r1jax.models.blockwise import NEVER
from r1jax.models.chunks import over_chunks

NAIVE = 1024  # Keys up to which `attention` makes whole rows of scores.
BLOCK = 128  # Queries at most that `attention` then treats at once,
LONG_BLOCK = 512  # and queries and keys beyond NAIVE.
LOGITS = 2**25  # That exist at once in `linear_logprobs`: 128 MiB.
COLUMNS = 128  # Tokens of a row at most, where some do not count.
DENSE = 512  # Hidden units of all experts up to which all of them run,
FEW = 1024  # as they do for so few tokens times experts.


def attention(
  queries: Float[Array, "B T K G H"],
  keys: Float[Array, "B T K H"],
  values: Float[Array, "B T K Hv"],
  *,
  scale: float,
  k_start: Int[Array, "B T"],
  prefix_end: Int[Array, "B T"],
  naive: int = NAIVE,
) -> tuple[Float[Array, "B T K G Hv"], Float[Array, "B T K G"]]:
  """Softmax attention over packed rows, and its log-sum-exp in float32.

  Query t sees key s when k_start[t] <= s <= t, or s < prefix_end[t] <= t. That
  covers packed texts and completions that share their prompt. Each of K keys
  serves G queries. Beyond `naive` keys, memory is linear in T.
  """
  if queries.shape[1] > naive:
    return blockwise_attention(
      lambda weights, cached: cached,
      queries,
      (keys, values),
      (),
      scale=scale,
      k_start=k_start,
      prefix_end=prefix_end,
    )
  queries = jnp.moveaxis(queries * scale, 1, 3)
  keys, values = (jnp.swapaxes(x, 1, 2) for x in (keys, values))
  length = queries.shape[3]
  block = -(-length // -(-length // BLOCK))  # Blocks as even as can be.
  out, lse = unrolled.attention(
    queries, keys, values, k_start, prefix_end, block
  )
  return jnp.moveaxis(out, 3, 1), jnp.moveaxis(lse, 3, 1)


def blockwise_attention(
  make: Callable,
  queries: Float[Array, "B T K G H"],
  cached: Any,
  weights: Any,
  *,
  scale: float,
  k_start: Int[Array, "B T"],
  prefix_end: Int[Array, "B T"],
  start: int | Int[Array, ""] = 0,
) -> tuple[Float[Array, "B T K G Hv"], Float[Array, "B T K G"]]:
  """`attention` to S tokens of which `cached` holds what makes their keys.

  Memory is linear in T and S: keys [B, s, K, H] and values exist for s tokens
  at a time, as `make(weights, cached)` gives them; see `blockwise`. The T
  queries are those from place `start` among the S; `k_start` and `prefix_end`
  are such places, too.
  """
  heads_first = lambda weights, cached: tuple(
    jnp.swapaxes(x, 1, 2) for x in make(weights, cached)
  )
  length = queries.shape[1]
  block = min(LONG_BLOCK, length)
  widen = functools.partial(_widen, block)
  queries = widen(jnp.moveaxis(queries * scale, 1, 3), 3)
  cached = jax.tree.map(lambda x: widen(x, 1), cached)
  # Slots that pad see what the last one sees.
  k_start, prefix_end = (widen(x, 1, "edge") for x in (k_start, prefix_end))
  out, lse = blockwise.attention(
    heads_first,
    block,
    queries,
    cached,
    weights,
    k_start,
    prefix_end,
    jnp.asarray(start),
  )
  out, lse = out[..., :length, :], lse[..., :length]
  return jnp.moveaxis(out, 3, 1), jnp.moveaxis(lse, 3, 1)


def _widen(block, x, axis, mode="constant"):
  """`x`, longer on an axis, so that whole blocks fill it."""
  padding = [(0, 0)] * x.ndim
  padding[axis] = (0, -x.shape[axis] % block)
  return jnp.pad(x, padding, mode=mode)


def attention_to_cache(
  queries: Float[Array, "B T K G H"],
  parts: Sequence[tuple[tuple[Float[Array, "..."], ...], Bool[Array, "..."]]],
  *,
  scale: float,
) -> Float[Array, "B T K G Hv"]:
  """Attention of T new tokens per row to what a cache holds in several parts.

  A part is keys [N, K, H, S], maybe with values [N, K, S, Hv], and which of its
  S places a token sees [N, B/N, T, S], or what becomes that shape: each of the
  N is read once, for B/N consecutive rows. Without values, the keys are mixed.
  The new tokens stand in a part already.
  """
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  queries *= scale

  def of_part(x, count):  # [B, T, K, ...] to [N, K, B/N, T, ...].
    return jnp.moveaxis(x.reshape(count, -1, *x.shape[1:]), 3, 1)

  def of_rows(x):  # And back.
    x = jnp.moveaxis(x, 1, 3)
    return x.reshape(-1, *x.shape[2:])

  # One softmax over all parts, which are never joined: [N, K, B/N, T, G, S].
  scores = []
  for (keys, *_), seen in parts:
    of = product("NKRTGH,NKHS->NKRTGS", of_part(queries, len(keys)), keys)
    scores.append(jnp.where(seen[:, None, :, :, None], of, NEVER))
  largest = functools.reduce(
    jnp.maximum, [of_rows(x.max(-1, keepdims=True)) for x in scores]
  )
  mixed, total = 0.0, 0.0
  for x, (arrays, _) in zip(scores, parts, strict=True):
    count, dtype = len(x), arrays[0].dtype
    weights = jnp.exp(x - of_part(largest, count))
    total += of_rows(weights.sum(-1, keepdims=True))
    if len(arrays) > 1:
      out = product("NKRTGS,NKSH->NKRTGH", weights.astype(dtype), arrays[1])
    else:
      # A CPU is slower by half if XLA turns the product round.
      out = product("NKHS,NKRTGS->NKHRTG", arrays[0], weights.astype(dtype))
      out = jnp.moveaxis(jax.lax.optimization_barrier(out), 2, 5)
    mixed += of_rows(out)
  return (mixed / total).astype(queries.dtype)


def experts(
  x: Float[Array, "M D"],
  gates: Float[Array, "M k"],
  indices: Int[Array, "M k"],
  gate_up: Float[Array, "E D 2 F"],
  down: Float[Array, "E F D"],
  *,
  chunk: int,
  window: int | None = None,
) -> Float[Array, "M D"]:
  """sum_k gates[:, k] * swiglu of expert indices[:, k]; drops no token.

  Buffers, of the worst case, exist for `chunk` tokens at a time. Where few
  choices are of an expert at all, they exist for `window` choices instead.
  """
  count, width, _ = down.shape
  if count * width <= DENSE or count * x.shape[0] <= FEW:
    fn = routed.dense
  elif window is not None and window < min(chunk, len(x)) * indices.shape[1]:
    fn = functools.partial(routed.windowed, _sparse_experts, window)
  else:
    fn = _sparse_experts
  return over_chunks(fn, chunk, (gate_up, down), (x, gates), indices)


def _sparse_experts(weights, floats, indices):
  return jax.lax.platform_dependent(
    weights,
    floats,
    indices,
    tpu=routed.ragged,
    default=routed.blocked,
  )


def linear_logprobs(
  hidden: Float[Array, "*B T D"],
  unembed: Float[Array, "D V"],
  targets: Int[Array, "*B T"],
  *,
  temperature: float = 1.0,
  vocab_size: int | None = None,
  counted: Bool[Array, "*B T"] | None = None,
  chunk: int | None = None,
) -> tuple[Float[Array, "*B T"], Float[Array, "*B T"]]:
  """log p(target) and entropy under softmax(hidden @ unembed / temperature).

  Both in nats and float32. Ids from `vocab_size` on are padding of V and have
  no probability. On a mesh, rows are split, and so is V.

  Args:
    hidden: rows of tokens; one row may come without B.
    unembed: to logits.
    targets: ids.
    temperature: of the policy that is asked.
    vocab_size: ids that exist; None for V.
    counted: where values are wanted; elsewhere they are 0 and cost nothing.
      None for everywhere.
    chunk: tokens whose logits exist at once, in the gradient too, which makes
      them again; None takes 4096, or what LOGITS allows. On a mesh they are a
      device's own.
  """
  unembed = unembed.astype(hidden.dtype)
  fn = functools.partial(_linear_logprobs, temperature, vocab_size, chunk)
  if (mesh := sharding.current()) and hidden.ndim == 3:
    return logprobs.on_mesh(fn, mesh, unembed, hidden, targets, counted)
  return fn(None, unembed, hidden, targets, counted)


def _linear_logprobs(
  temperature, vocab_size, chunk, axis, unembed, hidden, targets, counted
):
  fn = functools.partial(logprobs.whole, temperature, vocab_size, axis)
  rows = math.prod(targets.shape[:-1])
  chunk = chunk or min(4096, LOGITS // unembed.shape[1])
  if counted is None and targets.size <= chunk:
    return fn(unembed, hidden, targets)
  if counted is None:
    counted = jnp.ones(targets.shape, bool)
    columns = chunk // rows
  else:
    columns = min(chunk // rows, COLUMNS)
  columns = min(max(1, columns), targets.shape[-1])
  wide = lambda x, *tail: x.reshape(rows, targets.shape[-1], *tail)
  out = logprobs.chunked(
    fn, columns, unembed, wide(hidden, -1), wide(targets), wide(counted)
  )
  return tuple(x.reshape(targets.shape) for x in out)
