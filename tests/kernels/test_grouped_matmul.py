"""Grouped matmuls and their gradients, against loops in float64."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from r1jax_kernels import grouped_matmul as kernels

from r1jax.ops import grouped
from r1jax.tools.plan import chips, hlo
from r1jax.tools.plan import costs as plan_costs

# Of M = 70 rows: even; with empty groups and unused rows; one huge group; a row
# in each; none at all; ends just before and just after those of tiles.
SIZES = [
  (16, 16, 16, 16),
  (0, 33, 0, 5),
  (0, 0, 70, 0),
  (1, 1, 1, 1),
  (0, 0, 0, 0),
  (15, 1, 31, 23),
  (17, 31, 0, 22),
]
ROWS = 70
# Interpreted on two cores, with uninitialised memory as NaN.
CHECKED = pltpu.InterpretParams(
  detect_races=True,
  num_cores_or_threads=2,
  uninitialized_memory="nan",
  out_of_bounds_reads="uninitialized",
)


@pytest.fixture
def small_tiles(monkeypatch):
  monkeypatch.setattr(kernels, "ROWS", 16)
  monkeypatch.setattr(kernels, "COLUMNS", 128)
  jax.clear_caches()  # Kernels that were traced with larger tiles.
  yield
  jax.clear_caches()


def oracle(x, weights, sizes, d_out, parts):
  """Results and gradients in float64; for 2 parts, those of gate and up."""
  x, weights, d_out = (np.float64(y) for y in (x, weights, d_out))
  out, d_x = np.full(d_out.shape, np.nan), np.full(x.shape, np.nan)
  d_weights, end = np.zeros(weights.shape), 0
  for e, size in enumerate(sizes):
    at = slice(end, end := end + size)
    if parts == 1:
      out[at], d_x[at] = x[at] @ weights[e], d_out[at] @ weights[e].T
      d_weights[e] = x[at].T @ d_out[at]
      continue
    gate, up = (x[at] @ weights[e, :, c] for c in range(2))
    sigmoid = 1 / (1 + np.exp(-gate))
    out[at] = gate * sigmoid * up
    slope = sigmoid * (1 + gate * (1 - sigmoid))
    both = d_out[at] * up * slope, d_out[at] * gate * sigmoid
    d_x[at] = sum(d @ weights[e, :, c].T for c, d in enumerate(both))
    d_weights[e] = np.stack([x[at].T @ d for d in both], axis=1)
  return out, d_x, d_weights


def inputs(sizes, k, n, parts, dtype, rows=ROWS):
  """Random arrays; rows after the last group hold NaN."""
  rng = np.random.default_rng(0)
  shape = (len(sizes), k, 2, n) if parts == 2 else (len(sizes), k, n)
  x, d_out, weights = (
    rng.normal(size=s) for s in ((rows, k), (rows, n), shape)
  )
  x[sum(sizes) :] = d_out[sum(sizes) :] = np.nan
  return tuple(jnp.asarray(y, dtype) for y in (x, weights / k**0.5, d_out))


@functools.partial(jax.jit, static_argnums=0)
def run(fn, x, weights, sizes, d_out):
  """The result and the gradients of x and weights."""
  out, pull = jax.vjp(lambda x, w: fn(x, w, sizes), x, weights)
  return out, *pull(d_out)


def check(fn, x, weights, sizes, d_out, parts):
  found = run(fn, x, weights, jnp.asarray(sizes, jnp.int32), d_out)
  expected = oracle(x, weights, sizes, d_out, parts)
  bound = 1e-5 if x.dtype == jnp.float32 else 2e-2
  for got, want in zip(found, expected, strict=True):
    assert got.dtype == x.dtype
    used = ~np.isnan(want)
    difference = np.linalg.norm((np.float64(got) - want)[used])
    assert difference <= bound * np.linalg.norm(want[used])


OPS = {1: grouped.grouped_matmul, 2: grouped.grouped_gate_up}


@functools.cache
def form(impl, parts):
  return functools.partial(OPS[parts], impl=impl)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("parts", [1, 2])
def test_the_plain_form_is_the_sum_over_groups(sizes, parts, monkeypatch):
  monkeypatch.setattr(grouped, "BLOCK", 8)
  arrays = inputs(sizes, 24, 40, parts, jnp.float32)
  check(form("xla", parts), *arrays[:2], sizes, arrays[2], parts)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_kernels_agree_with_loops(parts, small_tiles):
  """In tiles that groups share, and columns that do not fill tiles."""
  for sizes in SIZES[1], *SIZES[5:]:
    arrays = inputs(sizes, 24, 130, parts, jnp.float32)
    check(form("interpret", parts), *arrays[:2], sizes, arrays[2], parts)


@pytest.mark.slow
@pytest.mark.parametrize(
  "dtype", [pytest.param(jnp.float32, marks=pytest.mark.soak), jnp.bfloat16]
)
@pytest.mark.parametrize("impl", ["xla", "interpret"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("k, n", [(128, 256), (200, 136), (1, 300)])
def test_any_sizes_agree_with_loops(k, n, parts, impl, dtype, small_tiles):
  for sizes in SIZES:
    arrays = inputs(sizes, k, n, parts, dtype)
    check(form(impl, parts), *arrays[:2], sizes, arrays[2], parts)


@pytest.mark.slow
@pytest.mark.parametrize("rows, groups", [(1, 1), (1, 3), (33, 1), (64, 9)])
@pytest.mark.parametrize("impl", ["xla", "interpret"])
def test_few_rows_and_any_number_of_groups_agree(
  rows, groups, impl, small_tiles
):
  sizes = tuple(
    np.random.default_rng(1).multinomial(rows, [1 / groups] * groups)
  )
  for parts in 1, 2:
    arrays = inputs(sizes, 24, 40, parts, jnp.float32, rows)
    check(form(impl, parts), *arrays[:2], sizes, arrays[2], parts)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_kernel_races_or_reads_what_nobody_wrote(parts, dtype, small_tiles):
  op = {1: kernels.grouped_matmul, 2: kernels.grouped_gate_up}[parts]
  fn = lambda *arrays: op(*arrays, CHECKED)
  arrays = inputs(SIZES[1], 24, 130, parts, dtype)
  check(fn, *arrays[:2], SIZES[1], arrays[2], parts)
  assert not interpret_pallas_call.races.races_found


def test_visits_list_every_tile_of_every_group_once():
  rng, tiles = np.random.default_rng(2), 25
  visits = jax.jit(kernels.visits, static_argnums=(1, 2, 3))
  for _ in range(50):
    sizes = rng.integers(0, 41, 5) * rng.integers(0, 2, 5)
    for empty in False, True:
      listed, number = jax.device_get(
        visits(jnp.asarray(sizes, jnp.int32), tiles, 8, empty)
      )
      assert number <= len(listed.group)
      found = [*zip(listed.group.tolist(), listed.tile.tolist())][: int(number)]
      end = sizes.cumsum()
      expected = [
        (e, tile)
        for e in range(5)
        for tile in range(tiles)
        if max(tile * 8, end[e] - sizes[e]) < min(tile * 8 + 8, end[e])
      ]
      assert [v for v in found if sizes[v[0]]] == expected
      alone = [e for e, _ in found if not sizes[e]]
      assert alone == [e for e in range(5) if empty and not sizes[e]]
      assert found == sorted(found, key=lambda v: v[0])


def test_arguments_that_do_not_match_are_refused():
  x, weights, _ = inputs((3, 4), 24, 40, 1, jnp.float32)
  sizes = jnp.asarray((3, 4), jnp.int32)
  with pytest.raises(ValueError, match="impl 'fast' is none of pallas"):
    grouped.grouped_matmul(x, weights, sizes, impl="fast")
  with pytest.raises(ValueError, match="bfloat16.70, 24. do not match"):
    kernels.grouped_matmul(x.astype(jnp.bfloat16), weights, sizes)
  with pytest.raises(ValueError, match="sizes int32.1. are not int32 of the 2"):
    kernels.grouped_matmul(x, weights, sizes[:1])


VMEM_USE = (
  r'"cost_estimate":.*"used_scoped_memory_configs":\[\{"memory_space":"1",'
  r'"offset":"0","size":"(\d+)"'
)
# DeepSeek-V3's experts, 16 of them on a chip, with 20,480 choices at once.
M, G, D, F = 20_480, 16, 7168, 2048


@pytest.mark.tpu
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize("parts, k, n", [(1, F, D), (2, D, F)])
def test_tpus_compile_the_kernels_for_v3(topology, parts, k, n):
  """With forward and both gradients at 2 M K N FLOPs each, in their VMEM."""
  pytest.importorskip("libtpu", reason="libtpu is not installed")
  device = chips.devices(chips.topology(topology))[0]
  on = jax.sharding.SingleDeviceSharding(device)
  shape = lambda *s, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(
    s, dtype, sharding=on
  )
  weights = shape(G, k, n) if parts == 1 else shape(G, k, 2, n)
  lowered = run.lower(
    form(None, parts),
    shape(M, k),
    weights,
    shape(G, dtype=jnp.int32),
    shape(M, n),
  )
  text = lowered.compile().as_text()
  costs = plan_costs.count(hlo.parse(text))
  work = 2 * M * k * n * parts
  assert costs.flops == pytest.approx(3 * work, rel=0.01)
  by_name = {
    name: line.flops for name, line in costs.lines.items() if line.flops
  }
  assert [*by_name.values()] == pytest.approx([work] * 3, rel=0.01)
  assert sum("grouped_weight_gradient" in name for name in by_name) == 1
  used = [int(n) for n in re.findall(VMEM_USE, text)]
  assert len(used) == 3 and 0 < max(used) <= kernels.VMEM
