"""In RL, a policy follows a teacher on what it has sampled itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import hf
from r1jax.data import tokenizer
from r1jax.models import transformer
from r1jax.models.presets import preset
from r1jax.runtime import metrics
from r1jax.training import distillation, grpo
from r1jax.types import Batch

pytestmark = pytest.mark.usefixtures("compiled_once")
ROWS = np.array([[3, 5, 7, 9, 11, 4], [6, 4, 8, 0, 0, 0]], np.int32)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, base, random_params):
  """A model of another family that prefers the letter a."""
  config = preset(
    "tiny_qwen2", vocab_size=40, width=16, num_layers=1, dense_width=16
  )
  params = random_params(config)
  (letter,) = tokenizer.load(base).encode("a")[-1:]
  # The final state is constant and names one token.
  params["final_norm"]["scale"] = np.zeros(16, np.float32)
  params["final_norm"]["scale"][0] = 1.0
  embed = np.asarray(params["embed"]).copy()
  embed[:, 0] = 0.5
  embed[letter, 0] = 4.0
  params["embed"] = embed
  folder = tmp_path_factory.mktemp("teacher")
  hf.save(folder / "model", config, params, tokenizer=base, provenance={})
  return str(folder / "model")


@pytest.fixture
def policy(toy):
  return toy[0], jax.tree.map(jnp.asarray, toy[1])


def batch_of(model, params, advantages):
  """A microbatch that the model itself has sampled at temperature 0.7."""
  packed = transformer.pack_rows(ROWS)
  hidden = transformer.forward(model, params, packed).hidden
  logprobs, _ = transformer.logprobs(
    params, hidden, packed.targets, temperature=0.7, vocab_size=38
  )
  weights = jnp.asarray(packed.origin >= 0, jnp.float32) * 0.25
  return Batch(
    packed=packed,
    weights=weights,
    advantages=advantages * jnp.ones(ROWS.shape),
    sampler_logprobs=logprobs,
  )


def test_the_advantage_of_a_token_is_what_the_teacher_thinks_of_it(policy):
  model, params = policy
  batch = batch_of(model, params, 0.5)
  other = jax.tree.map(lambda x: x * 1.3, params)
  marked = distillation.guided(model, 38, 0.7, 2.0, other, batch)
  theirs = batch_of(model, other, 0.0).sampler_logprobs
  expected = 0.5 + 2.0 * np.where(
    batch.weights > 0, np.asarray(theirs) - batch.sampler_logprobs, 0.0
  )
  np.testing.assert_allclose(marked.advantages, expected, atol=1e-5)
  assert np.ptp(expected) > 0.05


def test_a_policy_that_is_its_teacher_has_nothing_to_learn(policy):
  model, params = policy
  batch = batch_of(model, params, 0.0)
  marked = distillation.guided(model, 38, 0.7, 1.0, params, batch)
  np.testing.assert_allclose(marked.advantages, 0.0, atol=1e-5)


@pytest.mark.slow
def test_the_policy_comes_to_write_as_its_teacher(
  make_config, teacher, tmp_path
):
  """Without any reward: `praise` is measured and not added."""
  config = make_config(
    **{
      "rewards.praise": 0.0,
      "loss.kl_coefficient": 0.0,
      "optimizer.warmup_steps": 0,
    }
  )
  config.teacher = dict(path=teacher, weight=1.0, dtype="float32")
  grpo.check(config)
  grpo.train(config, str(tmp_path), sinks=())
  rows = [r for r in metrics.read(tmp_path) if "reward/praise/mean" in r]
  first, last = (
    np.mean([r["reward/praise/mean"] for r in x]) for x in (rows[:2], rows[-2:])
  )
  assert last > first + 0.3


def test_a_teacher_without_a_path_is_refused(make_config):
  config = make_config()
  config.teacher = dict(weight=0.5)
  with pytest.raises(ValueError, match="section 'teacher' has no path"):
    grpo.check(config)
