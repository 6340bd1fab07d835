"""The losses of reward models."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.preference import binary_cross_entropy, bradley_terry

RNG = np.random.default_rng(0)
CHOSEN, REJECTED = jnp.asarray(RNG.normal(size=(2, 7)) * 3, jnp.float32)
LABELS = jnp.asarray(RNG.random(7) < 0.5, jnp.float32)
WEIGHTS = jnp.array([0.2, 0.0, 0.1, 0.3, 0.0, 0.25, 0.15])


def sigmoid(x):
  return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_bradley_terry_is_the_likelihood_of_the_preferences(margin):
  expected = 0.0
  for chosen, rejected, weight in zip(CHOSEN, REJECTED, WEIGHTS):
    expected -= weight * math.log(sigmoid(chosen - rejected - margin))
  loss = bradley_terry(CHOSEN, REJECTED, WEIGHTS, margin=margin)
  assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_binary_cross_entropy_is_the_likelihood_of_the_labels():
  expected = 0.0
  for score, label, weight in zip(CHOSEN, LABELS, WEIGHTS):
    p = sigmoid(score)
    expected -= weight * math.log(p if label else 1 - p)
  loss = binary_cross_entropy(CHOSEN, LABELS, WEIGHTS)
  assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_gradients_are_the_probabilities_of_the_errors():
  wrong = lambda x: np.array([sigmoid(-v) for v in x])
  pairs = jax.grad(bradley_terry, argnums=(0, 1))(CHOSEN, REJECTED, WEIGHTS)
  expected = -WEIGHTS * wrong(CHOSEN - REJECTED)
  np.testing.assert_allclose(pairs[0], expected, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(pairs[1], -expected, rtol=1e-5, atol=1e-7)
  points = jax.grad(binary_cross_entropy)(CHOSEN, LABELS, WEIGHTS)
  expected = WEIGHTS * (1 - wrong(CHOSEN) - LABELS)
  np.testing.assert_allclose(points, expected, rtol=1e-5, atol=1e-7)


def losses(size=None, at=0, hole=None):
  part = slice(at, None if size is None else at + size)
  scores = CHOSEN if hole is None else jnp.where(WEIGHTS > 0, CHOSEN, hole)
  weights = WEIGHTS[part]
  yield jax.value_and_grad(bradley_terry)(scores[part], REJECTED[part], weights)
  yield jax.value_and_grad(binary_cross_entropy)(
    scores[part], LABELS[part], weights
  )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_split_of_a_batch_adds_up(size):
  parts = [[*losses(size, at)] for at in range(0, 7, size)]
  for (whole, gradient), *split in zip(losses(), *parts):
    assert sum(loss for loss, _ in split) == pytest.approx(float(whole), 1e-6)
    joined = np.concatenate([part for _, part in split])
    np.testing.assert_array_equal(joined, gradient)


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_scores_without_a_weight_are_ignored(hole):
  for (loss, gradient), (whole, of_whole) in zip(losses(hole=hole), losses()):
    assert loss == whole
    np.testing.assert_array_equal(gradient, of_whole)


def test_scores_far_apart_have_finite_losses_and_gradients():
  far, one = jnp.array([1e4]), jnp.ones(1)
  value, gradient = jax.value_and_grad(bradley_terry)(-far, far, one)
  assert (float(value), float(gradient[0])) == (2e4, -1.0)
  value, gradient = jax.value_and_grad(binary_cross_entropy)(-far, one, one)
  assert (float(value), float(gradient[0])) == (1e4, -1.0)
