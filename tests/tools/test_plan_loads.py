"""What plans declare of the data, where arithmetic says it too."""

import pathlib

import numpy as np
import pytest

from r1jax import config
from r1jax.models.presets import preset
from r1jax.tools.plan import chips, command, loads, programs

ROOT = pathlib.Path(__file__).parent.parent.parent
MESH = dict(data=1, fsdp=4, expert=8, context=1, tensor=1)


@pytest.mark.parametrize("experts, k", [(256, 8), (8, 2), (4, 4), (1, 1)])
def test_every_token_makes_k_distinct_choices(experts, k):
  for routing in loads.ROUTINGS:
    load = loads.choices_per_token(routing, experts, k)
    assert load.shape == (experts,) and load.max() <= 1
    assert load.sum() == pytest.approx(k)
  with pytest.raises(ValueError, match="'uneven' is none of even, zipf"):
    loads.choices_per_token("uneven", experts, k)


def test_a_zipf_load_is_that_of_draws_without_replacement():
  rng, (experts, k) = np.random.default_rng(0), (64, 6)
  times = rng.exponential(size=(20_000, experts)) * np.arange(1, experts + 1)
  drawn = np.bincount(np.argsort(times)[:, :k].ravel()) / 20_000
  load = np.sort(loads.choices_per_token("zipf", experts, k))[::-1]
  np.testing.assert_allclose(load, drawn, rtol=0.25, atol=0.02)
  assert load[0] > 0.75 and load[-1] < 0.05  # An even load would be 0.09.


def test_an_even_load_fills_the_window_but_for_its_slack():
  sizes = preset("deepseek_v3", moe_chunk=2048)
  even = loads.of_experts(sizes, MESH, 4096)
  assert even.trips["experts"] == (1,)
  assert even.work["grouped"] == pytest.approx(1 / 1.25)
  # 512 rows for each of 32 experts; blocks have 256.
  assert even.trips["grouped"] == (64,)
  few = loads.of_experts(sizes, MESH, 256)
  assert few.trips["grouped"] == (32,)


def test_a_skewed_load_takes_more_windows_on_the_busiest_device():
  sizes = preset("deepseek_v3", moe_chunk=2048)
  zipf = loads.of_experts(sizes, MESH, 4096, "zipf")
  (windows,) = zipf.trips["experts"]
  load = loads.choices_per_token("zipf", 256, 8).reshape(8, 32).sum(1).max()
  assert windows == np.ceil(load / 1.25) > 1
  assert windows * zipf.work["grouped"] * 1.25 == pytest.approx(load, rel=1e-3)


def test_a_device_with_all_experts_has_all_choices():
  sizes = preset("deepseek_v3", moe_chunk=2048)
  for routing in loads.ROUTINGS:
    found = loads.of_experts(sizes, MESH | dict(expert=1), 4096, routing)
    assert found.work["grouped"] == pytest.approx(1)
    assert found.trips["experts"] == (1,)


def test_dense_models_declare_no_experts():
  assert loads.of_experts(preset("tiny_qwen2"), MESH, 4096) == loads.NOTHING


def test_every_program_of_a_run_declares_its_loads():
  c = config.load(str(ROOT / "experiments" / "demo.py"))
  c.unlock()
  c.mesh = dict(data=1, fsdp=2, expert=2)
  c.rows.shard_rows, c.sampling.num_slots = 1, 32
  mesh = command.planned_mesh(c, chips.topology("h200:4x1"))
  for program in programs.of_grpo(c, mesh):
    even, zipf = program.declare(), program.declare(routing="zipf")
    if program.name in ("optimizer", "reshard"):
      assert even == zipf == loads.NOTHING
      continue
    assert zipf.trips["experts"] >= even.trips["experts"] == (1,)
    assert 0 < even.work["grouped"] <= 1 and 0 < zipf.work["grouped"] <= 1
    assert ("decoding" in even.trips) == (program.name == "decode")
    assert ("attention" in even.branches) == (program.name != "decode")


def test_the_sampling_of_data_is_planned_without_a_trainer():
  folder = ROOT / "experiments" / "r1"
  c = config.load(str(folder / "rejection_sampling.py"))
  report = command.plan(c, chips.topology("h200:8x64"))
  assert [*report["programs"]] == ["reshard", "prefill", "decode"]
  assert report["fits"] and not report["host_memory"]
  # In bfloat16: the experts are split over 256 chips, all else is on each.
  size = report["programs"]["decode"]["parts"]["rollout weights"]
  routed = 58 * 256 * 3 * 7168 * 2048
  assert size == pytest.approx(2 * (routed / 256 + 671.03e9 - routed), rel=0.02)
  with pytest.raises(ValueError, match="'generate' has no rows for --lengths"):
    command.plan(
      c, chips.topology("h200:8x64"), lengths=lambda rng, size: np.ones(size)
    )
  c = config.load(str(folder / "evaluation.py"))
  report = command.plan(c, chips.topology("h200:8x64"), only=("decode",))
  assert report["fits"]
  c = config.load(str(folder / "cold_start_data.py:few_shot"))
  with pytest.raises(ValueError, match="from a teacher; there is nothing"):
    command.plan(c, chips.topology("h200:8x64"))
