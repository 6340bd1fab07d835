"""Rounds that teach nothing, and evaluations that come late or not at once."""

import collections
import json

import jax
import numpy as np
import pytest

from r1jax import data, hf, rewards
from r1jax.data import tokenizer
from r1jax.data.mixture import Mixture, Part
from r1jax.runtime import checkpoint, interrupt, metrics
from r1jax.training import evaluator, grpo, inspection, models

pytestmark = pytest.mark.usefixtures("compiled_once")


DYNAMIC = "dynamic_sampling.rounds"
# What the runs of this file have in common, so that they compile once.
SHARED = {
  "loss.kl_coefficient": 0.0,
  "optimizer.warmup_steps": 0,
  "router_bias_speed": 0.01,
}


class Evaluations:
  """Stands in for `evaluator.evaluate`: `scores`, one a call; None stops it."""

  def __init__(self, *scores):
    self.scores, self.seen = list(scores), []

  def __call__(self, engine, params, problems, *args, **kwargs):
    self.seen.append(jax.tree.map(np.array, params["unembed"]))
    score = self.scores.pop(0)
    if score is None:
      raise interrupt.Interrupted
    names = "pass@1", "pass@1_stderr", "mean_length", "truncated"
    names += "guess_share", "best_style_pass@1"
    return {
      f"eval/{p.name}/{name}": score
      for p in problems
      for name in (*names, f"cons@{p.samples}", f"pass@{p.samples}")
    }


@pytest.fixture
def reads(monkeypatch):
  """The shardings with which the base model was read."""
  seen, read = [], hf.read

  def spy(arrays, shardings, progress):
    seen.append(shardings)
    return read(arrays, shardings, progress)

  monkeypatch.setattr(hf, "read", spy)
  return seen


@pytest.mark.slow
def test_an_evaluation_that_was_stopped_takes_place_on_the_next_start(
  make_config, monkeypatch, tmp_path, reads
):
  """Whichever it was: its checkpoint is there, and counts by its score."""
  config = make_config(
    num_steps=8,
    minibatches=1,
    checkpoint_every=100,
    **SHARED,
    **{"evaluation.every": 2},
  )

  def go_on(*scores):
    evaluations = Evaluations(*scores)
    monkeypatch.setattr(evaluator, "evaluate", evaluations)
    if None not in scores:
      return grpo.train(config, str(tmp_path)), evaluations
    with pytest.raises(interrupt.Interrupted):
      grpo.train(config, str(tmp_path))
    return None, evaluations

  base = models.load(**config.model)[1]["unembed"]
  reads.clear()
  go_on(None)  # In that of the base, after a first update.
  assert checkpoint.latest_step(tmp_path) == 1
  assert len(reads) == 2  # To begin with, and to be measured.
  assert checkpoint.read_scores(tmp_path) == {}
  _, evaluations = go_on(0.125, None)  # In that of step 2.
  assert len(reads) == 3  # To be measured, and for nothing else.
  np.testing.assert_array_equal(evaluations.seen[0], base)
  assert np.any(evaluations.seen[1] != base)
  assert checkpoint.latest_step(tmp_path) == 2
  assert checkpoint.read_scores(tmp_path) == {0: 0.125}
  state, _ = go_on(0.75, 0.5, 0.25, 0.0)
  assert len(reads) == 3 and None not in reads  # Never to the host.
  scores = {0: 0.125, 2: 0.75, 4: 0.5, 6: 0.25, 8: 0.0}
  assert checkpoint.read_scores(tmp_path) == scores
  assert checkpoint.best_step(tmp_path) == 2 and state.train.step == 8
  rows = [r for r in metrics.read(tmp_path) if "eval/x/pass@1" in r]
  assert {r["step"]: r["eval/x/pass@1"] for r in rows} == scores
  assert len(rows) == len(scores)
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert summary["base_pass_at_1"] == 0.125
  assert summary["zero_pass_at_1"] == 0.0
  # A file of metrics that was lost is no reason to measure again.
  (tmp_path / "metrics.jsonl").unlink()
  with pytest.raises(ValueError, match="no evaluation of step 0"):
    go_on(1.0)


@pytest.mark.slow
def test_a_run_that_learns_nothing_any_more_stops_and_says_what_to_do(
  make_config, monkeypatch, tmp_path
):
  """It saves. Before, what teaches is spread over the updates of each round;
  after, updates without a token that teaches move nothing."""
  graded, groups = iter(range(10**6)), collections.defaultdict(list)

  def praise(example, completion):
    """In 8 samplings of 4 groups one group teaches; then none is graded."""
    sampling = next(graded) // 32
    groups[sampling].append(example.id)
    teaches = example.id == groups[sampling][0]
    if sampling >= 8:
      return None
    return sum(map(ord, completion.text)) % 97 / 97 if teaches else 0.5

  monkeypatch.setitem(rewards.REWARDS, "praise", rewards.Reward(praise))
  monkeypatch.setattr(evaluator, "evaluate", Evaluations(0.0))
  config = make_config(
    num_steps=40, checkpoint_every=100, **SHARED, **{DYNAMIC: 1}
  )
  message = "no group of the last 3 rounds has .* nothing could be graded"
  with pytest.raises(ValueError, match=message):
    grpo.train(config, str(tmp_path), update_rows=True)
  assert checkpoint.latest_step(tmp_path) == 14
  updates = metrics.read(tmp_path, "updates.jsonl")
  assert [row["optim/idle"] for row in updates] == 8 * [0] + 6 * [1]
  moved = [row["optim/update_norm"] > 0 for row in updates]
  assert moved == 8 * [True] + 6 * [False]
  rounds = [row for row in metrics.read(tmp_path) if "reward/mean" in row]
  assert [row["reward/frac_zero_std"] for row in rounds[:4]] == 4 * [0.5]
  last = rounds[-1]
  assert last["reward/mean"] is None and last["reward/praise/none_frac"] == 1
  assert last["loss/total"] == last["optim/grad_norm"] == 0
  saved = checkpoint.load_params(tmp_path)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(saved))


def test_rows_that_could_be_too_narrow_are_refused_at_the_start(make_config):
  """By the worst case: the longest prompt, and completions without an end."""
  config = make_config(**{"rows.widths": (8, 15)})
  inspection.check_width(config, 8)
  grpo.check(config)
  config.rows.widths = (8, 14)
  grpo.check(config)  # The prompts may be shorter.
  with pytest.raises(ValueError, match="widths, 14; it must be at least 15"):
    inspection.check_width(config, 8)
  config.rows.widths = (7,)
  with pytest.raises(ValueError, match="widths, 7; it must be at least 8"):
    grpo.check(config)


def test_prompts_that_are_made_when_read_may_fill_their_window(make_config):
  """Those in memory are as long as they are."""

  class Made(collections.UserList):
    """Examples that nobody reads from end to end."""

  config = make_config(**{"sampling.prompt_tokens": 40})
  words = tokenizer.load(**config.tokenizer)
  examples = data.load(**config.dataset)
  inspection.check_dataset(examples, words, config)
  part = lambda dataset: Part(dataset, 1.0, range(40), {})
  inspection.check_dataset(Mixture({"a": part(examples)}), words, config)
  made = Made(examples)
  mixed = Mixture({"a": part(examples), "b": part(made)})
  narrow = config.copy_and_resolve_references()
  narrow.rows.widths = (46, 40)
  for dataset in (made, mixed):
    inspection.check_dataset(dataset, words, config)
    with pytest.raises(ValueError, match="up to 40 tokens .* 46; .* least 47"):
      inspection.check_dataset(dataset, words, narrow)
