"""Attention by the kernel for TPUs, to keys and values stored in another form.

The kernel reads the keys and values of all tokens. Where these are computed
from latents, they are computed for a few heads at a time, as those of all heads
may take gigabytes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from r1jax_kernels import attention as kernel

SCOPE = "attention"  # Of all that is here; see `r1jax.tools.plan`.
EXPANDED = 2**29  # Bytes of keys and values that are expanded at once.


@jax.named_scope(SCOPE)
def forward(
  expand: Callable,
  queries: Float[Array, "B K G T H"],
  stored: Any,
  weights: Any,
  *limits: Array,
  interpret: Any = False,
) -> tuple[Float[Array, "B K G T Hv"], Float[Array, "B K G T"]]:
  """The results of `blockwise.attention`, of whose arguments these are some.

  `limits` are k_start, prefix_end and start. Weights have heads along axis 1.
  """

  def heads(_, part):
    queries, weights = part
    results = kernel.forward(
      queries,
      *expand(weights, stored),
      *limits,
      scale=1.0,
      interpret=interpret,
    )
    return None, results

  count = _groups(expand, stored, weights)
  _, results = _by_heads(heads, count, None, (queries, weights))
  return results


@jax.named_scope(SCOPE)
def backward(
  expand: Callable,
  queries: Float[Array, "B K G T H"],
  stored: Any,
  weights: Any,
  limits: tuple,
  results: tuple,
  gradients: tuple,
  *,
  interpret: Any = False,
) -> tuple[Any, Any, Any]:
  """The gradients of queries, stored and weights."""

  def heads(total, part):
    queries, weights, results, gradients = part
    arrays, pull = jax.vjp(expand, weights, stored)
    d_queries, *d_arrays = kernel.backward(
      queries,
      *arrays,
      *limits,
      results,
      gradients,
      scale=1.0,
      interpret=interpret,
    )
    d_weights, d_stored = pull(tuple(d_arrays))
    return jax.tree.map(jnp.add, total, d_stored), (d_queries, d_weights)

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), stored)
  count = _groups(expand, stored, weights)
  parts = queries, weights, results, gradients
  d_stored, (d_queries, d_weights) = _by_heads(heads, count, zeros, parts)
  cast = lambda d, x: d.astype(x.dtype)
  return d_queries, jax.tree.map(cast, d_stored, stored), d_weights


def _groups(expand, stored, weights) -> int:
  """The number of groups of heads, of at most EXPANDED bytes if it can be."""
  if not jax.tree.leaves(weights):
    return 1
  arrays = jax.eval_shape(expand, weights, stored)
  size = sum(x.size * x.dtype.itemsize for x in arrays)
  heads = arrays[0].shape[1]
  divisors = (n for n in range(1, heads + 1) if heads % n == 0)
  return next(n for n in divisors if size <= n * EXPANDED or n == heads)


def _by_heads(fn: Callable, count: int, carry, parts):
  """Scans over `count` groups of heads, which lie along axis 1 of `parts`."""
  if count == 1:
    return fn(carry, parts)

  def split(x):
    shape = (x.shape[0], count, x.shape[1] // count, *x.shape[2:])
    return jnp.moveaxis(x.reshape(shape), 1, 0)

  def join(x):
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])

  carry, results = jax.lax.scan(fn, carry, jax.tree.map(split, parts))
  return carry, jax.tree.map(join, results)
