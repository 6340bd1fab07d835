"""Logprobs from hidden states, against `jax.nn.log_softmax`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from r1jax import ops

RNG = np.random.default_rng(0)
M, D, V, TRUE_V = 11, 6, 50, 47
HIDDEN = jnp.asarray(RNG.normal(size=(M, D)), jnp.float32)
UNEMBED = jnp.asarray(RNG.normal(size=(D, V)), jnp.float32)
TARGETS = jnp.asarray(RNG.integers(0, TRUE_V, M), jnp.int32)
WEIGHTS = jnp.asarray(RNG.normal(size=(M,)), jnp.float32)


def naive(hidden, unembed, targets, temperature=1.0, vocab_size=None):
  logits = hidden @ unembed[:, :vocab_size] / temperature
  logprobs = jax.nn.log_softmax(logits)
  entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
  return logprobs[jnp.arange(len(targets)), targets], entropy


def gradient(function, **kwargs):
  def scalar(hidden, unembed):
    logprobs, entropy = function(hidden, unembed, TARGETS, **kwargs)
    return jnp.sum(WEIGHTS * logprobs) + jnp.sum(entropy * WEIGHTS**2)

  return jax.jit(jax.grad(scalar, argnums=(0, 1)))(HIDDEN, UNEMBED)


SETTINGS = [
  dict(),
  dict(temperature=0.6),
  dict(vocab_size=TRUE_V),
  dict(temperature=1.7, vocab_size=TRUE_V),
]


@pytest.mark.parametrize("chunk", [4096, 4])
@pytest.mark.parametrize("setting", SETTINGS)
def test_linear_logprobs_are_log_softmax_of_the_logits(setting, chunk):
  got = ops.linear_logprobs(HIDDEN, UNEMBED, TARGETS, chunk=chunk, **setting)
  expected = naive(HIDDEN, UNEMBED, TARGETS, **setting)
  for one, other in zip(got, expected):
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("chunk", [4096, 4])
def test_gradients_equal_those_of_log_softmax(chunk):
  setting = SETTINGS[-1]
  got = gradient(ops.linear_logprobs, chunk=chunk, **setting)
  for one, other in zip(got, gradient(naive, **setting)):
    np.testing.assert_allclose(one, other, atol=2e-5)


def test_padding_of_the_vocabulary_has_no_probability_and_no_gradient():
  tempting = UNEMBED.at[:, TRUE_V:].set(50.0)
  for unembed in (UNEMBED, tempting):
    logprobs, entropy = ops.linear_logprobs(
      jnp.tile(HIDDEN[:1], (TRUE_V, 1)),
      unembed,
      jnp.arange(TRUE_V),
      vocab_size=TRUE_V,
    )
    assert jnp.exp(logprobs).sum() == pytest.approx(1.0, abs=1e-5)
    assert entropy[0] == pytest.approx(-jnp.sum(jnp.exp(logprobs) * logprobs))
  _, grad = gradient(ops.linear_logprobs, vocab_size=TRUE_V)
  np.testing.assert_array_equal(grad[:, TRUE_V:], 0.0)


def test_the_entropy_of_equal_logits_is_the_log_of_their_number():
  logprobs, entropy = ops.linear_logprobs(
    jnp.zeros((3, D)), UNEMBED, TARGETS[:3], vocab_size=TRUE_V
  )
  np.testing.assert_allclose(entropy, np.log(TRUE_V), rtol=1e-6)
  np.testing.assert_allclose(logprobs, -np.log(TRUE_V), rtol=1e-6)


def test_large_logits_do_not_overflow():
  logprobs, entropy = ops.linear_logprobs(1e4 * HIDDEN, UNEMBED, TARGETS)
  assert np.all(np.isfinite(logprobs)) and np.all(np.isfinite(entropy))
  assert np.all(entropy >= -1e-3)


def test_logits_are_summed_in_float32():
  low = lambda x: x.astype(jnp.bfloat16)
  logprobs, entropy = ops.linear_logprobs(low(HIDDEN), low(UNEMBED), TARGETS)
  assert logprobs.dtype == entropy.dtype == jnp.float32
  exact = naive(
    low(HIDDEN).astype(jnp.float32), low(UNEMBED).astype(jnp.float32), TARGETS
  )
  np.testing.assert_allclose(logprobs, exact[0], atol=1e-5)


def rows_of(*shape, seed):
  return jnp.asarray(
    np.random.default_rng(seed).normal(size=shape), jnp.float32
  )


@given(seed=st.integers(0, 999), chunk=st.sampled_from([1, 5, 8, 24, 4096]))
@settings(max_examples=3, deadline=None)
def test_only_counted_tokens_have_values_and_gradients(seed, chunk):
  rows, width = 3, 8
  hidden = rows_of(rows, width, D, seed=seed)
  weights = rows_of(rows, width, seed=seed + 1)
  rng = np.random.default_rng(seed)
  targets = jnp.asarray(rng.integers(0, V, (rows, width)), jnp.int32)
  counted = jnp.asarray(rng.random((rows, width)) < rng.random())

  def scalar(function, hidden, unembed, **kwargs):
    out = function(hidden, unembed, targets, **kwargs)
    return sum(jnp.sum(jnp.where(counted, weights * x, 0.0)) for x in out), out

  def plain(hidden, unembed, targets):
    flat = naive(hidden.reshape(-1, D), unembed, targets.reshape(-1))
    return tuple(x.reshape(rows, width) for x in flat)

  run = lambda function, **kwargs: jax.value_and_grad(
    lambda h, w: scalar(function, h, w, **kwargs), (0, 1), has_aux=True
  )(hidden, UNEMBED)
  got = run(ops.linear_logprobs, counted=counted, chunk=chunk)
  (value, out), gradients = run(plain)
  expected = (value, tuple(jnp.where(counted, x, 0.0) for x in out)), gradients
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
    np.testing.assert_allclose(one, other, atol=5e-5)


def test_tokens_that_are_not_counted_are_never_read():
  hidden = jnp.tile(HIDDEN[None, :8], (2, 1, 1))
  counted = jnp.zeros((2, 8), bool).at[:, jnp.array([1, 4, 5, 7])].set(True)
  hidden = jnp.where(counted[..., None], hidden, jnp.nan)

  def total(hidden, unembed):
    targets = jnp.tile(TARGETS[None, :8], (2, 1))
    out = ops.linear_logprobs(
      hidden, unembed, targets, counted=counted, chunk=4
    )
    return jnp.sum(out[0] + out[1])

  for value in jax.tree.leaves(
    jax.value_and_grad(total, (0, 1))(hidden, UNEMBED)
  ):
    assert np.all(np.isfinite(value))


def test_the_vocabulary_and_the_rows_may_be_split_over_devices():
  mesh = jax.make_mesh((2, 4), ("data", "tensor"), (AxisType.Auto,) * 2)
  place = lambda x, *axes: jax.device_put(
    x, NamedSharding(mesh, PartitionSpec(*axes))
  )
  hidden, unembed = rows_of(4, 8, D, seed=1), rows_of(D, 48, seed=2)
  targets = jnp.tile(TARGETS[:8], (4, 1))
  counted = jnp.arange(32).reshape(4, 8) % 3 > 0

  @jax.jit
  def total(hidden, unembed, targets, counted):
    out = ops.linear_logprobs(
      hidden, unembed, targets, counted=counted, chunk=8
    )
    return jnp.sum(out[0] * targets + out[1]), out

  run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
  split = run(
    place(hidden, "data"),
    place(unembed, None, "tensor"),
    place(targets, "data"),
    place(counted, "data"),
  )
  alone = run(hidden, unembed, targets, counted)
  for one, other in zip(jax.tree.leaves(split), jax.tree.leaves(alone)):
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.optimized
@pytest.mark.slow
def test_memory_of_logprobs_is_a_small_share_of_the_naive_forms():
  """For [4, 2048] tokens, width 1024 and R1's vocabulary, as XLA reports it."""
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
  tokens, width, vocabulary = 4 * 2048, 1024, 129_280

  def temporaries(function):
    def loss(hidden, unembed, targets):
      logprobs, entropy = function(hidden, unembed, targets)
      return jnp.sum(logprobs + entropy)

    compiled = (
      jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
      .lower(
        shape(tokens, width),
        shape(width, vocabulary),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
      )
      .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes

  gradient = 4 * width * vocabulary
  ours = temporaries(ops.linear_logprobs) - gradient
  assert ours < temporaries(naive) / 8
