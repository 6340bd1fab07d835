"""The loss of supervised fine-tuning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.sft import sft_loss

RNG = np.random.default_rng(0)
LOGPROBS = jnp.asarray(-RNG.exponential(size=(4, 7)), jnp.float32)
MASK = np.arange(7) < np.array([[1], [7], [3], [0]])


def test_the_loss_is_the_mean_over_tokens_with_a_weight():
  expected = -np.asarray(LOGPROBS)[MASK].mean()
  weights = jnp.asarray(MASK / MASK.sum(), jnp.float32)
  assert sft_loss(LOGPROBS, weights) == pytest.approx(expected, rel=1e-6)


def test_ragged_rows_share_one_denominator():
  """Losses 2 and 1, 1, 1: the token mean is 1.25, not the 1.5 of row means."""
  logprobs = -jnp.asarray([[2.0, 9.0, 9.0], [1.0, 1.0, 1.0]])
  mask = np.array([[1, 0, 0], [1, 1, 1]])
  weights = jnp.asarray(mask / mask.sum(), jnp.float32)
  assert sft_loss(logprobs, weights) == 1.25


@pytest.mark.parametrize("size", [1, 2, 4])
def test_any_split_of_a_batch_adds_up(size):
  weights = jnp.asarray(MASK / MASK.sum(), jnp.float32)
  whole, grads = jax.value_and_grad(sft_loss)(LOGPROBS, weights)
  parts = [
    jax.value_and_grad(sft_loss)(LOGPROBS[i : i + size], weights[i : i + size])
    for i in range(0, 4, size)
  ]
  assert sum(p[0] for p in parts) == pytest.approx(float(whole), rel=1e-6)
  np.testing.assert_array_equal(np.concatenate([p[1] for p in parts]), grads)


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_values_without_a_weight_are_ignored(hole):
  weights = jnp.asarray(MASK / MASK.sum(), jnp.float32)
  holed = jnp.where(MASK, LOGPROBS, hole)
  whole, grads = jax.value_and_grad(sft_loss)(LOGPROBS, weights)
  value, holed_grads = jax.value_and_grad(sft_loss)(holed, weights)
  assert value == whole
  np.testing.assert_array_equal(grads, holed_grads)
  np.testing.assert_array_equal(np.asarray(grads)[~MASK], 0.0)


def test_a_batch_without_targets_has_a_loss_of_zero():
  value, grads = jax.value_and_grad(sft_loss)(LOGPROBS, jnp.zeros((4, 7)))
  assert value == 0.0
  np.testing.assert_array_equal(grads, 0.0)


def test_shapes_that_differ_are_refused():
  with pytest.raises(Exception, match="weights"):
    sft_loss(LOGPROBS, jnp.ones((7,)))
