"""The whole loop on a task that a toy learns in seconds, and its resumption."""

import functools
import json

import jax
import numpy as np
import pytest
from trees import assert_same

from r1jax import hf
from r1jax.rollouts.engine import Engine
from r1jax.runtime import checkpoint, metrics
from r1jax.training import grpo, run

STEPS, STOP = 24, 16  # As the config of `make_config` has them.


def host(state):
  return jax.tree.map(np.array, state)


@pytest.fixture(scope="module")
def runs(make_config, compiled_once, tmp_path_factory):
  """One run straight to the end, and one in two parts that looks around."""
  straight, parted = (
    tmp_path_factory.mktemp(n) for n in ("straight", "parted")
  )
  whole = host(grpo.train(make_config(), str(straight)))
  curious = functools.partial(make_config, **{"evaluation.every": 6})
  half = host(grpo.train(curious(num_steps=STOP), str(parted)))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(hf, "read", None)  # No weights are read again.
    rest = host(grpo.train(curious(), str(parted)))
  return dict(
    whole=whole, half=half, rest=rest, straight=straight, parted=parted
  )


def rows_of(workdir):
  """Rows of rounds, without what depends on the clock."""
  return [
    {k: v for k, v in row.items() if not k.startswith(("perf/", "time"))}
    for row in metrics.read(workdir)
    if "reward/mean" in row
  ]


def test_a_short_run_learns(runs):
  rewards = [row["reward/mean"] for row in rows_of(runs["straight"])]
  assert len(rewards) == STEPS // 2
  assert np.mean(rewards[:2]) < 0.2
  assert np.mean(rewards[-2:]) > 0.6, rewards


def test_a_resumed_run_is_the_straight_run_bit_for_bit(runs):
  """Parameters, optimizer, reference, and every number of every round."""
  assert runs["half"].train.step == STOP
  assert_same(runs["rest"], runs["whole"])
  assert rows_of(runs["parted"]) == rows_of(runs["straight"])
  completions = [
    (runs[name] / "completions.jsonl").read_text()
    for name in ("parted", "straight")
  ]
  assert completions[0] == completions[1] != ""


def test_evaluation_leaves_training_alone(runs):
  """The two runs, equal in every bit, were evaluated at different steps."""
  evaluated = {
    name: [
      row["step"] for row in metrics.read(runs[name]) if "eval/x/pass@1" in row
    ]
    for name in ("straight", "parted")
  }
  assert evaluated == {
    "straight": [0, STEPS],
    "parted": [0, 6, 12, STOP, 18, STEPS],
  }
  assert_same(runs["rest"].train.params, runs["whole"].train.params)


def test_the_reference_is_a_copy_made_every_so_many_steps(runs):
  """And it stays, whatever becomes of the policy and of the process."""
  half, whole = runs["half"], runs["whole"]
  assert half.reference_step == STOP
  assert_same(half.reference, half.train.params)
  assert whole.reference_step == STOP
  assert_same(whole.reference, half.train.params)
  gap = np.abs(whole.reference["unembed"] - whole.train.params["unembed"])
  assert gap.max() > 1e-3
  steps = [row["reference_step"] for row in rows_of(runs["straight"])]
  assert steps == [0] * 7 + [STOP] * 5


def test_the_kl_begins_anew_with_a_new_reference(runs):
  kl = {row["step"]: row["kl/ref"] for row in rows_of(runs["straight"])}
  assert 0 <= kl[2] < 0.1 * kl[STOP]  # Its second minibatch has moved.
  assert kl[STOP + 2] < 0.5 * kl[STOP]


def test_what_is_frozen_does_not_move(runs, make_config):
  _, first = grpo.models.load(**make_config().model)
  last = runs["whole"].train.params
  assert_same(jax.tree.map(np.array, first["mtp"]), last["mtp"])
  first, last = (x["moe"]["feed_forward"]["router"] for x in (first, last))
  np.testing.assert_array_equal(first["bias"], last["bias"])
  assert np.abs(first["weight"] - last["weight"]).max() > 0


def test_the_trainer_agrees_with_the_sampler_in_every_round(runs):
  for row in rows_of(runs["straight"]):
    # The second of the two minibatches is one update behind.
    assert row["ratio/mean"] == pytest.approx(1.0, abs=0.2)
  # While the learning rate warms up from 0, the policy has not moved yet.
  first = rows_of(runs["straight"])[0]
  assert first["sampling/logp_diff_max"] < 1e-4
  assert first["clip_ratio/region"] == 0


def test_rows_add_up(runs):
  for i, row in enumerate(rows_of(runs["straight"]), 1):
    assert row["step"] == 2 * i
    assert row["loss/total"] == pytest.approx(
      row["loss/policy"] + row["loss/kl"], abs=1e-6
    )
    assert row["reward/mean"] == pytest.approx(row["reward/praise/mean"])
    assert row["data/tokens"] == pytest.approx(
      row["completions/mean_length"] * 32, abs=1e-3
    )
    assert row["optim/skipped"] == 0


def test_the_summary_is_written_and_is_json(runs):
  summary = json.loads((runs["straight"] / "summary.json").read_text())
  assert {*summary["tasks"]} == {"x", "y"}
  assert summary["rl_steps"] == STEPS


def test_the_last_step_is_saved(runs):
  assert checkpoint.latest_step(runs["straight"]) == STEPS
  saved = checkpoint.load_params(runs["straight"])
  assert_same(saved, runs["whole"].train.params)


def test_a_run_that_is_done_does_nothing_more(runs, make_config, compiled_once):
  before = metrics.read(runs["straight"])
  again = grpo.train(make_config(), str(runs["straight"]))
  assert_same(host(again), runs["whole"])
  assert metrics.read(runs["straight"]) == before


@pytest.mark.slow
def test_without_a_kl_there_is_no_reference(make_config, tmp_path):
  """None is kept, none is scored, and none is said to be 0 nats away."""
  config = make_config(num_steps=2, **{"loss.kl_coefficient": 0.0})
  state = grpo.train(config, str(tmp_path))
  (row,) = rows_of(tmp_path)
  assert state.reference is None
  assert not {"kl/ref", "loss/kl"} & row.keys()
  assert row["loss/total"] == row["loss/policy"]


@pytest.mark.slow
def test_a_dumped_run_can_be_replayed(make_config, compiled_once, tmp_path):
  """Without a sampler, to the same bits."""
  config = make_config(num_steps=4)
  first = grpo.train(config, str(tmp_path / "first"), dump=True)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(grpo, "sample_until_it_teaches", None)
    again = grpo.train(
      config, str(tmp_path / "again"), replay=str(tmp_path / "first")
    )
  assert_same(host(first), host(again))
  rows = rows_of(tmp_path / "first")
  assert rows == rows_of(tmp_path / "again") and len(rows) == 2
  with pytest.raises(ValueError, match="8 completions of each.*group_size 4"):
    grpo.train(
      make_config(num_steps=4, group_size=4),
      str(tmp_path / "other"),
      replay=str(tmp_path / "first"),
    )


@pytest.mark.slow
def test_recorded_experts_stay_on_the_devices_but_for_a_dump(
  make_config, compiled_once, tmp_path
):
  """On two devices; a run from the dump, and one in two parts, end alike."""
  make = functools.partial(
    make_config,
    **{
      "sampling.record_experts": True,
      "mesh.data": 2,
      "rollout_mesh.data": 2,
      "rows.shard_rows": 2,
    },
  )
  first = grpo.train(make(num_steps=4), str(tmp_path / "first"), dump=True)
  dumped = str(tmp_path / "first")
  again = grpo.train(make(num_steps=4), str(tmp_path / "again"), replay=dumped)
  kind, fetched, live = type(first.train.step), [], []
  value, prepare = kind._value, Engine.prepare

  def watched(array):
    if array.dtype == np.uint8:
      fetched.append(array.shape)
    return value.fget(array)

  def before_a_round(engine, params):
    live.append([x.shape for x in jax.live_arrays() if x.dtype == np.uint8])
    return prepare(engine, params)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(kind, "_value", property(watched))
    patch.setattr(Engine, "prepare", before_a_round)
    for steps in (2, 4):
      parted = grpo.train(make(num_steps=steps), str(tmp_path / "parted"))
  assert not fetched
  assert live and not any(live)  # Not beside the next round's, either.
  assert_same(host(first), host(again))
  assert_same(host(first), host(parted))
  for name in ("again", "parted"):
    rows = rows_of(tmp_path / name)
    assert rows == rows_of(tmp_path / "first")
    assert [row["router/replay_mismatch"] <= 0.01 for row in rows] == [True] * 2


def test_completions_may_grow_with_the_steps(make_config):
  config = make_config(max_tokens=((0, 2), (4, 5)))
  limits = [run.token_limit(config, step) for step in (0, 3, 4, 9)]
  assert limits == [2, 2, 5, 5]
  assert run.token_limit(make_config(), 7) == 8
  grpo.check(config)


@pytest.mark.parametrize(
  "schedule, message",
  [
    (((0, 9),), "sampling.max_tokens 8"),
    (((4, 5), (0, 2)), r"max_tokens has \(0, 2\) after step 4"),
    (((4, 5), (4, 6)), r"max_tokens has \(4, 6\) after step 4"),
    (((-2, 5),), r"max_tokens has \(-2, 5\)"),
  ],
)
def test_a_schedule_of_lengths_that_is_none_is_refused(
  make_config, schedule, message
):
  with pytest.raises(ValueError, match=message):
    grpo.check(make_config(max_tokens=schedule))


def test_mtp_blocks_can_be_left_out(make_config):
  initial = run.set_up(make_config(mtp="drop")).initial
  assert "mtp" not in initial.shapes and initial.config.mtp_depth == 0
  assert "mtp" not in initial.make(None)


def test_a_workdir_of_another_config_is_refused(runs, make_config):
  other = make_config(group_size=4)
  with pytest.raises(ValueError, match="group_size was 8, is 4"):
    grpo.train(other, str(runs["straight"]))


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"group_size": 1}, "group_size is 1.*at least 2"),
    ({"minibatches": 3}, "minibatches 3 does not divide prompts_per_round 4"),
    ({"rows.shard_rows": 0}, "shard_rows 0 are numbers .* at least 1"),
    ({"rows.widths": ()}, r"rows.widths \(\) and"),
    ({"num_steps": 25}, "num_steps 25 is not a multiple of minibatches 2"),
    ({"reference_every": 7}, "reference_every 7 is not a multiple"),
    ({"checkpoint_every": 9}, "checkpoint_every 9 is not a multiple"),
    ({"evaluation.every": 5}, "evaluation.every 5 is not a multiple"),
    ({"template": "r1"}, "unknown template 'r1'"),
    ({"mtp": "keep"}, "mtp is 'keep'"),
    ({"old": "policy"}, "old is 'policy'"),
    ({"loss.clip.epsilon": -1.0}, "epsilon"),
    ({"advantage.name": "group"}, "advantage 'group'; did you mean 'group_"),
    ({"aggregation.name": "mean"}, "aggregation 'mean'"),
    ({"loss.kl": "k4"}, "kl 'k4'; there is k1"),
    ({"kl_reward.name": "k4"}, "kl 'k4'; there is k1"),
    ({"dynamic_sampling.rounds": -1}, "rounds is -1, below 0"),
    ({"optimizer.learning_rate": -0.1}, "learning_rate is -0.1"),
  ],
)
def test_settings_that_do_not_go_together_are_refused(
  make_config, changes, message
):
  grpo.check(make_config())
  with pytest.raises(ValueError, match=message):
    grpo.check(make_config(**changes))


def test_what_is_learned_from_is_sampled_from_all_tokens(make_config):
  config = make_config()
  config.sampling.top_p = 0.9
  with pytest.raises(ValueError, match="top_p is 0.9"):
    grpo.check(config)
