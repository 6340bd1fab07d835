"""All implementations of routed experts give the same result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import ops
from r1jax.ops import experts
from r1jax.ops.chunks import over_chunks

D, F = 6, 5


def random_inputs(rng, tokens, count, per_token, skew=0.0):
  """Weights, tokens with their gates, and distinct experts for each token."""
  normal = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)
  weights = normal(count, D, 2, F), normal(count, F, D)
  scores = rng.normal(size=(tokens, count)) + skew * np.arange(count)
  indices = np.argsort(-scores, axis=1)[:, :per_token]
  floats = normal(tokens, D), normal(tokens, per_token)
  return weights, floats, jnp.asarray(indices, jnp.int32)


def oracle(weights, floats, indices):
  """The sum of experts, by loops over tokens and experts."""
  (gate_up, down), (x, gates) = jax.tree.map(np.float64, (weights, floats))
  out = np.zeros(x.shape)
  for m, k in np.ndindex(indices.shape):
    e = indices[m, k]
    gate, up = np.einsum("D,DcF->cF", x[m], gate_up[e])
    out[m] += gates[m, k] * ((gate / (1 + np.exp(-gate)) * up) @ down[e])
  return out


def gradients(implementation, weights, floats, indices, d_out):
  loss = lambda w, f: jnp.sum(implementation(w, f, indices) * d_out)
  return jax.grad(loss, argnums=(0, 1))(weights, floats)


IMPLEMENTATIONS = [
  jax.jit(experts.dense),
  jax.jit(experts.ragged),
  jax.jit(experts.blocked),
]


@pytest.mark.parametrize(
  "tokens, sizes", [(1, (4, 2)), (19, (2, 1)), (19, (7, 3)), (40, (33, 8))]
)
def test_each_token_goes_through_its_experts(tokens, sizes):
  """Even if one expert gets all tokens and most get none."""
  for seed, skew in enumerate([0.0, 0.0, 0.5, 3.0]):
    inputs = random_inputs(np.random.default_rng(seed), tokens, *sizes, skew)
    expected = oracle(*inputs)
    for implementation in IMPLEMENTATIONS:
      np.testing.assert_allclose(implementation(*inputs), expected, atol=2e-4)


@pytest.mark.parametrize("implementation", [experts.ragged, experts.blocked])
@pytest.mark.parametrize("tokens, skew", [(50, 0.0), (50, 3.0), (4, 0.0)])
def test_gradients_equal_those_of_the_dense_form(implementation, tokens, skew):
  rng = np.random.default_rng(1)
  inputs = random_inputs(rng, tokens, 7, 3, skew)
  d_out = jnp.asarray(rng.normal(size=(tokens, D)), jnp.float32)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4),
    gradients(jax.jit(implementation), *inputs, d_out),
    gradients(experts.dense, *inputs, d_out),
  )


@pytest.mark.parametrize("chunk", [7, 64])
def test_chunks_of_tokens_give_the_same_forward_and_backward(chunk):
  rng = np.random.default_rng(2)
  inputs = random_inputs(rng, 50, 7, 3)
  d_out = jnp.asarray(rng.normal(size=(50, D)), jnp.float32)
  chunked = lambda *inputs: over_chunks(experts.blocked, chunk, *inputs)
  np.testing.assert_allclose(chunked(*inputs), oracle(*inputs), atol=2e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4),
    gradients(jax.jit(chunked), *inputs, d_out),
    gradients(experts.dense, *inputs, d_out),
  )


def test_experts_that_are_not_chosen_do_not_matter():
  rng = np.random.default_rng(3)
  (gate_up, down), (x, gates), indices = random_inputs(rng, 20, 5, 2)
  indices = jnp.where(indices == 1, 0, indices)
  run = lambda down: ops.expert_swiglu(
    x, gates, indices, gate_up, down, chunk=8
  )
  spoiled = down.at[1].set(100.0)
  np.testing.assert_array_equal(run(down), run(spoiled))


WINDOWS = [
  functools.partial(experts.windowed, experts.blocked, 7),
  functools.partial(experts.windowed, experts.ragged, 64),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS + WINDOWS)
def test_indices_that_are_no_expert_contribute_nothing(implementation):
  """Neither to the output nor to the gradients."""
  rng = np.random.default_rng(4)
  weights, floats, indices = random_inputs(rng, 30, 6, 3)
  d_out = jnp.asarray(rng.normal(size=(30, D)), jnp.float32)
  local = lambda w: jax.tree.map(lambda w: w[2:4], w)
  local_indices = indices - 2
  floats_of = lambda x, gates: (
    x,
    jnp.where((local_indices < 0) | (local_indices > 1), 0, gates),
  )

  def local_loss(weights, floats):
    return jnp.sum(
      implementation(local(weights), floats, local_indices) * d_out
    )

  def dense_loss(weights, floats):
    return jnp.sum(experts.dense(weights, floats_of(*floats), indices) * d_out)

  with jax.debug_nans(True):
    got = jax.jit(jax.value_and_grad(local_loss, argnums=(0, 1)))(
      weights, floats
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4),
    got,
    jax.jit(jax.value_and_grad(dense_loss, argnums=(0, 1)))(weights, floats),
  )


@pytest.mark.optimized
@pytest.mark.slow
def test_memory_is_bounded_by_the_chunk():
  """The sizes make buffers larger than the gradient of the weights."""

  def temporaries(tokens):
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    loss = lambda x, gates, indices, gate_up, down: jnp.sum(
      ops.expert_swiglu(x, gates, indices, gate_up, down, chunk=1024)
    )
    lowered = jax.jit(jax.grad(loss, argnums=(0, 3, 4))).lower(
      shape(tokens, 64),
      shape(tokens, 8),
      jax.ShapeDtypeStruct((tokens, 8), jnp.int32),
      shape(16, 64, 2, 64),
      shape(16, 64, 64),
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes

  small, large = temporaries(4096), temporaries(32_768)
  tokens_themselves = 4 * (64 + 8 + 8) * (32_768 - 4096)
  assert large - small < 4 * tokens_themselves  # Buffers alone would be 16.
