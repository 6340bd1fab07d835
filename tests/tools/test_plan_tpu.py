"""Plans compiled for TPUs that are not there: `make test-tpu`."""

import pathlib

import pytest

from r1jax import config
from r1jax.tools import plan, plan_chips

pytest.importorskip("libtpu", reason="libtpu is not installed: `make test-tpu`")
pytestmark = pytest.mark.tpu

ROOT = pathlib.Path(__file__).parent.parent.parent


def planned(topology, only=(), **mesh):
  """The demo's own programs: tiny DeepSeek-V3, GRPO."""
  c = config.load(str(ROOT / "experiments" / "demo.py"))
  c.unlock()
  c.mesh = mesh
  c.rows.microbatch_rows, c.rows.max_rows = 8, 16
  c.sampling.num_slots = 32
  return plan.plan(c, plan_chips.topology(topology), only=only)


def by_axes(program):
  return {tuple(row["axes"]) for row in program["collectives"] if row["bytes"]}


@pytest.mark.parametrize(
  "topology, mesh",
  [
    ("v5p:2x2x2", dict(data=-1, fsdp=2, expert=2)),
    ("v6e:2x2*2", dict(data=2, fsdp=4)),
  ],
)
def test_a_tiny_run_fits(topology, mesh):
  found = planned(topology, **mesh)
  assert found["fits"] and found["chips"] == 8
  for name, program in found["programs"].items():
    assert not program["host_transfers"], name
    assert not program["loops_counted_once"], name
    assert program["flops"] > 0 and program["bytes"] > 0, name
    assert 0 < program["mfu"]["serial"] <= program["mfu"]["overlapped"] < 1
  update = found["programs"]["update"]
  assert ("data",) in by_axes(update)
  assert any("fsdp" in axes for axes in by_axes(update))


def test_more_devices_hold_less_each():
  few, many = (
    planned("v5p:2x2x2", ("score",), data=-1, fsdp=n)["programs"]["score"][
      "parts"
    ]
    for n in (1, 8)
  )
  assert many["params"] < 0.2 * few["params"]


def test_a_topology_that_libtpu_refuses_is_said():
  with pytest.raises(ValueError, match="libtpu refuses the topology v5p:3x3x3"):
    plan_chips.devices(plan_chips.topology("v5p:3x3x3"))
