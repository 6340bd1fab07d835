"""Norms, rotary positions and the gated feed-forward, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.layers import linear, rms_norm, rotation_of, swiglu
from r1jax.models.layers import rotate as rotate_by
from r1jax.models.presets import preset
from r1jax.models.transformer import Transformer, init, token_logprobs


def rotate(x, positions, theta, interleaved=True):
  size = dict(rope_size=x.shape[-1])
  config = preset("tiny_deepseek", rope_theta=theta, attention=size)
  return rotate_by(x, rotation_of(positions, config), interleaved=interleaved)


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


def turn(x, position, theta):
  """Pairs as complex numbers, turned one by one."""
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
    expected = turn(NORMAL[b, t, n], positions[b, t], 100.0)
    np.testing.assert_allclose(got[b, t, n], expected, atol=1e-4)


def test_rotate_takes_keys_without_heads():
  positions = jnp.asarray(RNG.integers(0, 50, (2, 5)), jnp.int32)
  with_heads = rotate(jnp.asarray(NORMAL), positions, 100.0)
  for n in range(3):
    alone = rotate(jnp.asarray(NORMAL[:, :, n]), positions, 100.0)
    np.testing.assert_array_equal(alone, with_heads[:, :, n])


def test_products_of_rotated_vectors_know_only_their_distance():
  query, key = jnp.asarray(NORMAL[:1, :1]), jnp.asarray(NORMAL[1:, :1])
  at = lambda x, p: np.asarray(rotate(x, jnp.array([[p]]), 1e4))
  product = lambda m, n: np.sum(at(query, m) * at(key, n), -1)
  np.testing.assert_allclose(product(13, 4), product(109, 100), rtol=1e-4)
  assert np.abs(product(13, 4) - product(14, 4)).max() > 0.1


def test_sines_are_made_once_for_all_layers_and_heads():
  # XLA would rather make them in every fusion that turns queries or keys.
  def sines(num_layers):
    model = Transformer(preset("tiny_qwen2", num_layers=num_layers))
    params = jax.eval_shape(lambda: init(model, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    loss = lambda params, tokens: token_logprobs(model, params, tokens).sum()
    text = jax.jit(jax.grad(loss)).lower(params, tokens).compile().as_text()
    return text.count(" sine(")

  assert 1 <= sines(2) == sines(1)


def test_swiglu_is_down_of_silu_gate_times_up():
  x = NORMAL[0, :, 0]
  gate, up = RNG.normal(size=(2, 8, 6)).astype(np.float32)
  down = RNG.normal(size=(6, 8)).astype(np.float32)
  hidden = x @ gate / (1 + np.exp(-(x @ gate))) * (x @ up)
  got = swiglu(
    jnp.asarray(x),
    jnp.asarray(np.stack([gate, up], axis=1)),
    jnp.asarray(down),
  )
  np.testing.assert_allclose(got, hidden @ down, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("made", [(3,), (8,), (2, 7), (2, 3, 4)])
def test_linear_and_its_gradients_are_those_of_einsum(made):
  """Narrow on the left and on the right."""
  draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)
  x, weight, of_out = draw(2, 5, 8), draw(8, *made), draw(2, 5, *made)
  plain = lambda x, weight: jnp.einsum("BTD,D...->BT...", x, weight)
  (got, pull), (expected, plain_pull) = (
    jax.vjp(f, x, weight) for f in (linear, plain)
  )
  for a, b in zip(
    (got, *pull(of_out)), (expected, *plain_pull(of_out)), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_swiglu_is_that_of_its_equation():
  draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)
  for width, hidden in ((8, 6), (6, 8), (7, 7)):
    arguments = draw(2, 5, width), draw(width, 2, hidden), draw(hidden, width)
    of_out = draw(2, 5, width)

    def plain(x, gate_up, down):
      gate, up = x @ gate_up[:, 0], x @ gate_up[:, 1]
      return (gate / (1 + jnp.exp(-gate)) * up) @ down

    pulls = (jax.vjp(f, *arguments)[1](of_out) for f in (swiglu, plain))
    for a, b in zip(*pulls, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
