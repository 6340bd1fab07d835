"""What a plan counts of kernels, branches and loops over data, and lists."""

import jax
import jax.numpy as jnp
import pytest
from compiled import compiled
from jax.sharding import PartitionSpec as P

from r1jax.ops import grouped
from r1jax.parallel.mesh import make_mesh
from r1jax.tools.plan import costs as plan_costs
from r1jax.tools.plan import hlo
from r1jax.tools.plan.costs import Declared


def test_a_branch_counts_with_its_probability():
  mesh = make_mesh(data=1)

  @jax.named_scope("chosen")
  def choose(x, n):
    return jax.lax.cond(n > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

  module = compiled(choose, (16, 16), (), mesh=mesh, specs=[P(), P()])
  once = 2 * 16**3
  costs = plan_costs.count(module, Declared(branches={"chosen": (0.9, 0.1)}))
  assert costs.flops == pytest.approx((0.9 * 1 + 0.1 * 2) * once)
  with pytest.raises(ValueError, match="no declared probability"):
    plan_costs.count(module, Declared(trips={"chosen": (1,)}))


def test_the_gradient_of_grouped_weights_costs_what_it_needs():
  """By its loop, 2 M K N for M rows that fill the blocks."""
  mesh, (m, k, n, groups) = make_mesh(data=1), (4096, 32, 48, 4)

  def fn(x, gradient, sizes):
    return grouped.weight_gradient(x, gradient, sizes.astype(jnp.int32))

  module = compiled(
    fn, (m, k), (m, n), (groups,), mesh=mesh, specs=[P(), P(), P()]
  )
  block = grouped.block_rows(m, groups)
  assert block == 512
  costs = plan_costs.count(module, Declared(trips={"grouped": (m / block,)}))
  assert costs.flops == pytest.approx(2 * m * k * n, rel=0.01)
  # The sums are added to in place: each trip reads and writes one group's.
  assert costs.bytes < 4 * (6 * m * (k + n) + 4 * (m / block + groups) * k * n)


KERNEL = (
  "HloModule m\n\n"
  "FileNames\n"
  '1 "/here/experts.py"\n\n'
  "FileLocations\n"
  "1 {file_name_id=1 function_name_id=1 line=83 end_line=83 column=1}\n\n"
  "StackFrames\n"
  "7 {file_location_id=1 parent_frame_id=7}\n\n"
  "ENTRY %main (a: bf16[64,32], w: bf16[4,32,16]) -> bf16[64,16] {\n"
  "  %a = bf16[64,32]{1,0} parameter(0)\n"
  "  %w = bf16[4,32,16]{2,1,0} parameter(1)\n"
  "  ROOT %k = bf16[64,16]{1,0} custom-call(%a, %w), "
  'custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/grouped/'
  'pallas_call" stack_frame_id=7}, backend_config={"custom_call_config":'
  '{"body":"TUw=",ESTIMATE"needs_layout_passes":true}}\n'
  "}\n"
)
ESTIMATE = (
  '"cost_estimate":{"flops":"65536","transcendentals":"0",'
  '"bytes_accessed":"20480"},'
)


def test_a_kernel_counts_as_it_estimates():
  """With the share of its rows that are in use, and all weights."""
  module = hlo.parse(KERNEL.replace("ESTIMATE", ESTIMATE))
  costs = plan_costs.count(module)
  assert (costs.flops, costs.bytes) == (65536, 20480)
  costs = plan_costs.count(module, Declared(work={"grouped": 0.25}))
  weights = 2 * 4 * 32 * 16
  assert costs.flops == 65536 / 4
  assert costs.bytes == weights + (20480 - weights) / 4
  with pytest.raises(
    ValueError, match="jit.f./grouped/pallas_call has no cost"
  ):
    plan_costs.count(hlo.parse(KERNEL.replace("ESTIMATE", "")))


def test_the_largest_instructions_are_listed_with_their_lines():
  costs = plan_costs.count(hlo.parse(KERNEL.replace("ESTIMATE", ESTIMATE)))
  found = plan_costs.largest(costs, 20)
  (row,) = found["flops"]
  assert found["bytes"] == [row]
  assert row == {
    "name": "k",
    "shapes": "bf16[64,16]",
    "times": 1,
    "bytes": 20480,
    "flops": 65536,
    "source": "/here/experts.py:83",
    "path": "jit(f)/grouped/pallas_call",
  }


def test_the_largest_instructions_come_first_and_add_up():
  mesh = make_mesh(data=1)

  def fn(weights, x):
    x = jnp.tanh(x @ weights[0, :, :16])
    return jax.lax.scan(lambda x, w: (x @ w[:16], None), x, weights)[0]

  module = compiled(fn, (5, 32, 16), (8, 32), mesh=mesh, specs=[P(), P()])
  costs = plan_costs.count(module)
  first, second = plan_costs.largest(costs, 2)["flops"]
  assert (first["flops"], first["times"]) == (5 * 2 * 8 * 16 * 16, 5)
  assert (second["flops"], second["times"]) == (2 * 8 * 32 * 16, 1)
  for one in first, second:
    assert one["source"].startswith(__file__)
  every = plan_costs.largest(costs, 1000)
  for kind in "bytes", "flops":
    total = sum(one[kind] for one in every[kind])
    assert total == pytest.approx(getattr(costs, kind))
