"""Attention in short rows: all scores of one block of queries at a time.

The loop over blocks is unrolled, so that each block of queries skips the keys
that come after it. The gradient recomputes the scores from the log-sum-exp.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from r1jax.ops.blockwise import NEVER, OUTPUT, visible

product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention(
  queries: Float[Array, "B K G T H"],
  keys: Float[Array, "B K T H"],
  values: Float[Array, "B K T Hv"],
  k_start: Int[Array, "B T"],
  prefix_end: Int[Array, "B T"],
  block: int,
) -> tuple[Float[Array, "B K G T Hv"], Float[Array, "B K G T"]]:
  """The output of attention, and the log-sum-exp of the scores in float32.

  `block` is the number of queries per block; see `blockwise.attention` for the
  other arguments.
  """
  return _forward(queries, keys, values, k_start, prefix_end, block)[0]


def _forward(queries, keys, values, k_start, prefix_end, block):
  outs, sums = [], []
  for at in _blocks(queries, block):
    scores = _scores(queries, keys, k_start, prefix_end, at)
    largest = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = product(
      "BKGTS,BKSH->BKGTH", weights.astype(values.dtype), values[:, :, : at.stop]
    )
    outs.append((mixed / total).astype(values.dtype))
    sums.append((largest + jnp.log(total))[..., 0])
  out, lse = (jnp.concatenate(x, axis=3) for x in (outs, sums))
  out, lse = (checkpoint_name(x, OUTPUT) for x in (out, lse))
  return (out, lse), (queries, keys, values, k_start, prefix_end, out, lse)


def _backward(block, saved, gradients):
  queries, keys, values, k_start, prefix_end, out, lse = saved
  d_out, d_lse = gradients
  # Softmax: d score = weight * (d weight - sum(weight * d weight) + d lse). The
  # sum over keys equals sum(out * d out) over the head size.
  delta = jnp.sum(out.astype(jnp.float32) * d_out, axis=-1) - d_lse
  d_queries, d_keys, d_values = [], 0.0, 0.0
  for at in _blocks(queries, block):
    # Keys up to the last query of the block, and padding for the later ones.
    seen = (slice(None), slice(None), slice(at.stop))
    rest = ((0, 0), (0, 0), (0, keys.shape[2] - at.stop), (0, 0))
    scores = _scores(queries, keys, k_start, prefix_end, at)
    weights = jnp.exp(scores - lse[..., at, None])
    d_weights = product("BKGTH,BKSH->BKGTS", d_out[..., at, :], values[seen])
    d_scores = weights * (d_weights - delta[..., at, None])
    d_scores, weights = (x.astype(keys.dtype) for x in (d_scores, weights))
    d_queries.append(product("BKGTS,BKSH->BKGTH", d_scores, keys[seen]))
    d_keys += jnp.pad(_over_queries(queries[..., at, :], d_scores), rest)
    d_values += jnp.pad(_over_queries(d_out[..., at, :], weights), rest)
  return (
    jnp.concatenate(d_queries, axis=3).astype(queries.dtype),
    d_keys.astype(keys.dtype),
    d_values.astype(values.dtype),
    None,
    None,
  )


attention.defvjp(_forward, _backward)


def _blocks(queries, block):
  """Slices of T, each of at most `block` queries."""
  length = queries.shape[3]
  return [
    slice(start, min(start + block, length))
    for start in range(0, length, block)
  ]


def _scores(queries, keys, k_start, prefix_end, at):
  """Scores [B, K, G, block, s] of the queries `at` with the keys up to them."""
  seen = jnp.arange(at.stop)
  mask = visible(seen[at], seen, k_start[:, at], prefix_end[:, at])
  scores = product(
    "BKGTH,BKSH->BKGTS", queries[..., at, :], keys[:, :, : at.stop]
  )
  return jnp.where(mask[:, None, None], scores, NEVER)


def _over_queries(x, scores):
  """The gradient of keys or values [B, K, S, H]: sum_t scores[t, s] x[t].

  CPUs copy the left operand of the product, so the narrower operand goes there.
  The barrier stops XLA from swapping the two.
  """
  out = product("BKGTH,BKGTS->BKHS", x, scores)
  return jnp.swapaxes(jax.lax.optimization_barrier(out), 2, 3)
