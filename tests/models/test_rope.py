"""RMSNorm and RoPE, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.layers import RMSNorm
from r1jax.models.presets import preset
from r1jax.models.rope import rotate as rotate_by
from r1jax.models.rope import rotation
from r1jax.models.transformer import Transformer, init, token_logprobs


def rotate(x, positions, theta, interleaved=True):
  size = dict(rope_size=x.shape[-1])
  config = preset("tiny_deepseek", rope_theta=theta, attention=size)
  return rotate_by(x, rotation(positions, config), interleaved=interleaved)


def rms_norm(x, scale, epsilon):
  return RMSNorm(epsilon).apply({"params": {"scale": scale}}, x)


RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(2, 5, 3, 8)).astype(np.float32)


def test_rms_norm_divides_by_the_root_mean_square():
  x, scale = NORMAL[0, 0], NORMAL[1, 0, 0]
  expected = [
    row / np.sqrt(np.mean(row.astype(np.float64) ** 2) + 1e-6) * scale
    for row in x
  ]
  got = rms_norm(jnp.asarray(x), jnp.asarray(scale), 1e-6)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_rms_norm_of_nothing_is_finite():
  got = rms_norm(jnp.zeros((2, 8)), jnp.ones(8), 1e-6)
  np.testing.assert_array_equal(got, np.zeros((2, 8)))


def test_rms_norm_computes_in_float32_whatever_comes_in():
  x = jnp.full((1, 4096), 300.0, jnp.bfloat16)  # Squares sum beyond 2^24.
  got = rms_norm(x, jnp.ones(4096), 0.0)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got.astype(np.float32), 1.0)


def rotate_pairs(x, position, theta):
  """RoPE by complex numbers."""
  out = np.zeros(len(x))
  for i in range(0, len(x), 2):
    angle = position * theta ** (-i / len(x))
    turned = complex(x[i], x[i + 1]) * np.exp(1j * angle)
    out[i // 2], out[len(x) // 2 + i // 2] = turned.real, turned.imag
  return out


def test_rotate_turns_interleaved_pairs():
  positions = np.array([[0, 1, 2, 3, 40], [7, 7, 0, 900, 5]], np.int32)
  got = rotate(jnp.asarray(NORMAL), jnp.asarray(positions), 100.0)
  for b, t, n in np.ndindex(2, 5, 3):
    expected = rotate_pairs(NORMAL[b, t, n], positions[b, t], 100.0)
    np.testing.assert_allclose(got[b, t, n], expected, atol=1e-4)


def test_rotate_takes_keys_without_heads():
  positions = jnp.asarray(RNG.integers(0, 50, (2, 5)), jnp.int32)
  with_heads = rotate(jnp.asarray(NORMAL), positions, 100.0)
  for n in range(3):
    alone = rotate(jnp.asarray(NORMAL[:, :, n]), positions, 100.0)
    np.testing.assert_array_equal(alone, with_heads[:, :, n])


def test_products_of_rotated_vectors_depend_only_on_their_distance():
  query, key = jnp.asarray(NORMAL[:1, :1]), jnp.asarray(NORMAL[1:, :1])
  at = lambda x, p: np.asarray(rotate(x, jnp.array([[p]]), 1e4))
  product = lambda m, n: np.sum(at(query, m) * at(key, n), -1)
  np.testing.assert_allclose(product(13, 4), product(109, 100), rtol=1e-4)
  assert np.abs(product(13, 4) - product(14, 4)).max() > 0.1


@pytest.mark.slow
@pytest.mark.optimized
def test_sines_are_computed_once_for_all_layers_and_heads():
  # XLA would rather make them in every fusion that turns queries or keys.
  def sines(num_layers):
    model = Transformer(preset("tiny_qwen2", num_layers=num_layers))
    params = jax.eval_shape(lambda: init(model, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    loss = lambda params, tokens: token_logprobs(model, params, tokens).sum()
    text = jax.jit(jax.grad(loss)).lower(params, tokens).compile().as_text()
    return text.count(" sine(")

  assert 1 <= sines(2) == sines(1)
