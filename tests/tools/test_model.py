"""A model from Python: loaded, sampled, scored, updated, saved."""

import numpy as np
import pytest

import r1jax
from r1jax.tools.learner import learner

pytestmark = pytest.mark.slow
PROMPTS = ["6 + 7 =", "9 - 4 + 2 ="]
TINY = {
  "cpu_devices": 1,
  "mesh.data": 1,
  "prompts_per_round": 2,
  "group_size": 4,
  "optimizer.warmup_steps": 0,
  "optimizer.learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def model():
  return r1jax.load()


@pytest.fixture(scope="module")
def samples(model):
  return model.sample(PROMPTS, 4, max_tokens=16, seed=1)


@pytest.fixture(scope="module")
def config():
  return r1jax.load_config("experiments/demo.py", TINY)


@pytest.fixture(scope="module")
def first(model, config, samples):
  """(learner, its first update, the metrics of that)"""
  rewards = [1, 0, 0, 0, 0, 0, 0, 1]
  begun = learner(model, config)
  return begun, *begun.update(samples, rewards)


def test_samples_come_group_after_group(model, samples):
  assert [x.prompt for x in samples.examples] == sorted(PROMPTS * 4)
  assert samples.rollout.lengths.shape == (2, 4)
  lengths = [c.num_tokens for c in samples.completions]
  assert lengths == samples.rollout.lengths.reshape(-1).tolist()
  again = model.sample(PROMPTS, 4, max_tokens=16, seed=1)
  assert again.completions == samples.completions
  other = model.sample(PROMPTS, 4, max_tokens=16, seed=2)
  assert other.completions != samples.completions


def test_the_trainers_log_probabilities_are_the_samplers(model, samples):
  rollout = samples.rollout
  assert np.any(rollout.logprobs != 0)
  np.testing.assert_allclose(
    model.score(rollout), rollout.logprobs, atol=2e-4, rtol=0
  )


def test_log_probabilities_of_a_text_do_not_depend_on_its_neighbours(model):
  alone = model.logprobs(["6 + 7 = 13"])[0]
  beside = model.logprobs(["6 + 7 = 13", "spell it backward " * 4])[0]
  ids = model.tokenizer.encode("6 + 7 = 13")
  assert len(alone) == len(ids) and alone[0] == 0
  np.testing.assert_allclose(beside, alone, atol=1e-5)
  np.testing.assert_array_equal(model.logprobs([ids])[0], alone)


def test_a_model_is_saved_and_loaded(model, tmp_path):
  model.save(tmp_path / "model")
  again = r1jax.load(tmp_path / "model")
  assert again.config == model.config and repr(again) == repr(model)
  text = ["6 + 7 = 13"]
  np.testing.assert_array_equal(
    again.logprobs(text)[0], model.logprobs(text)[0]
  )


def test_what_is_no_model_is_refused(tmp_path):
  with pytest.raises(ValueError, match="neither the workdir of a run"):
    (tmp_path / "config.json").write_text("{}")
    r1jax.load(tmp_path)


def test_the_first_update_is_on_policy_and_leaves_the_learner_alone(
  first, samples
):
  before, after, metrics = first
  assert metrics["ratio/max"] == pytest.approx(1, abs=1e-3)
  assert metrics["kl/ref"] == pytest.approx(0, abs=1e-6)
  assert metrics["optim/grad_norm"] > 0
  assert (before.step, after.step) == (0, 1)
  _, again = before.update(samples, [1, 0, 0, 0, 0, 0, 0, 1])
  assert again == metrics


def test_what_is_rewarded_becomes_likelier(first, samples):
  before, after, _ = first
  change = after.model.score(samples.rollout) - before.model.score(
    samples.rollout
  )
  mean = change.sum(-1) / samples.rollout.lengths
  assert mean[0, 0] > mean[0, 1:].mean()
  assert mean[1, 3] > mean[1, :3].mean()


def test_completions_without_a_reward_teach_nothing(first, samples):
  before, _, _ = first
  after, metrics = before.update(samples, [np.nan] * 8)
  assert metrics["optim/idle"] == 1
  np.testing.assert_array_equal(
    after.model.params["embed"], before.model.params["embed"]
  )


def test_wrong_use_of_a_learner_is_explained(model, config, samples):
  begun = learner(model, config)
  with pytest.raises(ValueError, match="prompts_per_round"):
    begun.update(model.sample(PROMPTS * 2, 4, max_tokens=16), [0.0] * 16)
  other = r1jax.load_config("experiments/demo_base.py")
  with pytest.raises(ValueError, match="'sft', and not of 'grpo'"):
    learner(model, other)


def test_an_evaluation_has_the_metrics_of_each_task(model):
  examples = [
    r1jax.Example("6 + 7 =", "13", "math/sums"),
    r1jax.Example("Say no.", "no", "talk"),
  ]
  measured = model.evaluate(examples, 2, max_tokens=16)
  assert measured.keys() == {"sums", "talk"}
  assert 0 <= measured["sums"]["pass@1"] <= 1
  assert measured == model.evaluate(examples, 2, max_tokens=16) or any(
    value != value for row in measured.values() for value in row.values()
  )
