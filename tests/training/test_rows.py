"""One round with everything on that writes a number, and the table of them."""

import pathlib

import jax
import numpy as np
import pytest

from r1jax import config, data, rewards
from r1jax.data import mixture
from r1jax.runtime import metrics
from r1jax.training import grpo, models

pytestmark = pytest.mark.slow

DEMO = pathlib.Path(__file__).parents[2] / "experiments" / "demo.py"


def graded(example, completion):
  return float("a" in completion.text), ""


def everything(base):
  """The demo's config for the toy, with all on that writes a number."""
  c = config.load(str(DEMO)).copy_and_resolve_references().unlock()
  c.update_from_flattened_dict(
    {
      "num_steps": 1,
      "minibatches": 1,
      "checkpoint_every": 1,
      "reference_every": 1,
      "template": "plain",
      "cpu_devices": 1,
      "mesh.data": 1,
      "rollout_mesh.data": 1,
      "prompts_per_round": 4,
      "group_size": 8,
      "old": "trainer",
      "mtp": "train",
      "mask_truncated": True,
      "advantage.name": "leave_one_out",
      "aggregation.name": "token_mean",
      "loss.entropy_coefficient": 0.01,
      "kl_reward.coefficient": 0.01,
      "dynamic_sampling.rounds": 1,
      "optimizer.warmup_steps": 0,
    }
  )
  c.max_tokens, c.peak_flops = ((0, 6),), 1e12
  c.optimizer.moments = "bfloat16"
  c.tokenizer = dict(path=base)
  c.model = dict(
    name="pretrained",
    path=base,
  )
  c.dataset = dict(mixture=dict(letters=dict(weight=1, size=40)))
  c.rewards = dict(praise=1.0, accuracy=0.0, format=0.0)
  c.grader = dict(
    num_workers=1, timeout=60.0, preload=("r1jax.rewards",), canaries=()
  )
  c.rows = dict(widths=(48, 24), shard_rows=2)
  c.sampling = dict(
    num_slots=16,
    decode_steps=4,
    prompt_tokens=8,
    max_tokens=8,
    temperature=1.0,
    record_experts=True,
  )
  c.loss.correction = dict(name="truncate", level="token", cap=2.0)
  c.evaluation = dict(
    every=1000,
    seed=5,
    problems=2,
    samples=2,
    problems_between=2,
    samples_between=2,
    test=dict(name="letters", size=8),
  )
  config.check(c)
  return c


@pytest.fixture(scope="module")
def run(base, toy_task, tmp_path_factory):
  """(first parameters, last state, workdir)"""
  workdir = str(tmp_path_factory.mktemp("everything"))
  with pytest.MonkeyPatch.context() as patch:
    mixed = mixture.part_loader(data.DATASETS["letters"])
    patch.setitem(data.DATASETS["mixture"], "letters", mixed)
    patch.setitem(
      rewards.REWARDS,
      "accuracy",
      rewards.Reward(rewards.accuracy.reward, explain=graded),
    )
    c = everything(base)
    start = models.load(**c.model)[1]
    state = grpo.train(c, workdir)
  return start, state, workdir


def test_the_first_update_on_policy_has_ratio_one(run):
  """With the trainer's own log-probs; beside all else that can be on."""
  start, state, workdir = run
  (row,) = [row for row in metrics.read(workdir) if "round" in row]
  for name in ("ratio/min", "ratio/mean", "ratio/max"):
    assert row[name] == pytest.approx(1, abs=1e-5)
  assert 0 <= row["kl/ref"] <= 1e-9
  assert row["completions/max_length"] <= 6
  assert row["clip_ratio/region"] == 0
  assert row["sampling/ratio_mean"] == pytest.approx(1, abs=1e-3)
  assert row["sampling/prob_diff_mean"] < 1e-4
  assert row["router/replay_mismatch"] <= 0.01
  assert row["loss/mtp"] > 1 and row["loss/entropy"] < 0
  assert row["gen/num_gen_batches"] in (1, 2)
  moved = np.abs(start["mtp"]["project"] - state.train.params["mtp"]["project"])
  assert moved.max() > 0
  kept = jax.tree.leaves(state.train.optimizer_state)
  assert any(x.dtype == np.dtype("bfloat16") for x in kept)


def test_the_table_of_metrics_is_what_a_run_writes(run):
  """Every number that is written is defined, and the other way round."""
  written = {name for row in metrics.read(run[2]) for name in row}
  written -= {"step", "time"}
  assert not [name for name in written if metrics.pattern_of(name) is None]
  # A CPU keeps no account of its memory. The others are of other loops, or of
  # the reward `language`; their tests have them.
  never = metrics.METRICS.keys() - {*map(metrics.pattern_of, written)}
  others = ("generate/", "preference/", "eval/preference/", "language/")
  assert {name for name in never if not name.startswith(others)} == {
    *("perf/hbm_peak", "data/too_long", "eval/nll", "eval/texts"),
    *("loss/nll", "loss/balance", "loss/distillation", "loss/preference"),
  }
