"""Attention whose memory is linear in the number of tokens.

Softmax over blocks of keys with a running maximum and sum (arXiv:2205.14135);
the gradient makes the scores again from the log-sum-exp. Blocks that no query
may see are skipped.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NEVER = -1e30  # The score of a key that a query may not see.


def visible(
  query: Int[Array, "Tq"],
  key: Int[Array, "Tk"],
  k_start: Int[Array, "B Tq"],
  prefix_end: Int[Array, "B Tq"],
):
  """True where query t sees key s: k_start <= s <= t, or s < prefix_end."""
  key, query = key[None, None, :], query[None, :, None]
  own = (key <= query) & (key >= k_start[..., None])
  return own | (key < prefix_end[..., None])


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention(
  queries: Float[Array, "B K G T H"],
  keys: Float[Array, "B K T H"],
  values: Float[Array, "B K T Hv"],
  k_start: Int[Array, "B T"],
  prefix_end: Int[Array, "B T"],
  block: int,
) -> tuple[Float[Array, "B K G T Hv"], Float[Array, "B K G T"]]:
  """Mixed values and the log-sum-exp of the scores; T divides by `block`.

  Queries come scaled. prefix_end[t] <= t.
  """
  return _forward(queries, keys, values, k_start, prefix_end, block)[0]


def _forward(queries, keys, values, k_start, prefix_end, block):
  def of_queries(i):
    query, at = _part(queries, i, block), _rows(i, block)
    mask = functools.partial(_mask, i, k_start, prefix_end, block)

    def add(j, carry):
      largest, total, mixed = carry
      scores = _scores(query, _part(keys, j, block), mask(j))
      higher = jnp.maximum(largest, scores.max(-1))
      weights = jnp.exp(scores - higher[..., None])
      shrink = jnp.exp(largest - higher)
      value = _part(values, j, block)
      mixed = mixed * shrink[..., None] + jnp.einsum(
        "BKGTS,BKSH->BKGTH",
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
      )
      return higher, total * shrink + weights.sum(-1), mixed

    shape = (*query.shape[:-1], values.shape[-1])
    start = (
      jnp.full(shape[:-1], NEVER, jnp.float32),
      jnp.zeros(shape[:-1], jnp.float32),
      jnp.zeros(shape, jnp.float32),
    )
    first = _first_block(at, k_start, prefix_end, block)
    largest, total, mixed = jax.lax.fori_loop(first, i + 1, add, start)
    out = (mixed / total[..., None]).astype(values.dtype)
    return out, largest + jnp.log(total)

  count = queries.shape[3] // block
  out, lse = jax.lax.map(of_queries, jnp.arange(count))
  out, lse = _whole(out), _whole(lse[..., None])[..., 0]
  return (out, lse), (queries, keys, values, k_start, prefix_end, out, lse)


def _backward(block, saved, gradients):
  queries, keys, values, k_start, prefix_end, out, lse = saved
  d_out, d_lse = gradients
  # Of the softmax: d score = weight * (d weight - sum of weight * d weight).
  delta = jnp.sum(out.astype(jnp.float32) * d_out, axis=-1) - d_lse

  def of_queries(carry, i):
    query, d_query_out = (_part(x, i, block) for x in (queries, d_out))
    lse_i, delta_i = (_part(x[..., None], i, block) for x in (lse, delta))
    mask = functools.partial(_mask, i, k_start, prefix_end, block)

    def add(j, carry):
      d_keys, d_values, d_query = carry
      key, value = _part(keys, j, block), _part(values, j, block)
      weights = jnp.exp(_scores(query, key, mask(j)) - lse_i)
      product = functools.partial(
        jnp.einsum, preferred_element_type=jnp.float32
      )
      d_weights = product("BKGTH,BKSH->BKGTS", d_query_out, value)
      d_scores = (weights * (d_weights - delta_i)).astype(key.dtype)
      weights = weights.astype(key.dtype)
      d_keys = _add(
        d_keys, j, product("BKGTS,BKGTH->BKSH", d_scores, query), block
      )
      d_values = _add(
        d_values, j, product("BKGTS,BKGTH->BKSH", weights, d_query_out), block
      )
      d_query += product("BKGTS,BKSH->BKGTH", d_scores, key)
      return d_keys, d_values, d_query

    first = _first_block(_rows(i, block), k_start, prefix_end, block)
    start = (*carry, jnp.zeros(query.shape, jnp.float32))
    *carry, d_query = jax.lax.fori_loop(first, i + 1, add, start)
    return tuple(carry), d_query.astype(query.dtype)

  zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (keys, values))
  count = queries.shape[3] // block
  (d_keys, d_values), d_queries = jax.lax.scan(
    of_queries, zeros, jnp.arange(count)
  )
  d_keys, d_values = d_keys.astype(keys.dtype), d_values.astype(values.dtype)
  return _whole(d_queries), d_keys, d_values, None, None


attention.defvjp(_forward, _backward)


def _scores(query, key, mask):
  scores = jnp.einsum(
    "BKGTH,BKSH->BKGTS", query, key, preferred_element_type=jnp.float32
  )
  return jnp.where(mask[:, None, None], scores, NEVER)


def _mask(i, k_start, prefix_end, block, j):
  at = _rows(i, block)
  first, shared = (_slice(x, at, 1) for x in (k_start, prefix_end))
  return visible(at, _rows(j, block), first, shared)


def _first_block(at, k_start, prefix_end, block):
  """The first block of keys that any of the queries `at` sees."""
  first, shared = (_slice(x, at, 1) for x in (k_start, prefix_end))
  return jnp.where(jnp.any(shared > 0), 0, jnp.min(first) // block)


def _rows(i, block):
  return i * block + jnp.arange(block)


def _slice(x, at, axis):
  return jax.lax.dynamic_slice_in_dim(x, at[0], len(at), axis)


def _part(x, i, block):
  return jax.lax.dynamic_slice_in_dim(x, i * block, block, x.ndim - 2)


def _add(x, i, update, block):
  start = i * block
  update += jax.lax.dynamic_slice_in_dim(x, start, block, x.ndim - 2)
  return jax.lax.dynamic_update_slice_in_dim(x, update, start, x.ndim - 2)


def _whole(blocks):
  """[blocks, B, K, G, block, H] as [B, K, G, T, H]."""
  moved = jnp.moveaxis(blocks, 0, -3)
  return moved.reshape(*moved.shape[:-3], -1, moved.shape[-1])
