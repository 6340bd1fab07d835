"""Policies on packed rows, and their copies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.presets import preset
from r1jax.models.transformer import Transformer, pack_rows
from r1jax.models.weights import weights
from r1jax.rollouts import slots
from r1jax.training import policy
from r1jax.types import Batch

OWN = ("weight", "bias", "scale")  # Of routers and norms: they keep theirs.


@pytest.fixture(params=["tiny_qwen2", "tiny_deepseek"])
def model(request):
  """Dense and with experts, in the dtype of production."""
  return Transformer(preset(request.param, compute_dtype="bfloat16"))


def draw(config):
  """Float32 weights none of which bfloat16 has, norms and biases included."""
  rng = np.random.default_rng(0)
  centre = lambda path: float(path[-1].key == "scale")
  return jax.tree.map_with_path(
    lambda path, w: jnp.float32(rng.normal(centre(path), 0.1, w.shape)),
    weights(config),
  )


def test_a_fresh_reference_is_no_nat_away_from_its_policy(model):
  """In bfloat16, where a policy of float32 weights rounds most of them."""
  params = draw(model.config)
  reference = policy.reference_copy(model.config, params)
  forward = functools.partial(
    policy.policy_forward, model, model.config.vocab_size, 1.0
  )
  score = policy.make_score(forward)
  tokens = np.random.default_rng(1).integers(0, 99, (4, 24))
  batch = Batch(packed=pack_rows(tokens), weights=jnp.ones((4, 24)))
  ours, theirs = (np.array(score(x, batch)) for x in (params, reference))
  assert ours.min() < -1
  np.testing.assert_array_equal(ours, theirs)
  # No forward pass rounds the scales of its norms.
  for path, _ in jax.tree.leaves_with_path(params):
    if path[-1].key == "scale" and path[0].key != "mtp":
      rounded = jax.tree.map_with_path(
        lambda at, x, path=path: (
          x.astype(jnp.bfloat16).astype(x.dtype) if at == path else x
        ),
        params,
      )
      assert np.any(np.array(score(rounded, batch)) != ours), path


def test_sampler_and_reference_hold_the_same_weights(model):
  """Cast but for norms and routers; the sampler has no MTP blocks."""
  params = draw(model.config)
  reference = policy.reference_copy(model.config, params)
  sampler = slots.cast(model.config, params)
  reference.pop("mtp", None)
  assert jax.tree.structure(sampler) == jax.tree.structure(reference)
  leaves = jax.tree.leaves_with_path(reference)
  for (path, x), y in zip(leaves, jax.tree.leaves(sampler), strict=True):
    name = path[-1].key
    kept = name in OWN
    assert x.dtype == y.dtype == (jnp.float32 if kept else jnp.bfloat16), name
    assert np.array(x).tobytes() == np.array(y).tobytes()


def test_the_reference_is_a_hard_copy():
  """Updates donate the policy's arrays."""
  config = preset("tiny_qwen2", compute_dtype="float32")
  params = draw(config)
  copied = policy.reference_copy(config, params)
  for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(copied)):
    assert x.unsafe_buffer_pointer() != y.unsafe_buffer_pointer()
