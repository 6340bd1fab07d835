"""Attention within packed rows, forward and backward, as Pallas TPU kernels.

Contract. As in `r1jax.ops.packed_attention`: the query at position t of a row
sees key s when k_start[t] <= s <= t, or s < prefix_end[t] <= t. Two integers
per query describe independent texts in one row and texts that share a prompt.
Groups of G query heads share a key/value head, and keys and values may differ
in head size. A query that sees no key has output 0 and log-sum-exp NEVER, so
that parts of the keys can be attended to apart and merged. Products take the
dtype of the arguments, in full precision if that is float32; sums, softmax
and log-sum-exp are float32. Results are deterministic.

Schedule. Queries and keys are cut into blocks. The integers of a query tell
which blocks of keys it meets. XLA lists the pairs of blocks that meet before
the kernel starts, the list goes to scalar memory, and the grid has one step for
each pair: one in which no query sees a key takes no time and no memory traffic.
Pairs in which every query sees every key skip the mask.

Tiling. The matmuls of a pair of 1,024 x 1,024 take microseconds, which hides
both the copies of the next pair's blocks and the cost of a grid step. The
forward kernel cuts the keys of a pair into CHUNKs, unrolled, so that the
matmuls of one overlap the softmax of the other. Gradients of keys and values
have keys in rows, the other kernels have queries in rows: the long operand of
every matmul then streams through the MXU, and no block of scores is transposed.
Numbers of a query are stored as rows; where queries are rows, they become
columns once per block.

Backward. Two kernels recompute the weights from the log-sum-exp: one sums the
gradient of queries over keys, one those of keys and values over queries and the
heads of a group (arXiv:2307.08691, 3.1). A single one would add to float32 sums
in HBM.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

NAME = "attention"  # Of the outputs, for `jax.checkpoint` policies.
BLOCK = 1024  # Most queries, and most keys, of a block.
CHUNK = 512  # Keys whose scores the forward kernel computes at once.
LANES = 128  # The width of a vector register.
NEVER = -1e30  # The score of a key that a query does not see.
FLOOR = -1e29  # The running maximum of a query that has seen no key yet.
LOG2_E = math.log2(math.e)
VMEM = 32 * 2**20  # Bytes of vector memory that a kernel may take.

Queries = Float[Array, "B K G T H"]
Keys = Float[Array, "B K S H"]
Values = Float[Array, "B K S Hv"]
Limits = Int[Array, "B T"]
Results = tuple[Float[Array, "B K G T Hv"], Float[Array, "B K G T"]]


def packed_attention(
  queries: Float[Array, "B T K G H"],
  keys: Float[Array, "B S K H"],
  values: Float[Array, "B S K Hv"],
  *,
  scale: float,
  k_start: Int[Array, "B T"],
  prefix_end: Int[Array, "B T"],
  start: int | Int[Array, ""] | None = None,
  interpret: Any = False,
) -> tuple[Float[Array, "B T K G Hv"], Float[Array, "B T K G"]]:
  """Attention within packed rows, and the log-sum-exp of its scores in float32.

  The arguments are those of the op in plain JAX: queries of T tokens, keys and
  values of all S tokens of a row, of which the query at `start` is the first.
  `interpret` is that of `pallas_call`, to run without a TPU.
  """
  out, lse = attention(
    scale,
    interpret,
    jnp.moveaxis(queries, 1, 3),
    *(jnp.swapaxes(x, 1, 2) for x in (keys, values)),
    k_start,
    prefix_end,
    jnp.asarray(0 if start is None else start),
  )
  return jnp.moveaxis(out, 3, 1), jnp.moveaxis(lse, 3, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attention(
  scale: float,
  interpret: Any,
  queries: Queries,
  keys: Keys,
  values: Values,
  k_start: Limits,
  prefix_end: Limits,
  start: Int[Array, ""],
) -> Results:
  """`packed_attention` of arrays whose heads come before their tokens."""
  arguments = queries, keys, values, k_start, prefix_end, start
  return forward(*arguments, scale=scale, interpret=interpret)


def _attention_forward(scale, interpret, *arguments):
  results = forward(*arguments, scale=scale, interpret=interpret)
  results = tuple(checkpoint_name(x, NAME) for x in results)
  return results, (arguments, results)


def _attention_backward(scale, interpret, saved, gradients):
  arguments, results = saved
  arguments = *arguments, results, gradients
  d_arrays = backward(*arguments, scale=scale, interpret=interpret)
  return *d_arrays, None, None, None


attention.defvjp(_attention_forward, _attention_backward)


def forward(
  queries: Queries,
  keys: Keys,
  values: Values,
  k_start: Limits,
  prefix_end: Limits,
  start: Int[Array, ""],
  *,
  scale: float,
  interpret: Any = False,
) -> Results:
  """The results of `attention`, for callers with a gradient of their own."""
  p = _problem(queries, keys, values, scale, interpret)
  limits = _limits(p, k_start, prefix_end, start)
  columns = pltpu.VMEM((p.query_block, LANES), jnp.float32)
  out, lse = _call(
    p,
    _forward_kernel,
    "attention_forward",
    _schedule(p, limits, by_key=False),
    dict(limits=limits, queries=queries, keys=keys, values=values),
    dict(outputs=values.dtype, sums=jnp.float32),
    scratch=[
      pltpu.VMEM((3, p.query_block, LANES), jnp.int32),
      *(columns, columns),
      pltpu.VMEM((p.query_block, p.value_size), jnp.float32),
    ],
    depth=p.size + p.value_size,
  )
  return out, lse[..., 0, :]


def backward(
  queries: Queries,
  keys: Keys,
  values: Values,
  k_start: Limits,
  prefix_end: Limits,
  start: Int[Array, ""],
  results: Results,
  gradients: Results,
  *,
  scale: float,
  interpret: Any = False,
) -> tuple[Queries, Keys, Values]:
  """The gradients of queries, keys and values, from those of the results."""
  p = _problem(queries, keys, values, scale, interpret)
  (out, lse), (d_out, d_lse) = results, gradients
  # Softmax: d score = weight * (d weight - sum(weight * d weight) + d lse). The
  # sum over keys equals sum(out * d out) over the head size.
  delta = jnp.sum(out.astype(jnp.float32) * d_out, axis=-1) - d_lse
  # Weights are 2^(score - lse). Where no key is seen they are 0.
  lse = jnp.where(lse > FLOOR, lse * LOG2_E, 0.0)
  limits = _limits(p, k_start, prefix_end, start)
  arrays = dict(
    limits=limits,
    queries=queries,
    keys=keys,
    values=values,
    outputs=d_out.astype(values.dtype),
    sums=jnp.stack([lse, delta], axis=3),
  )
  (d_queries,) = _call(
    p,
    _d_queries_kernel,
    "attention_d_queries",
    _schedule(p, limits, by_key=False),
    arrays,
    dict(queries=queries.dtype),
    scratch=[
      pltpu.VMEM((3, p.query_block, LANES), jnp.int32),
      pltpu.VMEM((2, p.query_block, LANES), jnp.float32),
      pltpu.VMEM((p.query_block, p.size), jnp.float32),
    ],
    depth=2 * p.size + p.value_size,
  )
  d_keys, d_values = _call(
    p,
    _d_keys_values_kernel,
    "attention_d_keys_values",
    _schedule(p, limits, by_key=True),
    arrays,
    dict(keys=keys.dtype, values=values.dtype),
    scratch=[
      pltpu.VMEM((p.key_block, p.size), jnp.float32),
      pltpu.VMEM((p.key_block, p.value_size), jnp.float32),
    ],
    depth=2 * p.size + 2 * p.value_size,
  )
  return d_queries, d_keys, d_values


class _Problem(NamedTuple):
  """What is known of a call when it is traced."""

  batch: int  # B
  heads: int  # K
  group: int  # G
  length: int  # T
  total: int  # S
  size: int  # H
  value_size: int  # Hv
  query_block: int  # Queries per block.
  query_blocks: int
  key_block: int  # Keys per block.
  key_blocks: int
  scale: float
  interpret: Any


def _problem(queries, keys, values, scale, interpret) -> _Problem:
  *lead, length, size = queries.shape
  *_, total, value_size = values.shape
  sizes = *lead, length, total, size, value_size
  return _Problem(*sizes, *_blocks(length), *_blocks(total), scale, interpret)


def _blocks(length: int) -> tuple[int, int]:
  """The size and count of as few blocks as BLOCK allows, of similar size."""
  size = pl.cdiv(length, pl.cdiv(length, BLOCK))
  size = pl.cdiv(size, LANES) * LANES
  return size, pl.cdiv(length, size)


# The schedule.

FIRST, LAST, FULL, PARTIAL = 1, 2, 4, 8  # Flags of a step.


class _Schedule(NamedTuple):
  """The steps of a kernel, in order: pairs of blocks that meet.

  Steps with the same block of queries (of keys, if `by_key`) follow each other.
  A block that meets no other has one step, in which its result is written.
  """

  row: Int[Array, "steps"]
  query: Int[Array, "steps"]  # The block of queries.
  key: Int[Array, "steps"]  # The block of keys.
  # FIRST and LAST step of a block; FULL if each query sees each key of the
  # pair, PARTIAL if some do, neither if none does.
  flags: Int[Array, "steps"]
  count: Int[Array, ""]  # The steps in use; the arrays are longer.
  by_key: bool


def _limits(p: _Problem, k_start, prefix_end, start) -> Int[Array, "B 3 T"]:
  """The first and the end of its text's keys that a query sees, and prefix_end.

  Queries that pad T to whole blocks see no key.
  """
  end = jnp.broadcast_to(start + jnp.arange(1, p.length + 1), k_start.shape)
  limits = jnp.stack([k_start, end, prefix_end], axis=1).astype(jnp.int32)
  limits = jnp.minimum(limits, p.total)  # Padding of keys is not seen.
  return jnp.pad(limits, ((0, 0), (0, 0), (0, -p.length % p.query_block)))


def _schedule(p: _Problem, limits, *, by_key: bool) -> _Schedule:
  """The pairs of blocks that meet, found from the limits of their queries."""
  blocks = limits.reshape(p.batch, 3, p.query_blocks, 1, p.query_block)
  first, end, prefix = (blocks[:, i] for i in range(3))
  low = jnp.arange(p.key_blocks)[:, None] * p.key_block
  high = low + p.key_block
  # [B, blocks of queries, blocks of keys], from the queries of each block.
  own = jnp.maximum(first, low) < jnp.minimum(end, high)
  meet = (own | (prefix > low)).any(-1)
  full = ((first <= low) & (end >= high) | (prefix >= high)).all(-1)
  axis = 1 if by_key else 2
  place = lax.broadcasted_iota(jnp.int32, meet.shape, axis)
  steps = meet | (~meet.any(axis, keepdims=True) & (place == 0))
  is_first = place == jnp.where(steps, place, p.total).min(axis, keepdims=True)
  is_last = place == jnp.where(steps, place, -1).max(axis, keepdims=True)
  flags = FIRST * is_first + LAST * is_last
  flags += jnp.where(meet, jnp.where(full, FULL, PARTIAL), 0)
  if by_key:
    steps, flags = (x.swapaxes(1, 2) for x in (steps, flags))
  index = jnp.nonzero(steps, size=steps.size, fill_value=0)
  row, *pair, flags = (x.astype(jnp.int32) for x in (*index, flags[index]))
  query, key = reversed(pair) if by_key else pair
  return _Schedule(row, query, key, flags, jnp.sum(steps), by_key)


# The kernels. They get the problem, then references to the schedule, to the
# blocks of inputs and outputs of this step, and to scratch memory.


class _Step(NamedTuple):
  """A step of the grid."""

  p: _Problem
  flags: Int[Array, ""]
  key: Int[Array, ""]  # The block of keys.

  def when(self, flag: int, condition: bool | Array = True) -> Callable:
    """Decorates what only steps with a flag do."""
    return pl.when((self.flags & flag != 0) & condition)

  def if_they_meet(self, update: Callable) -> None:
    """Runs `update(mask)` if some query of the pair sees some key.

    `mask(scores, at, limits, axis)` sets scores of unseen keys to NEVER. Keys
    lie along `axis`, from index `at` of the block; `limits` holds the three
    limits of each query.
    """
    self.when(FULL)(lambda: update(lambda scores, at, limits, axis: scores))
    first_key = self.key * self.p.key_block
    self.when(PARTIAL)(lambda: update(functools.partial(_hide, first_key)))


def _step(p: _Problem, axis: int, refs: tuple) -> tuple[_Step, tuple]:
  """The step at this index of a grid axis, and the other references."""
  _, _, key, flags, *others = refs
  at = pl.program_id(axis)
  return _Step(p, flags[at], key[at]), others


def _hide(first_key, scores, at: int, limits, axis: int):
  """Scores, NEVER where a query does not see the key."""
  if axis:
    first, end, prefix = (_repeat(limits[i], scores.shape[1]) for i in range(3))
  else:
    first, end, prefix = (limits[i : i + 1] for i in range(3))
  key = first_key + at + lax.broadcasted_iota(jnp.int32, scores.shape, axis)
  seen = (key >= first) & (key < end) | (key < prefix)
  return jnp.where(seen, scores, NEVER)


def _scores(p: _Problem, a, b):
  """The scores [A, B] of vectors [A, H] and [B, H], times log2(e)."""
  return _dot(a, b, (1, 1)) * (p.scale * LOG2_E)


def _dot(a, b, axes: tuple[int, int]):
  """The float32 product of two matrices over one axis of each."""
  over = (axes[:1], axes[1:]), ((), ())
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return lax.dot_general(a, b, over, precision, jnp.float32)


def _to_columns(rows, columns):
  """Stores rows [m, n] as columns [m, n, LANES] of equal numbers."""
  for i in range(rows.shape[0]):
    shape = LANES, rows.shape[1]
    columns[i] = jnp.broadcast_to(rows[i : i + 1], shape).T


def _repeat(columns, width: int):
  """[n, LANES] of equal columns as [n, width]."""
  return jnp.tile(columns, (1, -(-width // LANES)))[:, :width]


def _forward_kernel(p, *refs):
  step, refs = _step(p, 2, refs)
  limits, q, k, v, out, lse, columns, largest, total, mixed = refs

  @step.when(FIRST)
  def _():
    _to_columns(limits, columns)
    largest[...] = jnp.full_like(largest, FLOOR)
    total[...] = jnp.zeros_like(total)
    mixed[...] = jnp.zeros_like(mixed)

  @step.if_they_meet
  def _(mask):
    for at in range(0, p.key_block, CHUNK):
      size = min(CHUNK, p.key_block - at)
      part = pl.ds(at, size)
      scores = mask(_scores(p, q[...], k[part]), at, columns, 1)
      old = largest[...]
      new = jnp.maximum(old, scores.max(1, keepdims=True))
      weights = jnp.exp2(scores - _repeat(new, size))
      rescale = jnp.exp2(old - new)  # Earlier sums are relative to the old one.
      largest[...] = new
      # Each lane has a sum of its own until the last step.
      lanes = [weights[:, i : i + LANES] for i in range(0, size, LANES)]
      total[...] = total[...] * rescale + functools.reduce(jnp.add, lanes)
      mixed[...] = mixed[...] * _repeat(rescale, p.value_size) + _dot(
        weights.astype(v.dtype), v[part], (1, 0)
      )

  @step.when(LAST)
  def _():
    sums = jnp.broadcast_to(total[...].sum(1, keepdims=True), total.shape)
    some = sums > 0
    divisor = jnp.where(some, sums, 1.0)
    out[...] = (mixed[...] / _repeat(divisor, p.value_size)).astype(out.dtype)
    sums = (largest[...] + jnp.log2(divisor)) / LOG2_E
    lse[...] = jnp.where(some, sums, NEVER).T[:1]


def _d_queries_kernel(p, *refs):
  step, refs = _step(p, 2, refs)
  limits, q, k, v, d_out, sums, d_q, columns, sum_columns, total = refs

  @step.when(FIRST)
  def _():
    _to_columns(limits, columns)
    _to_columns(sums, sum_columns)
    total[...] = jnp.zeros_like(total)

  @step.if_they_meet
  def _(mask):
    scores = mask(_scores(p, q[...], k[...]), 0, columns, 1)
    lse, delta = (_repeat(sum_columns[i], p.key_block) for i in range(2))
    d_weights = _dot(d_out[...], v[...], (1, 1))
    d_scores = jnp.exp2(scores - lse) * (d_weights - delta)
    total[...] += _dot(d_scores.astype(k.dtype), k[...], (1, 0))

  @step.when(LAST)
  def _():
    d_q[...] = (total[...] * p.scale).astype(d_q.dtype)


def _d_keys_values_kernel(p, *refs):
  step, refs = _step(p, 1, refs)
  limits, q, k, v, d_out, sums, d_k, d_v, total_k, total_v = refs
  member = pl.program_id(2)

  @step.when(FIRST, member == 0)
  def _():
    total_k[...] = jnp.zeros_like(total_k)
    total_v[...] = jnp.zeros_like(total_v)

  @step.if_they_meet
  def _(mask):
    scores = mask(_scores(p, k[...], q[...]), 0, limits, 0)
    lse, delta = sums[:1], sums[1:]
    weights = jnp.exp2(scores - lse)
    total_v[...] += _dot(weights.astype(v.dtype), d_out[...], (1, 0))
    d_weights = _dot(v[...], d_out[...], (1, 1))
    d_scores = weights * (d_weights - delta)
    total_k[...] += _dot(d_scores.astype(q.dtype), q[...], (1, 0))

  @step.when(LAST, member == p.group - 1)
  def _():
    d_k[...] = (total_k[...] * p.scale).astype(d_k.dtype)
    d_v[...] = total_v[...].astype(d_v.dtype)


class _Layout(NamedTuple):
  """How a kernel reads or writes an array."""

  shape: tuple[int, ...]
  block: tuple[int | None, ...]  # The shape of a block; None for one index.
  # The indices of a block from those of the row, the key/value head, the query
  # head within its group, and the blocks of queries and keys.
  index: Callable[..., tuple]

  @property
  def padded(self) -> tuple[int, ...]:
    """The shape in whole blocks."""
    return tuple(n + -n % (b or 1) for n, b in zip(self.shape, self.block))


def _layouts(p: _Problem, sums: int) -> dict[str, _Layout]:
  """The layouts of all arrays; `sums` is the number of sums of each query."""
  heads, members = (p.batch, p.heads), (p.batch, p.heads, p.group)
  query, key = (None, None, None, p.query_block), (None, None, p.key_block)
  of_query = lambda b, n, g, i, j: (b, n, g, i, 0)
  of_key = lambda b, n, g, i, j: (b, n, j, 0)
  return dict(
    limits=_Layout(
      (p.batch, 3, p.length),
      (None, 3, p.query_block),
      lambda b, n, g, i, j: (b, 0, i),
    ),
    sums=_Layout(
      (*members, sums, p.length),
      (None, None, None, sums, p.query_block),
      lambda b, n, g, i, j: (b, n, g, 0, i),
    ),
    queries=_Layout((*members, p.length, p.size), (*query, p.size), of_query),
    outputs=_Layout(
      (*members, p.length, p.value_size), (*query, p.value_size), of_query
    ),
    keys=_Layout((*heads, p.total, p.size), (*key, p.size), of_key),
    values=_Layout(
      (*heads, p.total, p.value_size), (*key, p.value_size), of_key
    ),
  )


def _call(
  p: _Problem,
  kernel: Callable,
  name: str,
  schedule: _Schedule,
  inputs: dict[str, Array],
  outputs: dict[str, Any],
  *,
  scratch: list,
  depth: int,
) -> list[Array]:
  """Runs a kernel along a schedule; `name` is its name in compiled programs.

  Inputs, and the dtypes of outputs, are by the name of their layout. `depth` is
  the sum of head sizes over all products of a query and a key.
  """
  layouts = _layouts(p, inputs["sums"].shape[3] if "sums" in inputs else 1)
  if schedule.by_key:  # Gradients of a key add up over the heads of a group.
    grid = (p.heads, schedule.count, p.group)
    place = lambda head, at, member: (head, member, at)
    semantics = ("parallel", "arbitrary", "arbitrary")
  else:
    grid = (p.heads, p.group, schedule.count)
    place = lambda head, member, at: (head, member, at)
    semantics = ("parallel", "parallel", "arbitrary")

  def spec(name):
    def index(i, j, k, rows, queries, keys, _):
      head, member, at = place(i, j, k)
      return layouts[name].index(rows[at], head, member, queries[at], keys[at])

    return pl.BlockSpec(layouts[name].block, index)

  def padded(name, x):
    by = (n - m for n, m in zip(layouts[name].padded, x.shape))
    return jnp.pad(x, [(0, n) for n in by])

  results = {
    name: jax.ShapeDtypeStruct(layouts[name].padded, dtype)
    for name, dtype in outputs.items()
  }
  whole = pl.pallas_call(
    functools.partial(kernel, p),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=4,
      grid=grid,
      in_specs=[spec(name) for name in inputs],
      out_specs=[spec(name) for name in outputs],
      scratch_shapes=scratch,
    ),
    out_shape=[*results.values()],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=semantics, vmem_limit_bytes=VMEM
    ),
    cost_estimate=_cost(p, layouts, inputs | results, depth, schedule.by_key),
    interpret=p.interpret,
    name=name,
  )(*schedule[:4], *(padded(*item) for item in inputs.items()))
  return [
    x[tuple(map(slice, layouts[name].shape))] for name, x in zip(outputs, whole)
  ]


def _cost(
  p: _Problem, layouts, arrays: dict[str, Any], depth: int, by_key: bool
) -> pl.CostEstimate:
  """The cost of rows of one text each, whose queries are its last tokens.

  Rows of several texts cost less. A pair of blocks counts as a whole, although
  causality hides half of the pairs on the diagonal.
  """
  before = p.total - p.length
  ends = (before + (i + 1) * p.query_block for i in range(p.query_blocks))
  pairs = sum(min(-(-end // p.key_block), p.key_blocks) for end in ends)
  pairs *= p.batch * p.heads * p.group
  scores = pairs * p.query_block * p.key_block
  # Blocks that change at every step are copied as often; others, once.
  changing = {"keys", "values"}
  changing = arrays.keys() - changing if by_key else changing
  total = 0
  for name, x in arrays.items():
    block = pairs * math.prod(n or 1 for n in layouts[name].block)
    numbers = block if name in changing else math.prod(layouts[name].padded)
    total += numbers * jnp.dtype(x.dtype).itemsize
  return pl.CostEstimate(
    flops=2 * scores * depth, transcendentals=scores, bytes_accessed=total
  )
