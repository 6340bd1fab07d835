"""Slices of TPUs: which exist, their names elsewhere, and their links."""

import pathlib
import re

import numpy as np
import pytest

from r1jax import config
from r1jax.tools.plan import bounds, command, slices
from r1jax.tools.plan import chips as plan_chips
from r1jax.tools.plan import text as plan_text
from r1jax.tools.plan.costs import Collective

ROOT = pathlib.Path(__file__).parent.parent.parent
EXISTING = (
  *("v5e:1x1", "v5e:2x4", "v6e:8x8*2", "v6e:16x16"),
  *("v4:2x2x1", "v5p:2x4x4", "v5p:4x4x4", "v5p:4x4x12", "v5p:8x8x8"),
  *("v5p:16x16x24", "tpu7x:16x24x24", "h200:8x16", "h200:3x5"),
)


@pytest.mark.parametrize(
  "name, chips, slices",
  [
    ("v5p:8x16x16", 2048, 1),
    ("v6e:16x16*4", 1024, 4),
    ("V5E:8x8", 64, 1),
    ("h200:8x64", 512, 64),
    ("b200:8", 8, 1),
  ],
)
def test_a_topology_has_so_many_chips(name, chips, slices):
  topology = plan_chips.topology(name)
  assert (topology.num_chips, topology.num_slices) == (chips, slices)
  assert plan_chips.topology(topology.name) == topology


@pytest.mark.parametrize(
  "name, match",
  [
    ("v5p", "unknown topology"),
    ("v9:2x2", "no chip 'v9' among v4, v5e, v5p"),
    ("v5p:8x8", "2 dimensions, and a slice of v5p has 3"),
    ("v6e:0x4", "has no chips"),
    ("h200:8x8x8", "unknown topology"),
    ("h200:8x8*2", "unknown topology"),
  ],
)
def test_a_topology_that_does_not_exist_is_refused(name, match):
  with pytest.raises(ValueError, match=match):
    plan_chips.topology(name)


@pytest.mark.parametrize("name", EXISTING)
def test_a_slice_that_exists_is_planned_without_a_warning(name):
  assert slices.warnings(plan_chips.topology(name)) == []


@pytest.mark.parametrize(
  "name, match",
  [
    ("v6e:16x32", "no slice 16x32 of v6e: it has 1x1, 2x2, .*16x16$"),
    ("v6e:8x4", "no slice 8x4 of v6e"),
    ("v5e:3x4*2", "no slice 3x4 of v5e"),
    (
      "v5p:2x4x8",
      "no slice 2x4x8 of v5p: it has .*2x4x4, and .*multiples of 4",
    ),
    ("v5p:4x4x6", "multiples of 4"),
    ("v5p:3x3x3", "multiples of 4"),
    ("v5p:16x16x28", "its largest is 16x16x24"),
    ("v5p:16x20x20", "its largest is 16x16x24"),
    ("v5p:16x8x8", "its sides ascend, as in 8x8x16"),
  ],
)
def test_a_slice_that_does_not_exist_is_warned_of(name, match):
  (warning,) = slices.warnings(plan_chips.topology(name))
  assert re.search(match, warning)


@pytest.mark.parametrize(
  "name, accelerator, of_gke",
  [
    ("v5p:8x8x8", "v5p-1024", ("tpu-v5p-slice", "8x8x8", 1, 128, 4)),
    ("v4:2x2x4", "v4-32", ("tpu-v4-podslice", "2x2x4", 1, 4, 4)),
    ("v5e:8x8", "v5litepod-64", ("tpu-v5-lite-podslice", "8x8", 1, 16, 4)),
    ("v6e:8x8*2", "v6e-64", ("tpu-v6e-slice", "8x8", 2, 16, 4)),
    ("v6e:1x1", "v6e-1", ("tpu-v6e-slice", "1x1", 1, 1, 1)),
    ("tpu7x:4x4x4", None, ("tpu7x", "4x4x4", 1, 16, 4)),
  ],
)
def test_a_topology_has_the_names_of_google_cloud(name, accelerator, of_gke):
  names = slices.names(plan_chips.topology(name))
  keys = "gke_accelerator", "gke_topology", "slices", "hosts", "chips_per_host"
  assert tuple(names[key] for key in keys) == of_gke
  assert names.get("accelerator_type") == accelerator
  assert names.get("topology", of_gke[1]) == of_gke[1]


def test_a_plan_prints_names_and_warnings_of_its_slices():
  report = dict(
    topology="v5p:16x8x8",
    chips=1024,
    memory_per_device=1.0,
    mesh={},
    link_rate=90e9,
    names=slices.names(plan_chips.topology("v5p:16x8x8")),
    warnings=["its sides ascend"],
    host_memory=dict(devices=4, start=2.0**30),
    programs={},
    fits=True,
  )
  shown = plan_text.text(report)
  assert "links of 90 GB/s" in shown
  assert "--type=v5p --topology=16x8x8" in shown
  assert "\nWARNING: its sides ascend\n" in shown


def test_gpus_have_no_slices():
  demo = config.load(str(ROOT / "experiments" / "demo.py"))
  found = command.plan(demo, plan_chips.topology("h200:4x1"))
  assert (found["names"], found["warnings"]) == ({}, [])


def test_measured_links_take_a_ninth_longer():
  nominal = plan_chips.topology("v6e:16x16*2")
  measured = plan_chips.with_measured_links(nominal)
  where = np.array([(s, x, y) for s in (0, 1) for x, y in np.ndindex(16, 16)])

  def seconds(group, topology):
    one = Collective("all-gather", np.array([group]), 1e9, 1.0, "")
    return bounds.seconds(one, topology, where)

  inside, across = range(256), [0, 256]
  ratio = seconds(inside, measured) / seconds(inside, nominal)
  assert ratio == pytest.approx(10 / 9)
  assert seconds(across, measured) == seconds(across, nominal)
  with pytest.raises(ValueError, match="is for TPUs, not for h200:8x2"):
    plan_chips.with_measured_links(plan_chips.topology("h200:8x2"))
