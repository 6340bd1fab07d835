"""The plain ops, which are the kernels' specification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import ops

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


@pytest.mark.parametrize("chunk", [4096, 4, 11, 3])
@pytest.mark.parametrize("setting", SETTINGS)
def test_linear_logprobs_are_log_softmax_of_the_logits(setting, chunk):
  got = ops.linear_logprobs(HIDDEN, UNEMBED, TARGETS, chunk=chunk, **setting)
  expected = naive(HIDDEN, UNEMBED, TARGETS, **setting)
  for one, other in zip(got, expected):
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("chunk", [4096, 4])
def test_so_are_their_gradients(chunk):
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


def visible(t, s, k_start, prefix_end):
  return k_start[t] <= s <= t or s < prefix_end[t]


@pytest.mark.parametrize("block", [128, 5])
def test_attention_sees_its_text_and_the_shared_prefix(monkeypatch, block):
  monkeypatch.setattr(ops, "BLOCK", block)
  rows, size, heads, width, value_width = 2, 13, 2, 4, 3
  draw = lambda w: RNG.normal(size=(rows, size, heads, w)).astype(np.float32)
  queries, keys, values = draw(width), draw(width), draw(value_width)
  # Row 0: a prefix of 4, and three texts that share it. Row 1: three texts.
  k_start = [[0] * 4 + [4] * 3 + [7] * 4 + [11] * 2, [0] * 6 + [6] * 6 + [12]]
  prefix_end = [[0] * 4 + [4] * 9, [0] * 13]
  got = ops.attention(
    *map(jnp.asarray, (queries, keys, values)),
    scale=0.5,
    k_start=jnp.asarray(k_start),
    prefix_end=jnp.asarray(prefix_end),
  )
  for b, t, n in np.ndindex(rows, size, heads):
    seen = [s for s in range(size) if visible(t, s, k_start[b], prefix_end[b])]
    scores = np.array([queries[b, t, n] @ keys[b, s, n] * 0.5 for s in seen])
    weights = np.exp(scores) / np.exp(scores).sum()
    expected = weights @ values[b, seen, n]
    np.testing.assert_allclose(got[b, t, n], expected, atol=1e-5)


def test_attention_to_nothing_else_is_attention_to_oneself():
  x = jnp.asarray(RNG.normal(size=(1, 4, 1, 3)), jnp.float32)
  slots = jnp.arange(4)[None]
  got = ops.attention(
    x, x, x, scale=1.0, k_start=slots, prefix_end=jnp.zeros_like(slots)
  )
  np.testing.assert_allclose(got, x, rtol=1e-6)
