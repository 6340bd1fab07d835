"""Grouped matmuls: rows in groups, and a weight for each group.

Rows are sorted by group: the first sizes[0] rows belong to group 0, and so on;
any size may be 0. Rows after the last group belong to none. They may hold
anything, NaN included, without any effect on other rows and on gradients of
weights; results and gradients in these rows are undefined.

The implementation, `impl`, is one of:

  "pallas"     the TPU kernels in `kernels/grouped_matmul.py`
  "interpret"  the same kernels, interpreted on a CPU
  "xla"        plain JAX, below
  None         "pallas" on TPUs, "xla" elsewhere
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from r1jax.ops.linear import gated_silu

SCOPE = "grouped"  # Of all that is here; see `r1jax.tools.plan.costs`.
PADDING = 32  # Some versions of XLA:TPU fail for other numbers of rows.
BLOCK = 256  # Fewest rows of a block in the gradient of a weight.


def grouped_matmul(
  x: Float[Array, "M K"],
  weights: Float[Array, "G K N"],
  sizes: Int[Array, "G"],
  *,
  impl: str | None = None,
) -> Float[Array, "M N"]:
  """The product of each row with the weight of its group."""
  return _run(impl, "grouped_matmul", _matmul, x, weights, sizes)


def grouped_gate_up(
  x: Float[Array, "M D"],
  gate_up: Float[Array, "G D 2 F"],
  sizes: Int[Array, "G"],
  *,
  impl: str | None = None,
) -> Float[Array, "M F"]:
  """silu(gate(x)) * up(x) of each row, by the weights of its group."""
  return _run(impl, "grouped_gate_up", _gate_up, x, gate_up, sizes)


def _run(impl: str | None, name: str, plain: Callable, *args):
  """The result of the kernel `name` or of `plain`, whichever `impl` says."""
  # Pallas takes a third of a second to import, and most models need none.
  from r1jax_kernels import grouped_matmul as kernels

  kernel = getattr(kernels, name)
  interpreted = functools.partial(kernel, interpret=True)
  by_name = {"pallas": kernel, "interpret": interpreted, "xla": plain}
  with jax.named_scope(SCOPE):
    if impl is None:
      return lax.platform_dependent(*args, tpu=kernel, default=plain)
    if impl not in by_name:
      raise ValueError(f"impl {impl!r} is none of {', '.join(by_name)}")
    return by_name[impl](*args)


def _gate_up(x, gate_up, sizes):
  flat = gate_up.reshape(*gate_up.shape[:2], -1)
  both = _matmul(x, flat, sizes)
  return gated_silu(both.reshape(len(x), 2, -1))


def _product(x, weights, sizes):
  """`grouped_matmul`, whose gradient would cost G times too much on TPUs."""
  padded = jnp.pad(x, ((0, -len(x) % PADDING), (0, 0)))
  return lax.ragged_dot(padded, weights, sizes)[: len(x)]


_matmul = jax.custom_vjp(_product)


def _forward(x, weights, sizes):
  return _matmul(x, weights, sizes), (x, weights, sizes)


@jax.named_scope(SCOPE)
def _backward(saved, gradient):
  x, weights, sizes = saved
  _, pull = jax.vjp(lambda x: _product(x, weights, sizes), x)
  d_weights = weight_gradient(x, gradient, sizes).astype(weights.dtype)
  return *pull(gradient), d_weights, None


_matmul.defvjp(_forward, _backward)


def block_rows(rows: int, groups: int) -> int:
  """Rows of a block in `weight_gradient`: about half of a group's mean."""
  return max(BLOCK, rows // (2 * groups) // BLOCK * BLOCK)


@jax.named_scope(SCOPE)
def weight_gradient(
  x: Float[Array, "M K"], gradient: Float[Array, "M N"], sizes: Int[Array, "G"]
) -> Float[Array, "G K N"]:
  """The gradient of the weights in `grouped_matmul`, in float32.

  It loops over blocks of rows of one group and adds their products in place.
  XLA:TPU would multiply all rows by a mask for every group instead, G times the
  needed work.
  """
  count, block = len(sizes), min(block_rows(len(x), len(sizes)), len(x))
  end = jnp.cumsum(sizes)
  blocks = -(-sizes // block)
  last = jnp.cumsum(blocks)

  def run(b, total):
    group = jnp.sum(b >= last)
    first = (
      end[group] - sizes[group] + (b - last[group] + blocks[group]) * block
    )
    # The last rows of all have no whole block after them.
    start = jnp.minimum(first, len(x) - block)
    row = start + jnp.arange(block)
    inside = ((row >= first) & (row < end[group]))[:, None]
    rows, d_rows = (
      jnp.where(inside, lax.dynamic_slice_in_dim(y, start, block), 0)
      for y in (x, gradient)
    )
    product = jnp.matmul(rows.T, d_rows, preferred_element_type=jnp.float32)
    return total.at[group].add(product)

  total = jnp.zeros((count, x.shape[1], gradient.shape[1]), jnp.float32)
  return lax.fori_loop(0, last[-1], run, total)
