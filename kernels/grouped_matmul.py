"""Grouped matmul for TPUs: rows in groups, and a weight for each group.

Contract. The rows of `x` [M, K] are sorted by group: the first sizes[0] of them
belong to group 0, the next sizes[1] to group 1, and so on; any size may be 0.
Rows after the last group belong to none. They may hold anything, NaN included:
they do not change the results of other rows or any gradient of a weight. Their
own results, and the gradients with respect to them, are undefined.

    grouped_matmul   y[m] = x[m] @ weights[group of m]
    grouped_gate_up  y[m] = silu(x[m] @ gate) * (x[m] @ up), gate and up of m's
                     group, and silu(z) = z * sigmoid(z)

Products accumulate in float32, and silu is computed in float32.

Tiling. Rows are cut into tiles without regard to groups, so that every access
is aligned. The unit of work is a visit: a group and a tile that holds some of
its rows. Visits are listed in order by prefix sums of the sizes, outside of the
kernels, and the length of the list is a dynamic bound of the grid. So work is
done for rows in use only, and a group costs at most one extra tile. Visits of
one tile follow one another, so the tile of results stays in VMEM, and each
visit replaces the rows of its group.

The summed dimension is not cut: with the visits innermost, the weights of a
group are then read once per tile of columns, however many rows it has, and no
partial sums are kept. The gradient of the weights sums over rows instead; its
float32 sums stay in VMEM while the visits of one group pass. There, both
operands are masked in tiles that a group does not fill, because 0 * NaN is NaN.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

MIB = 2**20
# VMEM for the blocks of a kernel, and for these and the compiler's temporaries.
# A core of v5p and of v7x has 64 MiB, one of v5e and of v6e 128.
BLOCKS, VMEM = 44 * MIB, 60 * MIB
ROWS, COLUMNS = 256, 2048  # Largest tiles of rows and columns.
LANES = 128  # Tiles of columns are multiples of it.


# The ops, and their gradients.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_matmul(x, weights, sizes, interpret=False):
  """The products of rows with the weight of their group.

  Args:
    x: [M, K], of the dtype of `weights`.
    weights: [G, K, N].
    sizes: int32 [G], the number of rows of each group; at most M in all.
    interpret: as in `pallas_call`.

  Returns:
    [M, N].

  Raises:
    ValueError: if shapes or dtypes do not match.
  """
  (out,) = _forward(x, weights[:, None], sizes, False, interpret)
  return out


def _matmul_forward(x, weights, sizes, interpret):
  return grouped_matmul(x, weights, sizes, interpret), (x, weights, sizes)


def _matmul_backward(interpret, saved, gradient):
  x, weights, sizes = saved
  d_x, d_weights = _backward(x, weights[:, None], sizes, (gradient,), interpret)
  return d_x, d_weights[:, 0], None


grouped_matmul.defvjp(_matmul_forward, _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_gate_up(x, gate_up, sizes, interpret=False):
  """The gated hidden units of rows, by the weights of their group.

  The products with gate and up never leave VMEM, unless the gradient is taken.

  Args:
    x: [M, D], of the dtype of `gate_up`.
    gate_up: [G, D, 2, F].
    sizes: as in `grouped_matmul`.
    interpret: as in `pallas_call`.

  Returns:
    [M, F].

  Raises:
    ValueError: if shapes or dtypes do not match.
  """
  return _forward(x, gate_up.swapaxes(1, 2), sizes, False, interpret)[0]


def _gate_up_forward(x, gate_up, sizes, interpret):
  parts = gate_up.swapaxes(1, 2)
  out, *products = _forward(x, parts, sizes, True, interpret)
  return out, (x, parts, sizes, products)


def _gate_up_backward(interpret, saved, gradient):
  x, parts, sizes, products = saved
  _, pull = jax.vjp(_gated, *(p.astype(jnp.float32) for p in products))
  d_products = pull(gradient.astype(jnp.float32))
  d_products = tuple(d.astype(x.dtype) for d in d_products)
  d_x, d_parts = _backward(x, parts, sizes, d_products, interpret)
  return d_x, d_parts.swapaxes(1, 2), None


grouped_gate_up.defvjp(_gate_up_forward, _gate_up_backward)


def _gated(gate, up):
  return gate * jax.nn.sigmoid(gate) * up


def _backward(x, parts, sizes, d_products, interpret):
  """The gradients of x and of `parts`, given those of the products."""
  d_products = tuple(d.astype(x.dtype) for d in d_products)
  return (
    _input_gradient(d_products, parts, sizes, interpret),
    _weight_gradient(x, d_products, sizes, interpret).astype(parts.dtype),
  )


# Visits.


class Visits(NamedTuple):
  """Pairs of a group and a tile that holds rows of it, in order."""

  group: jax.Array  # int32 [visits].
  tile: jax.Array  # int32 [visits].
  start: jax.Array  # int32 [G]: the first row of each group.
  end: jax.Array  # int32 [G].


def visits(sizes, tiles: int, rows: int, empty: bool) -> tuple[Visits, ...]:
  """All visits of tiles of `rows` rows, and how many there are.

  With `empty`, groups without rows are visited once. The lists have room for
  the worst case.
  """
  count = len(sizes)
  end = jnp.cumsum(sizes)
  start = end - sizes
  first, last = start // rows, (end - 1) // rows
  number = jnp.where(sizes > 0, last - first + 1, int(empty))
  ends = jnp.cumsum(number)
  # Groups after the first add at most a visit each: of a tile that the one
  # before them has visited, or without rows.
  visit = jnp.arange(tiles + count - 1)
  group = jnp.sum(visit[:, None] >= ends, axis=1, dtype=jnp.int32)
  group = jnp.minimum(group, count - 1)  # For visits that do not happen.
  tile = first[group] + visit - (ends - number)[group]
  tile = jnp.clip(tile, 0, tiles - 1).astype(jnp.int32)
  return Visits(group, tile, start, end), ends[-1]


def _inside(listed, visit, rows):
  """A mask [rows, 1] of the rows of the visit's group in its tile."""
  group, first = listed.group[visit], listed.tile[visit] * rows
  row = first + lax.broadcasted_iota(jnp.int32, (rows, 1), 0)
  return (row >= listed.start[group]) & (row < listed.end[group])


def _is_whole(listed, visit, rows):
  """Whether all rows of the visit's tile are of its group."""
  group, first = listed.group[visit], listed.tile[visit] * rows
  return (listed.start[group] <= first) & (listed.end[group] >= first + rows)


# Kernels. The weights of P products of the same rows, `parts` [G, P, K, N], are
# one array: P is 1, or 2 for gate and up. They are jitted so that a shape is
# traced once: other platforms trace them, too.


@functools.partial(jax.jit, static_argnames=("save", "interpret"))
def _forward(x, parts, sizes, save, interpret):
  """The results [M, N] and, if `save`, the P products as well."""
  groups, count, k, n = parts.shape
  _check(x, parts, sizes, k)
  m, size = len(x), x.dtype.itemsize
  rows = _rows(m, k * size)
  left = BLOCKS - 2 * rows * k * size
  results = 1 + count * save
  each = 2 * size * (count * k + results * rows)
  columns = _columns(n, left // each)
  listed, number = visits(sizes, -(-m // rows), rows, False)

  def kernel(listed, x, w, out, *products):
    inside = _inside(listed, pl.program_id(1), rows)
    values = [_dot(x[...], w[0, p], ((1,), (0,))) for p in range(count)]
    result = values[0] if count == 1 else _gated(*values)
    for ref, value in zip((out, *products), (result, *values)):
      ref[...] = jnp.where(inside, value.astype(ref.dtype), ref[...])

  column = pl.BlockSpec((rows, columns), lambda j, v, at: (at.tile[v], j))
  return _call(
    kernel,
    name="grouped_gate_up" if count > 1 else "grouped_matmul",
    grid=(-(-n // columns), number),
    listed=listed,
    operands=(x, parts),
    in_specs=[
      pl.BlockSpec((rows, k), lambda j, v, at: (at.tile[v], 0)),
      pl.BlockSpec(
        (1, count, k, columns), lambda j, v, at: (at.group[v], 0, 0, j)
      ),
    ],
    out_specs=[column] * results,
    out_shape=[jax.ShapeDtypeStruct((m, n), x.dtype)] * results,
    flops=2 * m * k * n * count,
    moved=x.nbytes * -(-n // columns) + parts.nbytes + results * m * n * size,
    interpret=interpret,
  )


@functools.partial(jax.jit, static_argnames="interpret")
def _input_gradient(d_products, parts, sizes, interpret):
  """The gradient [M, K] of x: sums over P of d_products[p] @ parts[:, p].T."""
  groups, count, k, n = parts.shape
  m, size = len(d_products[0]), parts.dtype.itemsize
  rows = _rows(m, count * n * size)
  left = BLOCKS - 2 * count * rows * n * size
  columns = _columns(k, left // (2 * size * (count * n + rows)))
  listed, number = visits(sizes, -(-m // rows), rows, False)

  def kernel(listed, w, *refs):
    *d_products, out = refs
    inside = _inside(listed, pl.program_id(1), rows)
    result = sum(
      _dot(d[...], w[0, p], ((1,), (1,))) for p, d in enumerate(d_products)
    )
    out[...] = jnp.where(inside, result.astype(out.dtype), out[...])

  whole = pl.BlockSpec((rows, n), lambda j, v, at: (at.tile[v], 0))
  (d_x,) = _call(
    kernel,
    name="grouped_input_gradient",
    grid=(-(-k // columns), number),
    listed=listed,
    operands=(parts, *d_products),
    in_specs=[
      pl.BlockSpec(
        (1, count, columns, n), lambda j, v, at: (at.group[v], 0, j, 0)
      ),
      *[whole] * count,
    ],
    out_specs=[pl.BlockSpec((rows, columns), lambda j, v, at: (at.tile[v], j))],
    out_shape=[jax.ShapeDtypeStruct((m, k), parts.dtype)],
    flops=2 * m * k * n * count,
    moved=count * m * n * size * -(-k // columns) + parts.nbytes + m * k * size,
    interpret=interpret,
  )
  return d_x


@functools.partial(jax.jit, static_argnames="interpret")
def _weight_gradient(x, d_products, sizes, interpret):
  """The gradient [G, P, K, N] of the weights, in float32."""
  (m, k), n, count = x.shape, d_products[0].shape[1], len(d_products)
  size, groups = x.dtype.itemsize, len(sizes)
  rows = _rows(m, (COLUMNS + count * COLUMNS) * size)
  columns = _columns(n, COLUMNS // count)
  # Sums are in VMEM twice, as one block is written while the next is made.
  left = BLOCKS - 2 * count * rows * columns * size
  across = _columns(k, left // (2 * (4 * count * columns + rows * size)))
  listed, number = visits(sizes, -(-m // rows), rows, True)

  def kernel(listed, x, *refs):
    *d_products, out = refs
    visit = pl.program_id(2)
    group = listed.group[visit]
    before = listed.group[jnp.maximum(visit - 1, 0)]

    @pl.when((visit == 0) | (before != group))
    def _():
      out[...] = jnp.zeros_like(out)

    def add(mask):
      row = mask(x[...])
      for p, d in enumerate(d_products):
        out[0, p] += _dot(row, mask(d[...]), ((0,), (0,)))

    whole = _is_whole(listed, visit, rows)
    pl.when(whole)(lambda: add(lambda y: y))

    @pl.when(~whole & (listed.end[group] > listed.start[group]))
    def _():
      inside = _inside(listed, visit, rows)
      add(lambda y: jnp.where(inside, y, jnp.zeros_like(y)))

  (d_parts,) = _call(
    kernel,
    name="grouped_weight_gradient",
    grid=(-(-k // across), -(-n // columns), number),
    listed=listed,
    operands=(x, *d_products),
    in_specs=[
      pl.BlockSpec((rows, across), lambda i, j, v, at: (at.tile[v], i)),
      *[pl.BlockSpec((rows, columns), lambda i, j, v, at: (at.tile[v], j))]
      * count,
    ],
    out_specs=[
      pl.BlockSpec(
        (1, count, across, columns),
        lambda i, j, v, at: (at.group[v], 0, i, j),
      )
    ],
    out_shape=[jax.ShapeDtypeStruct((groups, count, k, n), jnp.float32)],
    flops=2 * m * k * n * count,
    moved=x.nbytes * -(-n // columns)
    + count * m * n * size * -(-k // across)
    + 4 * groups * count * k * n,
    interpret=interpret,
  )
  return d_parts


def _call(
  kernel,
  *,
  name,
  grid,
  listed,
  operands,
  in_specs,
  out_specs,
  out_shape,
  flops,
  moved,
  interpret,
):
  """The results of `kernel`; its last grid dimension is the visits."""
  return pl.pallas_call(
    kernel,
    name=name,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=grid,
      in_specs=in_specs,
      out_specs=out_specs,
    ),
    out_shape=out_shape,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",) * (len(grid) - 1) + ("arbitrary",),
      vmem_limit_bytes=VMEM,
    ),
    cost_estimate=pl.CostEstimate(
      flops=flops, bytes_accessed=moved, transcendentals=0
    ),
    interpret=interpret,
  )(listed, *operands)


def _dot(a, b, summed):
  """The product of two blocks in float32, summed over a dimension of each."""
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return lax.dot_general(
    a,
    b,
    (summed, ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )


def _rows(m, row_bytes):
  """Rows of a tile: at most ROWS, and at most a third of the blocks' VMEM."""
  room = max(32, BLOCKS // (6 * row_bytes) // 32 * 32)
  return min(m, ROWS, room)


def _columns(n, room):
  """Columns of a tile: all, or the multiple of 128 that wastes the least."""
  most = min(COLUMNS, max(LANES, room // LANES * LANES))
  if n <= most:
    return n
  tiles = -(-n // most)
  return -(-n // (tiles * LANES)) * LANES


def _check(x, parts, sizes, k):
  """Raises ValueError if arguments do not match."""
  if x.ndim != 2 or x.shape[1] != k or x.dtype != parts.dtype:
    raise ValueError(
      f"rows {x.dtype}{list(x.shape)} do not match weights of "
      f"{k} inputs in {parts.dtype}"
    )
  if sizes.shape != parts.shape[:1] or sizes.dtype != jnp.int32:
    raise ValueError(
      f"sizes {sizes.dtype}{list(sizes.shape)} are not int32 of the "
      f"{len(parts)} groups of the weights"
    )
