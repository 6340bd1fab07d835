"""What surrounds the loss: policies that are asked, and copied."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.presets import preset
from r1jax.models.transformer import Transformer, pack_rows
from r1jax.models.weights import is_weight, weights
from r1jax.rollouts import slots
from r1jax.training import objective

OWN = ("router", "router_bias")  # And every norm: they keep their precision.


@pytest.fixture(params=["tiny_qwen2", "tiny_deepseek"])
def model(request):
  """Dense and with experts, in the dtype of production."""
  return Transformer(preset(request.param, compute_dtype="bfloat16"))


def draw(config):
  """Float32 weights none of which bfloat16 has, norms and biases included."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda w: jnp.float32(
      rng.normal(1.0 if w.init == "ones" else 0.0, 0.1, w.shape)
    ),
    weights(config),
    is_leaf=is_weight,
  )


def test_a_fresh_reference_is_no_nat_away_from_its_policy(model):
  """In bfloat16, where a policy of float32 weights rounds most of them."""
  params = draw(model.config)
  reference = objective.reference_copy(model.config, params)
  policy = functools.partial(objective.ask, model, model.config.vocab_size, 1.0)
  score = objective.make_score(policy)
  tokens = np.random.default_rng(1).integers(0, 99, (4, 24))
  rows = jax.tree.map(
    lambda x: jnp.asarray(x)[:, None], (pack_rows(tokens), None)
  )
  ours, theirs = (np.array(score(x, rows, 1)) for x in (params, reference))
  assert ours.min() < -1
  np.testing.assert_array_equal(ours, theirs)


def test_sampler_and_reference_hold_the_same_weights(model):
  """Cast but for norms and routers; the sampler has no MTP blocks."""
  params = draw(model.config)
  reference = objective.reference_copy(model.config, params)
  sampler = slots.cast(model.config, params)
  reference.pop("mtp", None)
  assert jax.tree.structure(sampler) == jax.tree.structure(reference)
  leaves = jax.tree.leaves_with_path(reference)
  for (path, x), y in zip(leaves, jax.tree.leaves(sampler), strict=True):
    name = path[-1].key
    kept = name in OWN or name.endswith("norm")
    assert x.dtype == y.dtype == (jnp.float32 if kept else jnp.bfloat16), name
    assert np.array(x).tobytes() == np.array(y).tobytes()


def test_the_reference_is_a_hard_copy():
  """Updates donate the policy's arrays."""
  config = preset("tiny_qwen2", compute_dtype="float32")
  params = draw(config)
  copied = objective.reference_copy(config, params)
  for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(copied)):
    assert x.unsafe_buffer_pointer() != y.unsafe_buffer_pointer()
