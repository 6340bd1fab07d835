"""What a plan says of a run, where arithmetic says it too."""

import functools
import importlib.util
import json
import math
import pathlib

import jax
import numpy as np
import pytest

from r1jax import config
from r1jax.models.presets import preset
from r1jax.parallel import sharding
from r1jax.parallel.mesh import make_mesh
from r1jax.tools.plan import bounds, command, estimate, programs
from r1jax.tools.plan import chips as plan_chips
from r1jax.tools.plan.costs import Collective, Costs
from r1jax.training import models

ROOT = pathlib.Path(__file__).parent.parent.parent
LINK, GIB = 100e9, 2**30


def experiment(name, **overrides):
  changes = {key.replace("__", "."): value for key, value in overrides.items()}
  return config.load(str(ROOT / "experiments" / name), changes)


def places(topology):
  """Of chips in the order of their coordinates."""
  return [
    (slice, *where)
    for slice in range(topology.num_slices)
    for where in np.ndindex(*topology.shape)
  ]


def seconds(name, kind, group, size=1e9):
  topology = plan_chips.topology(name)
  groups = None if group is None else np.array([group])
  one = Collective(kind, groups, size, 1.0, "")
  return bounds.seconds(one, topology, np.array(places(topology)))


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


def test_without_libtpu_it_is_said_where_to_get_it(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="make plan CONFIG"):
    plan_chips.devices(plan_chips.topology("v5p:2x2x1"))


def test_a_ring_that_its_devices_fill_has_two_links():
  # The last dimension of 16 is a ring; a quarter of it is a line.
  assert seconds("v5p:4x4x16", "all-gather", range(16)) == pytest.approx(
    15e9 / (2 * LINK)
  )
  assert seconds("v5p:4x4x16", "all-gather", range(4)) == pytest.approx(
    3e9 / LINK
  )
  # Every fourth chip: four such rings share the links.
  strided = range(0, 16, 4)
  assert seconds("v5p:4x4x16", "all-gather", strided) == pytest.approx(
    3e9 / (2 * LINK / 4)
  )


def test_two_dimensions_have_the_links_of_both():
  assert seconds("v5p:4x4x16", "all-reduce", range(64)) == pytest.approx(
    2e9 * 63 / 64 / (4 * LINK)
  )


def test_between_slices_goes_the_slower_network():
  # Two chips, one in each slice of 256.
  assert seconds("v6e:16x16*2", "all-reduce", [0, 256]) == pytest.approx(
    1e9 / 12.5e9
  )
  # All chips: each sends its part of what its slice has summed.
  whole = seconds("v6e:16x16*2", "all-reduce", None)
  inside = 2e9 * 255 / 256 / (4 * LINK)
  assert whole == pytest.approx(inside + 1e9 / 256 / 12.5e9)


def test_a_host_of_gpus_has_a_switch():
  assert seconds("h200:8x2", "all-gather", range(8)) == pytest.approx(
    7e9 / 450e9
  )


def test_a_device_alone_sends_nothing():
  assert seconds("v5p:2x2x1", "all-reduce", [0]) == 0


def test_bounds_are_the_nominal_speeds():
  topology = plan_chips.topology("v5p:2x2x1")
  costs = Costs(flops=459e12, bytes=2 * 2765e9)
  least = bounds.bounds(costs, topology, places(topology))
  assert least == (pytest.approx(1), pytest.approx(2), 0)
  assert (least.overlapped, least.serial) == (pytest.approx(2),) * 2


def test_arguments_on_gpus_are_what_the_shardings_leave():
  c = experiment("r1_zero.py")
  found = command.plan(c, plan_chips.topology("h200:8x64"))
  sizes, parts = preset("deepseek_v3"), found["programs"]["update"]["parts"]
  weights = sum(estimate.sizes_of(sizes))
  assert weights == pytest.approx(682e9, rel=0.01)  # 671 and the MTP block.
  assert parts["params"] == pytest.approx(4 * weights / 512, rel=0.01)
  assert parts["optimizer"] == pytest.approx(
    2 * 4 * weights / 512, rel=0.03
  )  # Without the MTP block's.
  assert parts["reference"] == pytest.approx(2 * weights / 512, rel=0.01)
  json.dumps(found)


def test_the_memory_of_a_host_is_what_passes_through_it():
  """Eight GPUs have a 64th of a state of twelve bytes a weight, and two of the
  reference."""
  topology = plan_chips.topology("h200:8x64")
  config = experiment("r1_zero.py")
  (found, kept) = (
    command.plan(c, topology, only=("update",))["host_memory"]
    for c in (config, experiment("r1_zero.py", offload=("reference",)))
  )
  weights, mtp = sum(estimate.sizes_of(preset("deepseek_v3"))), 11.5e9
  share = (14 * weights - 8 * mtp) / 64  # MTP blocks have no moments.
  assert found["devices"] == 8
  assert found["start"] == 2**26 + 8 * 2**21 * 8
  assert found["save"] == pytest.approx(share, rel=0.01)
  assert found["resume"] == 96e9 < share
  stays = 2 * weights / 64
  assert kept["start"] - found["start"] == pytest.approx(stays, rel=0.01)
  assert kept["save"] == pytest.approx(share + stays, rel=0.01)


def test_what_waits_in_the_hosts_memory_takes_none_of_the_devices():
  few = experiment("r1_zero.py", offload=("optimizer", "reference"))
  topology = plan_chips.topology("h200:8x64")
  before = command.plan(experiment("r1_zero.py"), topology, only=("update",))
  after = command.plan(few, topology, only=("update",))
  parts, kept = (x["programs"]["update"]["parts"] for x in (before, after))
  assert kept["params"] == parts["params"]
  assert kept["reference"] == 0 and kept["optimizer"] < 100  # Its counters.
  moved = parts["optimizer"] + parts["reference"] - kept["optimizer"]
  found, full = (x["programs"]["update"] for x in (after, before))
  assert (found["host"], full["host"]) == (moved, 0)
  assert full["total"] - found["total"] == moved


def test_a_cache_holds_a_latent_of_every_token_of_every_slot():
  c = experiment("r1_zero.py", rollout_mesh__context=2, rollout_mesh__expert=64)
  found = command.plan(c, plan_chips.topology("h200:8x64"), only=("decode",))
  parts = found["programs"]["decode"]["parts"]
  tokens = 2048 * (1920 + 32768)
  latents = tokens * 61 * (512 + 64) * 2  # Bytes in bfloat16.
  lengths = 2048 / 256 * 4
  assert parts["cache"] == latents / 512 + lengths
  # Experts are split, and all else is whole: no token waits for weights.
  experts = 58 * 256 * 3 * 7168 * 2048
  weights = 2 * (experts / 64 + 671e9 - experts)
  assert parts["rollout weights"] == pytest.approx(weights, rel=0.01)
  # The policy in training stays where it is meanwhile.
  assert parts["optimizer"] == pytest.approx(671e9 * 8 / 512, rel=0.03)


def test_slots_that_share_prompts_hold_them_once():
  c = experiment("r1_zero.py", rollout_mesh__context=2, rollout_mesh__expert=64)
  with c.unlocked():
    c.sampling.max_tokens = 1024  # Shorter than prompts.
  found = command.plan(c, plan_chips.topology("h200:8x64"), only=("decode",))
  tokens = 2048 / 8 * 1920 + 2048 * 1024
  latents = tokens * 61 * (512 + 64) * 2
  lengths = (2048 + 2048 / 8) / 256 * 4
  cache = found["programs"]["decode"]["parts"]["cache"]
  assert cache == latents / 512 + lengths


def test_no_large_weight_is_copied_to_every_device():
  c = experiment("r1_zero.py")
  sizes = programs.sizes_of(c)
  mesh = command.planned_mesh(c, plan_chips.topology("h200:8x64"))
  placed = programs.sharded_shapes(mesh, sizes, programs.parameters(sizes))
  import jax

  for path, leaf in jax.tree.leaves_with_path(placed):
    whole, own = math.prod(leaf.shape), leaf.sharding.shard_shape(leaf.shape)
    if whole > 1e7:
      assert math.prod(own) == whole / 512, jax.tree_util.keystr(path)


def test_more_chips_of_a_mesh_axis_take_less_memory_each():
  sizes, rows = (
    preset("deepseek_v3"),
    dict(width=4096, max_rows=512, microbatch_rows=512),
  )
  mesh = dict(data=1, fsdp=32, expert=16, context=1, tensor=1)
  few = estimate.temporaries(sizes, rows, mesh)
  many = estimate.temporaries(sizes, rows, mesh | dict(context=4))
  assert many["gradients"] == few["gradients"] / 4
  assert many["activations"] == pytest.approx(few["activations"] / 4)


def test_a_sweep_ranks_meshes_that_fit_the_devices():
  c = experiment("r1_zero.py:qwen_math_7b")
  topology = plan_chips.topology("h200:8x2")
  found = command.sweep(c, topology)
  assert found["fits"] and len(found["plans"]) == 3
  times = [one["seconds"] for one in found["ranked"]]
  assert times == sorted(times)
  for one in found["ranked"]:
    assert math.prod(one["mesh"].values()) == 16


@pytest.mark.parametrize(
  "name, overrides, topology, match",
  [
    ("r1_zero.py", {}, "h200:8x3", "does not divide the 24 devices"),
    ("r1_zero.py", dict(mesh__data=4), "h200:8x64", "takes 2048 devices"),
    ("demo.py", {}, "h200:8x1", "microbatch_rows 4 do not divide over 8"),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(name, overrides, topology, match):
  with pytest.raises(ValueError, match=match):
    command.plan(experiment(name, **overrides), plan_chips.topology(topology))


def test_a_loop_without_a_plan_is_refused():
  c = experiment("demo.py")
  c.unlock()
  c.loop = "evaluate"
  with pytest.raises(ValueError, match="unknown loop to plan 'evaluate'"):
    command.plan(c, plan_chips.topology("h200:8x1"))


def test_a_model_is_known_without_its_weights():
  known = models.architecture(
    name="pretrained",
    path="",
    preset_name="deepseek_v3",
    how=dict(moe_chunk=2048),
  )
  assert known.width == 7168 and known.moe_chunk == 2048
  with pytest.raises(ValueError, match="'width' is not how a model runs"):
    models.architecture(
      name="pretrained",
      path="",
      preset_name="deepseek_v3",
      how=dict(width=1),
    )


def test_faults_of_a_compiled_program_are_named():
  """Programs that gather the model, copy an array, or wait for the host."""
  mesh = make_mesh(data=1, fsdp=4)
  sizes = preset("tiny_qwen2")
  whole = 4 * sum(estimate.sizes_of(sizes))
  program = programs.Program(
    *("update", None, (), {}, {}, 0, {}, 0, sizes, None, mesh)
  )
  large = jax.ShapeDtypeStruct((whole // 8,), "float32")  # Half of the model.
  split = sharding.by_rows(mesh)
  check = functools.partial(command.faults, program)
  assert check(whole / 4, [], [large], [split]) == []
  (gathered,) = check(3 / 4 * whole, [], [], [])
  assert gathered.startswith("it gathers")
  (copied,) = check(0, [], [large, large], [split, sharding.replicated(mesh)])
  assert copied == f"every device makes float32[{whole // 8}] whole"
  assert check(0, ["send.1"], [], []) == ["it waits for the host: send.1"]


def test_the_command_prints_one_object(python):
  done = python(
    "-m",
    "r1jax",
    "plan",
    "--config=experiments/demo.py",
    "--topology=h200:4x1",
    "--json",
  )
  found = json.loads(done.stdout.splitlines()[-1])
  assert done.returncode == 0 and found["fits"]
  assert "gradients, estimated" in done.stdout
  refused = python("-m", "r1jax", "plan", "--config=experiments/demo.py")
  assert refused.returncode == 2
  assert refused.stderr.startswith("error: --topology is not set; use CHIP")
