"""The reader of compiled HLO, on programs whose costs are known by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import compiled
from jax.sharding import PartitionSpec as P

from r1jax.parallel.mesh import make_mesh
from r1jax.tools.plan import costs as plan_costs
from r1jax.tools.plan import hlo
from r1jax.tools.plan.costs import Declared

pytestmark = pytest.mark.optimized
SIZES = {"data": 2, "fsdp": 4}
EIGHT = dict(data=2, fsdp=2, expert=2)


def line(attributes):
  return hlo.Instruction("x", "all-gather", (), (), "", attributes, False)


@pytest.mark.parametrize(
  "text, wanted",
  [
    ("replica_groups={{0,1},{2,3}}, dimensions={0}", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[4], dimensions={0}", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0), x={0}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
    (
      "replica_groups=mesh['a'=4,'b'=1], device_ids=([2,2]T(1,0)) {'a'}, x",
      [[0, 2, 1, 3]],
    ),
    ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(2)2}, x", [[0, 1], [2, 3]]),
    ("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}, x", [[0, 1], [2, 3]]),
  ],
)
def test_groups_of_devices_are_read_in_every_form(text, wanted):
  assert hlo.groups(line(", " + text)).tolist() == wanted


@pytest.mark.parametrize(
  "group, axes",
  [
    ([[0, 1, 2, 3], [4, 5, 6, 7]], ("fsdp",)),
    ([[0, 4], [1, 5], [2, 6], [3, 7]], ("data",)),
    ([[0, 1, 2, 3, 4, 5, 6, 7]], ("data", "fsdp")),
    ([[0, 1], [2, 3], [4, 5], [6, 7]], ("fsdp",)),
  ],
)
def test_a_group_knows_its_axes(group, axes):
  assert hlo.axes_of(np.array(group), SIZES) == axes


def test_a_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match="not an HLO module"):
    hlo.parse("nonsense")


def test_every_collective_is_counted_with_its_axis_and_its_bytes():
  mesh = make_mesh(**EIGHT)
  axes = ("data", "fsdp", "expert")

  def exchange(x):  # A device's own [16, 8], 512 bytes.
    y = jax.lax.all_gather(x, "fsdp", tiled=True)  # Gets 512.
    y = jax.lax.psum_scatter(jnp.sin(y), "fsdp", tiled=True)  # Gets 512.
    y = jax.lax.all_to_all(jnp.sin(y), "expert", 0, 0, tiled=True)  # Gets 256.
    y = jax.lax.ppermute(jnp.sin(y), "data", [(0, 1), (1, 0)])  # Gets 512.
    return jax.lax.psum(jnp.sin(y), axes)  # Gets 2 * 7/8 * 512.

  def fn(x):
    return jax.shard_map(exchange, mesh=mesh, in_specs=P(axes), out_specs=P())(
      x
    )

  module = compiled(fn, (128, 8), mesh=mesh, specs=[P(axes)])
  found = plan_costs.table(plan_costs.count(module), mesh.shape)
  assert {key: row["bytes"] for key, row in found.items()} == {
    ("all-gather", ("fsdp",)): 512,
    ("reduce-scatter", ("fsdp",)): 512,
    ("all-to-all", ("expert",)): 256,
    ("collective-permute", ("data",)): 512,
    ("all-reduce", axes): 2 * 7 / 8 * 512,
  }


def test_a_loop_counts_as_often_as_it_runs():
  mesh = make_mesh(data=1, fsdp=8)

  def fn(weights, x):
    def layer(x, w):
      return jnp.tanh(x @ w), None

    return jax.lax.scan(layer, x, weights)[0]

  layers, width, rows = 5, 64, 32
  module = compiled(
    fn,
    (layers, width, width),
    (8 * rows, width),
    mesh=mesh,
    specs=[P(None, "fsdp"), P("fsdp")],
  )
  costs = plan_costs.count(module)
  assert costs.flops == layers * 2 * rows * width * width
  gathered = plan_costs.table(costs, mesh.shape)["all-gather", ("fsdp",)]
  assert gathered == {
    "bytes": layers * 7 / 8 * width * width * 4,
    "times": layers,
  }


@jax.named_scope("outer")
def counted_by_data(x, n):
  """n times three products, and within each n more; n is data."""

  def inner(_, x):
    return jnp.tanh(x @ x)

  def outer(_, x):
    return jax.lax.fori_loop(0, n, inner, jnp.sin(x))

  return jax.lax.fori_loop(0, n, outer, x)


def test_a_loop_over_data_runs_as_often_as_its_scope_says():
  mesh = make_mesh(data=1)

  def fn(x, n):
    return counted_by_data(x, n.astype(jnp.int32))

  module = compiled(fn, (16, 16), (), mesh=mesh, specs=[P(), P()])
  once = 2 * 16**3
  costs = plan_costs.count(module, Declared(trips={"outer": (3, 7)}))
  assert costs.flops == 3 * 7 * once
  with pytest.raises(
    ValueError, match=r"while .*outer.* at .*py:\d+ .* no declared trip count"
  ):
    plan_costs.count(module)


def test_memory_is_read_and_written_once_a_matmul():
  mesh = make_mesh(data=1)
  module = compiled(
    jnp.dot, (256, 512), (512, 128), mesh=mesh, specs=[P(), P()]
  )
  costs = plan_costs.count(module)
  least = 4 * (256 * 512 + 512 * 128 + 256 * 128)
  assert least <= costs.bytes <= 2 * least


def test_a_fusion_reads_the_slices_that_fusions_within_it_take():
  # As TPUs write a matmul of a part of an array.
  module = hlo.parse(
    "HloModule m\n\n"
    "%slice (x: f32[64,512], i: s32[]) -> f32[4,512] {\n"
    "  %x = f32[64,512]{1,0} parameter(0)\n"
    "  %i = s32[] parameter(1)\n"
    "  ROOT %s = f32[4,512]{1,0} dynamic-slice(%x, %i, %i), "
    "dynamic_slice_sizes={4,512}\n"
    "}\n\n"
    "%inner (y: f32[64,512], j: s32[]) -> f32[4,512] {\n"
    "  %y = f32[64,512]{1,0} parameter(0)\n"
    "  %j = s32[] parameter(1)\n"
    "  %p = f32[4,512]{1,0} fusion(%y, %j), kind=kLoop, calls=%slice\n"
    "  ROOT %e = f32[4,512]{1,0} exponential(%p)\n"
    "}\n\n"
    "ENTRY %main (a: f32[64,512], b: s32[]) -> f32[4,512] {\n"
    "  %a = f32[64,512]{1,0} parameter(0)\n"
    "  %b = s32[] parameter(1)\n"
    "  ROOT %f = f32[4,512]{1,0} fusion(%a, %b), kind=kLoop, calls=%inner\n"
    "}\n"
  )
  part, index = 4 * 512 * 4, 4
  assert plan_costs.count(module).bytes == 2 * part + index


def test_a_fusion_that_adds_to_a_slice_in_place_moves_no_more_than_it():
  # As TPUs write a sum of gradients by group.
  module = hlo.parse(
    "HloModule m\n\n"
    "%add (x: f32[16,512], y: f32[1,512], i: s32[]) -> f32[16,512] {\n"
    "  %x = f32[16,512]{1,0} parameter(0)\n"
    "  %y = f32[1,512]{1,0} parameter(1)\n"
    "  %i = s32[] parameter(2)\n"
    "  %s = f32[1,512]{1,0} dynamic-slice(%x, %i, %i), "
    "dynamic_slice_sizes={1,512}\n"
    "  %a = f32[1,512]{1,0} add(%s, %y)\n"
    "  ROOT %u = f32[16,512]{1,0} dynamic-update-slice(%x, %a, %i, %i)\n"
    "}\n\n"
    "ENTRY %main (a: f32[16,512], b: f32[1,512], c: s32[]) -> f32[16,512] {\n"
    "  %a = f32[16,512]{1,0} parameter(0)\n"
    "  %b = f32[1,512]{1,0} parameter(1)\n"
    "  %c = s32[] parameter(2)\n"
    "  ROOT %f = f32[16,512]{1,0} fusion(%a, %b, %c), kind=kLoop, calls=%add\n"
    "}\n"
  )
  assert plan_costs.count(module).bytes == 3 * 512 * 4 + 4


def test_a_way_to_the_host_is_found():
  mesh = make_mesh(data=1)
  shape = jax.ShapeDtypeStruct((4,), jnp.float32)
  ask = functools.partial(jax.pure_callback, np.sin, shape)
  module = compiled(ask, (4,), mesh=mesh, specs=[P()])
  assert plan_costs.count(module).transfers
  module = compiled(jnp.sin, (4,), mesh=mesh, specs=[P()])
  assert not plan_costs.count(module).transfers


@pytest.mark.parametrize(
  "text, wanted",
  [  # As TPUs write a matmul, and a batch of four of them.
    (
      "%c = f32[128,256]{1,0} convolution(%a, %b), dim_labels=bf_io->bf",
      2 * 128 * 512 * 256,
    ),
    (
      "%c = f32[4,128,256]{2,1,0} convolution(%a, %b), window={size=4 stride=3 "
      "lhs_dilate=4}, dim_labels=0bf_0io->0bf",
      4 * 2 * 128 * 512 * 256,
    ),
  ],
)
def test_a_tpus_matmul_is_counted(text, wanted):
  batch = "4," if "4,128" in text else ""
  module = hlo.parse(
    "HloModule m\n\n"
    "ENTRY %main (a: f32[], b: f32[]) -> f32[] {\n"
    f"  %a = f32[{batch}128,512]{{1,0:T(8,128)}} parameter(0)\n"
    f"  %b = f32[{batch}512,256]{{1,0:T(8,128)}} parameter(1)\n"
    f"  ROOT {text}\n"
    "}\n"
  )
  assert plan_costs.count(module).flops == wanted


def test_a_fused_all_reduce_that_keeps_a_part_is_a_reduce_scatter():
  # As TPUs write it.
  module = hlo.parse(
    "HloModule m\n\n"
    "%inner (x: f32[512,512]) -> f32[128,512] {\n"
    "  %x = f32[512,512]{1,0} parameter(0)\n"
    "  %r = f32[512,512]{1,0} all-reduce(%x), replica_groups={{0,1,2,3}}, "
    "to_apply=%add\n"
    "  %i = s32[] constant(0)\n"
    "  ROOT %d = f32[128,512]{1,0} dynamic-slice(%r, %i, %i), "
    "dynamic_slice_sizes={128,512}\n"
    "}\n\n"
    "ENTRY %main (a: f32[512,512]) -> f32[128,512] {\n"
    "  %a = f32[512,512]{1,0} parameter(0)\n"
    "  ROOT %f = f32[128,512]{1,0} fusion(%a), kind=kCustom, calls=%inner\n"
    "}\n"
  )
  found = plan_costs.table(plan_costs.count(module), {"fsdp": 4})
  assert found == {
    ("reduce-scatter", ("fsdp",)): {
      "bytes": 3 / 4 * 512 * 512 * 4,
      "times": 1,
    }
  }


def test_what_goes_between_slices_goes_by_way_of_the_hosts():
  # As TPUs write it: a send and a receive that the network's runtime handles.
  sent = 'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}'
  module = hlo.parse(
    "HloModule m\n\n"
    "ENTRY %main (a: f32[256]) -> f32[256] {\n"
    "  %a = f32[256]{0} parameter(0)\n"
    "  %t = token[] after-all()\n"
    f"  %s = (f32[256]{{0}}, u32[], token[]) send(%a, %t), {sent}\n"
    f"  %r = (f32[256]{{0}}, u32[], token[]) recv(%t), {sent}\n"
    f"  %d = (f32[256]{{0}}, token[]) recv-done(%r), {sent}\n"
    "  ROOT %g = f32[256]{0} get-tuple-element(%d), index=0\n"
    "}\n"
  )
  between = np.arange(8).reshape(2, 4).T
  costs = plan_costs.count(module, between=between)
  assert not costs.transfers
  assert plan_costs.table(costs, SIZES) == {
    ("all-reduce", ("data",)): {"bytes": 2 * 1 / 2 * 1024, "times": 1}
  }
