"""Plans compiled for TPUs that are not there: `make test-tpu`."""

import pathlib

import pytest

from r1jax import config
from r1jax.models.presets import preset
from r1jax.tools.plan import chips as plan_chips
from r1jax.tools.plan import command, estimate

pytest.importorskip("libtpu", reason="libtpu is not installed: `make test-tpu`")
pytestmark = [pytest.mark.tpu, pytest.mark.optimized]

ROOT = pathlib.Path(__file__).parent.parent.parent


def planned(topology, only=(), **mesh):
  """The demo's own programs: tiny DeepSeek-V3, GRPO, a row for each shard."""
  c = config.load(str(ROOT / "experiments" / "demo.py"))
  c.unlock()
  c.mesh = mesh
  c.rows.shard_rows = 1
  c.sampling.num_slots = 32
  return command.plan(c, plan_chips.topology(topology), only=only)


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
  whole = 4 * sum(estimate.sizes_of(preset("tiny_deepseek")))
  for name, program in found["programs"].items():
    assert program["faults"] == [], name
    # Sums, too: the whole model would be 7/8 of it.
    assert program["largest_transfer"] < 3 / 4 * whole, name
    assert program["bytes"] > 0, name
    if name in ("reshard", "optimizer"):  # They multiply no matrices.
      continue
    assert program["flops"] > 0, name
    assert 0 < program["mfu"]["serial"] <= program["mfu"]["overlapped"] < 1
  gradient = found["programs"]["gradient 512"]
  assert any("data" in axes for axes in by_axes(gradient))
  assert any("fsdp" in axes for axes in by_axes(gradient))


def test_more_devices_hold_less_each():
  few, many = (
    planned("v5p:2x2x2", ("score",), data=-1, fsdp=n)["programs"]["score 512"][
      "parts"
    ]
    for n in (1, 8)
  )
  assert many["params"] < 0.2 * few["params"]


def test_a_chip_sends_as_much_however_many_split_the_batch():
  """Weak scaling along `data`, from 64 chips to 4,096."""
  sent = {}
  for topology, chips in ("v5p:4x4x4", 64), ("v5p:16x16x16", 4096):
    found = planned(topology, ("gradient",), data=-1, fsdp=4, expert=2)
    rows = found["programs"]["gradient 512"]["collectives"]
    sent[chips] = {
      (row["kind"], tuple(row["axes"])): row["bytes"] for row in rows
    }
  few, many = sent[64], sent[4096]
  assert few.keys() == many.keys()
  for which, count in few.items():
    assert many[which] <= 1.2 * count, which
    # Of n chips that add up, each gets 2 (n - 1) / n of what it has.
    if "data" in which[1]:
      assert many[which] > count


def test_a_topology_that_libtpu_refuses_is_said():
  with pytest.raises(ValueError, match="libtpu refuses the topology v5p:3x3x3"):
    plan_chips.devices(plan_chips.topology("v5p:3x3x3"))
