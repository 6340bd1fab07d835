"""The step that is timed, and the floor that it is compared with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu, grpo, timing
from benchmarks.grpo import Size
from r1jax.data.packing import lay_out_rollout
from r1jax.models import flops
from r1jax.models.presets import PRESETS
from r1jax.ops.blockwise import visible
from r1jax.parallel.mesh import make_mesh
from r1jax.training.batch import pack_prompts
from r1jax.types import FINISH_LENGTH, Rollout

RATES = {"matmul_2048_gflops": 100.0, "matmul_64_gflops": 50.0}
TOY = dict(prompt=4, completion=6, prompts=2, group_size=2, width=32, layers=1)


def test_flops_are_twice_the_published_parameters():
  # Qwen2.5 (arXiv:2412.15115): 1.54B, 1.31B without embeddings.
  assert flops.of_token(PRESETS["qwen2.5-math-1.5b"]) == pytest.approx(
    2 * 1.31e9, rel=5e-3
  )
  # DeepSeek-V3 (arXiv:2412.19437): 37B are active for a token, embedding in.
  sizes = PRESETS["deepseek_v3"]
  active = flops.of_token(sizes) + 2 * flops.of_logits(sizes)
  assert active == pytest.approx(2 * 37e9, rel=0.02)


def test_pairs_cost_what_attention_multiplies():
  grouped = grpo.sized("qwen2", 256, 4)
  # Four layers of four heads of 64: a score and a mixed value each.
  assert flops.of_pair(grouped) == 4 * 4 * (2 * 64 + 2 * 64)
  assert flops.of_pair(grouped, cached=True) == flops.of_pair(grouped)
  latent = grpo.sized("deepseek_v3", 256, 4)
  # Keys of 32 + 32, values of 32; or a latent of 64 with a key of 32.
  assert flops.of_pair(latent) == 4 * 4 * (2 * 64 + 2 * 32)
  assert flops.of_pair(latent, cached=True) == 4 * 4 * (2 * 96 + 2 * 64)


@pytest.mark.parametrize("model", ["qwen2", "deepseek_v3"])
def test_the_forward_pass_counts_each_visible_pair_once(model):
  size = Size(prompts=4, group_size=4, prompt=5, completion=7)
  sizes = grpo.sized(model, 64, 2)
  queries = pairs = 0
  for packed in packed_of(size, completions=4):
    slots = jnp.arange(packed.tokens.shape[-1])
    limits = map(jnp.asarray, (packed.k_start, packed.prefix_end))
    seen = np.asarray(visible(slots, slots, *limits))
    used = packed.positions >= 0
    pairs += int(seen[used].sum())
    queries += int(used.sum())
  must = grpo.work(sizes, size)
  expected = queries * flops.of_token(sizes) + pairs * flops.of_pair(sizes)
  expected += size.sampled * flops.of_logits(sizes)
  assert must.forward == expected


def test_decoding_sees_the_prompt_and_what_came_before():
  size = Size(prompts=3, group_size=4, prompt=5, completion=7)
  sizes = grpo.sized("deepseek_v3", 64, 2)
  expected = 0
  for _ in range(size.prompts * size.group_size):
    for token in range(size.completion):
      keys = size.prompt + token
      expected += flops.of_token(sizes) + flops.of_logits(sizes)
      expected += keys * flops.of_pair(sizes, cached=True)
  assert grpo.work(sizes, size).decoding == expected


def test_the_floor_is_decoding_at_its_rate_and_the_rest_at_the_peak():
  size = Size(prompts=8, group_size=8, prompt=32, completion=128)
  sizes = grpo.sized("qwen2", 256, 4)
  floor = grpo.floors(sizes, size, RATES)
  must = grpo.work(sizes, size)
  assert floor["floor_decode_s"] == pytest.approx(
    must.decoding / 50e9, abs=1e-4
  )
  rest = must.prefill + must.forward + 3 * must.forward
  assert floor["floor_rest_s"] == pytest.approx(rest / 100e9, abs=1e-4)


@pytest.mark.parametrize("completions", [1, 2, 3, 4, 8])
def test_rows_hold_as_many_completions_as_they_are_made_for(completions):
  size = Size(prompts=3, group_size=4, prompt=5, completion=7)
  placements = placements_of(size, completions)
  whole = np.concatenate([x.completion for x in placements])
  assert sorted(whole) == list(range(12))
  most = max(np.bincount(x.row).max() for x in placements)
  assert most <= completions
  if 4 % completions == 0:
    assert most == completions


def packed_of(size, completions):
  return [
    lay_out_rollout(rollout_of(size), x)
    for x in placements_of(size, completions)
  ]


def rollout_of(size):
  shape = size.prompts, size.group_size
  return Rollout(
    prompts=np.ones((size.prompts, size.prompt), np.int32),
    prompt_lengths=np.full(size.prompts, size.prompt, np.int32),
    completions=np.ones((*shape, size.completion), np.int32),
    lengths=np.full(shape, size.completion, np.int32),
    finish=np.full(shape, FINISH_LENGTH, np.int32),
    sampled_mask=np.ones((*shape, size.completion), bool),
    logprobs=np.zeros((*shape, size.completion), np.float32),
  )


def placements_of(size, completions):
  rows = grpo.rows_of(size, completions, microbatch_rows=2)
  mesh = make_mesh(data=1)
  section = dict(widths=rows["widths"], shard_rows=rows["microbatch_rows"])
  return pack_prompts(
    rollout_of(size), np.arange(size.prompts), mesh, **section
  )


@pytest.mark.slow
def test_a_step_is_timed_in_parts_and_moves_the_policy():
  sizes = grpo.sized("qwen2", TOY["width"], TOY["layers"])
  size = Size(2, 2, TOY["prompt"], TOY["completion"])
  rows = grpo.rows_of(size, 2, 2)
  running = grpo.train(sizes, size, rows)
  next(running)
  params = lambda: running.gi_frame.f_locals["state"].params
  before = jax.tree.map(np.array, params())
  taken = next(running)
  parts = [taken[key] for key in grpo.PHASES]
  assert min(parts) > 0 and sum(parts) == pytest.approx(taken["step_s"])
  moved = jax.tree.map(lambda x, y: not np.array_equal(x, y), before, params())
  assert all(jax.tree.leaves(moved))


def test_the_report_is_of_medians(monkeypatch):
  steps = iter([9.0, 9.0, 1.0, 7.0, 2.0])  # The first two only warm up.

  def train(sizes, size, rows):
    for taken in steps:
      yield dict.fromkeys(("step_s", *grpo.PHASES), taken)

  monkeypatch.setattr(timing, "machine", lambda: RATES)
  monkeypatch.setattr(grpo, "train", train)
  report = grpo.grpo(**TOY, steps=3)
  assert report["step_s"] == report["update_s"] == 2.0
  assert report["steps"] == 3 and report["peers"] == {}
  assert report["sampled_tokens"] == 2 * 2 * 6
  assert report["sampled_tokens_per_s"] == 12


@pytest.mark.slow
@pytest.mark.parametrize(
  "model", ["qwen2", pytest.param("deepseek_v3", marks=pytest.mark.soak)]
)
def test_both_models_are_timed(model, monkeypatch):
  monkeypatch.setattr(timing, "machine", lambda: RATES)
  report = grpo.grpo(**TOY, model=model, steps=1)
  assert report["step_s"] > 0 and report["peak_memory_bytes"] > 0


def test_a_peer_is_compared_over_all_its_runs():
  size = Size(8, 8, 32, 128)
  runs = [
    dict(times=[3.0, 4.0], mean_length=128.0),
    dict(times=[5.0], mean_length=127.0),
  ]
  assert grpo.compare(runs, size, 2.0) == {
    "step_s": 4.0,
    "steps": 3,
    "sampled_tokens": 8160,
    "equal_tokens": True,
    "ratio": 2.0,
  }
  short = [dict(times=[3.0], mean_length=120.0)]
  assert not grpo.compare(short, size, 2.0)["equal_tokens"]
  failed = [*runs, dict(error="ended by SIGKILL")]
  assert grpo.compare(failed, size, 2.0) == failed[-1]


def test_the_peers_have_no_deepseek():
  with pytest.raises(ValueError, match="nothing to time beside deepseek_v3"):
    grpo.grpo(model="deepseek_v3", peers=True)


@pytest.mark.soak
def test_the_gpu_s_measures_run_at_toy_size(monkeypatch):
  peak = {"nominal": False, "peak_tflops": 0.05, "memory_gb_per_s": 10.0}
  monkeypatch.setattr(gpu, "peaks", lambda: peak)
  report = gpu.gpu(
    width=16,
    layers=1,
    batch=4,
    group_size=2,
    prompt=4,
    completion=4,
    rows=2,
    row_width=16,
    microbatch_rows=2,
    steps=1,
  )
  assert report["decode"]["batch"] == 4
  assert report["decode"]["mean_context"] == 4 + 1.5
  assert 0 < report["decode"]["share_of_memory_rate"] < 1
  assert report["update"]["tokens"] == 2 * (1 + 2 * 7)
  assert 0 < report["update"]["mfu"] < 1


def test_the_gpu_s_model_is_qwen():
  assert gpu.sized() == gpu.preset(gpu.NAME, compute_dtype="bfloat16")
  assert gpu.parameters(gpu.sized()) == pytest.approx(1.54e9, rel=5e-3)


def test_a_gpu_s_batch_holds_whole_groups():
  with pytest.raises(ValueError, match="group_size 8 does not divide batch 12"):
    gpu.gpu(batch=12)
