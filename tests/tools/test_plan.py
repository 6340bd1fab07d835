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
from r1jax.tools.plan import (
  bounds,
  command,
  estimate,
  fill,
  price,
  programs,
  whole_run,
)
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


@pytest.mark.slow
def test_arguments_on_gpus_are_what_the_shardings_leave():
  c = experiment("r1_zero.py")
  found = command.plan(c, plan_chips.topology("h200:8x64"))
  sizes, parts = preset("deepseek_v3"), found["programs"]["optimizer"]["parts"]
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
    command.plan(c, topology, only=("optimizer",))["host_memory"]
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


@pytest.mark.slow
def test_what_waits_in_the_hosts_memory_takes_none_of_the_devices():
  few = experiment("r1_zero.py", offload=("optimizer", "reference"))
  topology = plan_chips.topology("h200:8x64")
  before = command.plan(experiment("r1_zero.py"), topology, only=("optimizer",))
  after = command.plan(few, topology, only=("optimizer",))
  parts, kept = (x["programs"]["optimizer"]["parts"] for x in (before, after))
  assert kept["params"] == parts["params"]
  assert kept["reference"] == 0 and kept["optimizer"] < 100  # Its counters.
  moved = parts["optimizer"] + parts["reference"] - kept["optimizer"]
  found, full = (x["programs"]["optimizer"] for x in (after, before))
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


@pytest.mark.slow
def test_recorded_experts_are_split_over_all_devices():
  """A byte of each layer and choice; while rows wait, those of their tokens."""
  c = experiment("r1_zero.py")
  with c.unlocked():
    c.sampling.record_experts, c.dynamic_sampling.rounds = True, 2
  topology = plan_chips.topology("h200:8x64")
  record, others = "recorded experts", "experts of other microbatches"
  found = command.plan(c, topology, only=("decode", "optimizer"))["programs"]
  numbers, chosen = 512, 58 * 8  # The first is a multiple of the devices.
  tokens = 512 * (16 * c.sampling.max_tokens + 80 + c.sampling.prompt_tokens)
  parts = found["decode"]["parts"]
  assert parts[record] == 3 * tokens * numbers / 512
  assert others not in parts
  width, tokens = max(c.rows.widths), 512 * (16 * c.sampling.max_tokens + 200)
  rows = 512 // c.mesh.context * c.rows.shard_rows
  count = -(-tokens // (rows * width)) - 1
  parts = found["optimizer"]["parts"]
  assert parts[others] == count * rows * width * chosen / 512
  assert record not in parts
  plain = command.plan(experiment("r1_zero.py"), topology, only=("decode",))
  assert record not in plain["programs"]["decode"]["parts"]


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
  sizes, rows = preset("deepseek_v3"), (512, 4096)
  mesh = dict(data=1, fsdp=32, expert=16, context=1, tensor=1)
  few = estimate.temporaries(sizes, rows, mesh)
  many = estimate.temporaries(sizes, rows, mesh | dict(context=4))
  assert many["gradients"] == few["gradients"] / 4
  assert many["activations"] == pytest.approx(few["activations"] / 4)


@pytest.mark.slow
def test_a_sweep_ranks_meshes_that_fit_the_devices():
  c = experiment("r1_zero.py:qwen_math_7b")
  topology = plan_chips.topology("h200:8x2")
  found = command.sweep(c, topology)
  assert found["fits"] and len(found["plans"]) == 3
  times = [one["seconds"] for one in found["ranked"]]
  assert times == sorted(times)
  for one in found["ranked"]:
    assert math.prod(one["mesh"].values()) == 16


@pytest.mark.parametrize("mean, least", [(3_600.0, 0.7), (1_000.0, 0.5)])
def test_simulated_rows_are_mostly_full_in_both_loops(mean, least):
  lengths = fill.lognormal(mean, 1.0)
  for name, shards, rounds in ("r1_zero.py", 32, 1), ("distill.py", 8, 16):
    found = fill.simulate(experiment(name), shards, lengths, rounds=rounds)
    assert found.use >= least
    # The 64 texts of an update of SFT may leave a shard of a microbatch empty.
    assert found.least_of_all >= 0.5 or name == "distill.py"
    assert found.real_pairs > found.tokens > found.values
    assert len(found.report()["microbatches"]) <= 4


def test_lengths_come_from_a_file_or_a_distribution(tmp_path):
  rng = np.random.default_rng(0)
  drawn = fill.lengths("lognormal:1000:0.5")(rng, (100_000,))
  assert drawn.mean() == pytest.approx(1000, rel=0.01)
  assert np.log(drawn).std() == pytest.approx(0.5, rel=0.01)
  path = tmp_path / "lengths"
  path.write_text("3\n70\n")
  drawn = fill.lengths(str(path))(rng, (50, 2))
  assert drawn.shape == (50, 2) and {*drawn.flat} == {3, 70}
  path.write_text("3 x")
  with pytest.raises(ValueError, match="invalid literal .* 'x'"):
    fill.lengths(str(path))
  with pytest.raises(ValueError, match="'lognormal:3' are no file; use"):
    fill.lengths("lognormal:3")


def test_slots_are_taken_again_and_the_last_completions_are_alone():
  lengths = np.array([4, 2, 3, 6, 1])  # Two slots: [4, 6] and [2, 3, 1].
  found = whole_run.sample(lengths, 2, 1)
  assert (found.steps, found.tail) == (10, 5)
  assert found.longest.tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 4, 5]
  every_other = whole_run.sample(lengths, 2, 2)
  assert every_other.longest.tolist() == [0, 2, 4, 4, 4]


def test_the_hours_of_a_run_add_up():
  c = experiment("r1_zero.py")
  c.num_steps = 1600
  one = dict.fromkeys(("decode", "decode short"), 2.0)
  one |= {"prefill": 0.5, "reshard": 36.0, "optimizer": 3.0}
  for width in c.rows.widths:
    one |= {f"gradient {width}": width / 1e4, f"score {width}": width / 2e4}
  seconds = {name: lambda _=None, x=x: x for name, x in one.items()}
  lengths = whole_run.schedule("lognormal:1000:0.0")
  found = whole_run.hours(
    c,
    32,
    plan_chips.topology("v5p:8x8x8"),
    lengths,
    seconds,
    short=4096,
    saved=512 * whole_run.SAVED * 36,
  )
  hours = found["hours"]
  assert hours["weights to the sampler"] == pytest.approx(1)
  # 8,192 completions of 1,000 tokens in 2,048 slots, 64 at once.
  sampling = -(-4000 // 64) * 2.0 + 512 * 0.5
  assert hours["sampling"] == pytest.approx(sampling * 100 / 3600)
  tail = -(-1000 // 64) * 2.0
  assert hours["of it, the tail of each round"] == pytest.approx(
    tail * 100 / 3600
  )
  # One microbatch of 20,480: 512 completions and prompts take 16,200 a row.
  assert hours["scoring"] == pytest.approx(16 * 1.024 * 100 / 3600)
  assert hours["updates"] == pytest.approx(16 * 5.048 * 100 / 3600)
  assert hours["saving"] == pytest.approx(1600 / c.checkpoint_every / 100)
  assert found["total"] == pytest.approx(
    sum(hours.values()) - hours["of it, the tail of each round"]
  )
  with pytest.raises(ValueError, match="no schedule for a run; use lognormal"):
    whole_run.schedule("lognormal:1000")


@pytest.mark.parametrize(
  "name, overrides, topology, match",
  [
    ("r1_zero.py", {}, "h200:8x3", "does not divide the 24 devices"),
    ("r1_zero.py", dict(mesh__data=4), "h200:8x64", "takes 2048 devices"),
    (
      "r1_zero.py",
      dict(rows__widths=(40_960, 5_000)),
      "h200:8x64",
      "mesh.context 16 does not divide the 5000 tokens",
    ),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(name, overrides, topology, match):
  with pytest.raises(ValueError, match=match):
    command.plan(experiment(name, **overrides), plan_chips.topology(topology))


def test_a_loop_without_a_plan_is_refused():
  c = experiment("demo.py")
  c.unlock()
  c.loop = "pipeline"
  with pytest.raises(ValueError, match="unknown loop to plan 'pipeline'"):
    command.plan(c, plan_chips.topology("h200:8x1"))
  with pytest.raises(ValueError, match="training of an adapter is not planned"):
    command.plan(experiment("lora.py"), plan_chips.topology("h200:8x1"))


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
  check = functools.partial(price.faults, program)
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
