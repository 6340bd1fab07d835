"""Attention whose memory is linear in the number of tokens.

The softmax runs over blocks of keys with a running maximum and sum
(FlashAttention, arXiv:2205.14135). The gradient recomputes the scores from the
log-sum-exp. Keys and values may be stored in another form, such as latents, and
are expanded one block at a time. Pairs of blocks in which no query sees a key
are skipped.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

NEVER = -1e30  # The score of a key that a query does not see; exp gives 0.
OUTPUT = "attention"  # The name of the outputs for `jax.checkpoint` policies.


def visible(
  query: Int[Array, "Tq"],
  key: Int[Array, "Tk"],
  k_start: Int[Array, "B Tq"],
  prefix_end: Int[Array, "B Tq"],
):
  """The attention mask [B, Tq, Tk], True where query t sees key s.

  That is k_start[t] <= s <= t, or s < prefix_end[t]. `query` and `key` are the
  indices of queries and keys in their row.
  """
  key, query = key[None, None, :], query[None, :, None]
  same_text = (key <= query) & (key >= k_start[..., None])
  return same_text | (key < prefix_end[..., None])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def attention(
  expand: Callable,
  block: int,
  impl: str | None,
  queries: Float[Array, "B K G T H"],
  stored: Any,
  weights: Any,
  k_start: Int[Array, "B T"],
  prefix_end: Int[Array, "B T"],
  start: Int[Array, ""],
) -> tuple[Float[Array, "B K G T Hv"], Float[Array, "B K G T"]]:
  """The output of attention, and the log-sum-exp of the scores in float32.

  Args:
    expand: `expand(weights, stored)` returns keys [B, K, s, H] and values
      [B, K, s, Hv] for s stored tokens.
    block: queries and keys per block; divides both T and S.
    impl: see `r1jax.ops.attention`.
    queries: already scaled.
    stored: a tree of arrays [B, S, ...].
    weights: a tree of arrays.
    k_start: index, among the S tokens, of the first key that a query sees.
    prefix_end: end of the prefix that a query also sees, at most its own index.
    start: index, among the S tokens, of the first query.
  """
  arguments = queries, stored, weights, k_start, prefix_end, start
  return _forward(expand, block, impl, *arguments)[0]


def _forward(expand, block, impl, *arguments):
  plain = functools.partial(_plain_forward, expand, block)
  results = _run(impl, plain, "forward", expand, *arguments)
  results = tuple(checkpoint_name(x, OUTPUT) for x in results)
  return results, (*arguments, *results)


def _backward(expand, block, impl, saved, gradients):
  queries, stored, weights, *limits, out, lse = saved
  arguments = queries, stored, weights, tuple(limits), (out, lse), gradients
  plain = functools.partial(_plain_backward, expand, block)
  d_arrays = _run(impl, plain, "backward", expand, *arguments)
  return *d_arrays, None, None, None


attention.defvjp(_forward, _backward)


def _run(impl: str | None, plain: Callable, name: str, expand, *arguments):
  """The result of `plain` or of the kernel's `name`, whichever `impl` says.

  The choice is made within the rules for the gradient, as the gradient of a
  choice would save what either side needs.
  """
  # Pallas takes a third of a second to import, and short rows need none.
  from r1jax.ops import fused

  kernel = functools.partial(getattr(fused, name), expand)
  interpreted = functools.partial(kernel, interpret=True)
  by_name = {"pallas": kernel, "interpret": interpreted, "xla": plain}
  if impl is None:
    return jax.lax.platform_dependent(*arguments, tpu=kernel, default=plain)
  if impl not in by_name:
    raise ValueError(f"impl {impl!r} is none of {', '.join(by_name)}")
  return by_name[impl](*arguments)


@jax.named_scope("attention")
def _plain_forward(
  expand, block, queries, stored, weights, k_start, prefix_end, start
):
  pairs = _Pairs(block, k_start, prefix_end, start, stored)

  def over_keys(j, carry):
    key, value = expand(weights, _tokens(stored, j, block))

    def over_queries(i, carry):
      query = _part(queries, i, block)

      def update(largest, total, mixed):
        scores = _scores(query, key, pairs.mask(i, j))
        new_largest = jnp.maximum(largest, scores.max(-1))
        weights = jnp.exp(scores - new_largest[..., None])
        # Sums over earlier blocks were relative to the old maximum.
        rescale = jnp.exp(largest - new_largest)
        mixed = mixed * rescale[..., None] + product(
          "BKGTS,BKSH->BKGTH", weights.astype(value.dtype), value
        )
        return new_largest, total * rescale + weights.sum(-1), mixed

      parts = tuple(_part(x, i, block, 3) for x in carry)
      skip = lambda *parts: parts
      parts = jax.lax.cond(pairs.meet(i, j), update, skip, *parts)
      return tuple(_put(x, p, i, 3) for x, p in zip(carry, parts))

    first = pairs.first_queries(j)
    return jax.lax.fori_loop(first, pairs.count, over_queries, carry)

  shape, size = queries.shape[:-1], _value_size(expand, weights, stored)
  carry = (
    jnp.full(shape, NEVER, jnp.float32),
    jnp.zeros(shape, jnp.float32),
    jnp.zeros((*shape, size.shape[-1]), jnp.float32),
  )
  largest, total, mixed = jax.lax.fori_loop(0, pairs.used, over_keys, carry)
  out = (mixed / total[..., None]).astype(size.dtype)
  return out, largest + jnp.log(total)


@jax.named_scope("attention")
def _plain_backward(
  expand, block, queries, stored, weights, limits, results, gradients
):
  k_start, prefix_end, start = limits
  (out, lse), (d_out, d_lse) = results, gradients
  pairs = _Pairs(block, k_start, prefix_end, start, stored)
  # Softmax: d score = weight * (d weight - sum(weight * d weight) + d lse). The
  # sum over keys equals sum(out * d out) over the head size.
  delta = jnp.sum(out.astype(jnp.float32) * d_out, axis=-1) - d_lse

  def over_keys(j, carry):
    d_queries, d_stored, d_weights = carry
    (key, value), pull = jax.vjp(expand, weights, _tokens(stored, j, block))

    def over_queries(i, carry):
      d_queries, d_key, d_value = carry
      query, d_mixed = (_part(x, i, block) for x in (queries, d_out))
      lse_i, delta_i = (_part(x, i, block, 3) for x in (lse, delta))

      def update(d_query, d_key, d_value):
        scores = _scores(query, key, pairs.mask(i, j))
        weights = jnp.exp(scores - lse_i[..., None])
        d_weights = product("BKGTH,BKSH->BKGTS", d_mixed, value)
        d_scores = weights * (d_weights - delta_i[..., None])
        d_scores, weights = (x.astype(key.dtype) for x in (d_scores, weights))
        return (
          d_query + product("BKGTS,BKSH->BKGTH", d_scores, key),
          d_key + product("BKGTS,BKGTH->BKSH", d_scores, query),
          d_value + product("BKGTS,BKGTH->BKSH", weights, d_mixed),
        )

      d_query, *others = jax.lax.cond(
        pairs.meet(i, j),
        update,
        lambda *parts: parts,
        _part(d_queries, i, block),
        d_key,
        d_value,
      )
      return _put(d_queries, d_query, i, 3), *others

    zeros = (jnp.zeros(x.shape, jnp.float32) for x in (key, value))
    d_queries, d_key, d_value = jax.lax.fori_loop(
      pairs.first_queries(j), pairs.count, over_queries, (d_queries, *zeros)
    )
    block_d_weights, block_d_stored = pull(
      (d_key.astype(key.dtype), d_value.astype(value.dtype))
    )
    d_stored = jax.tree.map(
      lambda x, part: _put(x, part, j, 1), d_stored, block_d_stored
    )
    d_weights = jax.tree.map(jnp.add, d_weights, block_d_weights)
    return d_queries, d_stored, d_weights

  float32 = lambda x: jnp.zeros(x.shape, jnp.float32)
  carry = (
    float32(queries),
    jax.tree.map(jnp.zeros_like, stored),
    jax.tree.map(float32, weights),
  )
  d_queries, d_stored, d_weights = jax.lax.fori_loop(
    0, pairs.used, over_keys, carry
  )
  d_weights = jax.tree.map(lambda d, w: d.astype(w.dtype), d_weights, weights)
  return d_queries.astype(queries.dtype), d_stored, d_weights


product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class _Pairs:
  """Which blocks of queries (index i) see which blocks of keys (index j)."""

  def __init__(self, block, k_start, prefix_end, start, stored):
    self.block, self.start = block, start
    self.k_start, self.prefix_end = k_start, prefix_end
    self.count = k_start.shape[1] // block  # Blocks of queries.
    by_block = lambda x: x.reshape(len(x), -1, block).swapaxes(0, 1)
    starts, prefixes = by_block(k_start), by_block(prefix_end)
    lowest = starts.min((1, 2)) // block
    # The first and the last block of keys that any query of block i sees: a
    # shared prefix begins at key 0, and no query sees keys after itself.
    self.first = jnp.where(jnp.any(prefixes > 0, (1, 2)), 0, lowest)
    self.last = (start + jnp.arange(1, self.count + 1) * block - 1) // block
    blocks = jax.tree.leaves(stored)[0].shape[1] // block
    self.used = jnp.minimum(self.last[-1] + 1, blocks)  # Blocks of keys.

  def meet(self, i, j):
    """Whether any query of block i may see a key of block j."""
    return (self.first[i] <= j) & (j <= self.last[i])

  def first_queries(self, j):
    """The first block of queries that does not end before block j of keys."""
    return jnp.clip((j * self.block - self.start) // self.block, 0)

  def mask(self, i, j):
    """The attention mask [B, block, block] between the two blocks."""
    at = i * self.block + jnp.arange(self.block)
    first, prefix = (
      jax.lax.dynamic_slice_in_dim(x, i * self.block, self.block, 1)
      for x in (self.k_start, self.prefix_end)
    )
    keys = j * self.block + jnp.arange(self.block)
    return visible(self.start + at, keys, first, prefix)


def _scores(query, key, mask):
  """Scores [B, K, G, block, block], NEVER where the mask is False."""
  scores = product("BKGTH,BKSH->BKGTS", query, key)
  return jnp.where(mask[:, None, None], scores, NEVER)


def _tokens(stored, j, block):
  """Block j of the stored tokens."""
  return jax.tree.map(lambda x: _part(x, j, block, 1), stored)


def _value_size(expand, weights, stored):
  """The shape and dtype of all values, without computing them."""
  return jax.eval_shape(expand, weights, stored)[1]


def _part(x, i, block, axis=3):
  """Block i of `x` along an axis."""
  return jax.lax.dynamic_slice_in_dim(x, i * block, block, axis)


def _put(x, part, i, axis):
  """`x` with block i along an axis replaced by `part`."""
  start = i * part.shape[axis]
  return jax.lax.dynamic_update_slice_in_dim(x, part, start, axis)
