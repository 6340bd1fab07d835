"""Where clips stop the gradient, and that extreme ratios stay finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.grpo import grpo_loss
from r1jax.losses.kl import KLS
from r1jax.losses.ratios import safe_exp

EPSILON = dict(name="symmetric", epsilon=0.2)
TEN = dict(name="symmetric", epsilon=10.0)
ASYMMETRIC = dict(name="asymmetric", low=0.2, high=0.28)
CISPO = dict(name="cispo", low=0.2, high=0.28)
DELTA = dict(name="two_sided", low=0.2, high=0.2, delta=3.0)
EVERY = [EPSILON, ASYMMETRIC, CISPO, DELTA, dict(name="none")]


def loss_of_one_token(ratio, advantage, clip):
  """(loss, metrics, gradient) of a token with an old logprob of 0."""
  one = lambda x: jnp.full((1,), x, jnp.float32)
  settings = dict(
    num_tokens=1,
    ratio="token",
    kl="k3",
    kl_coefficient=0.0,
    entropy_coefficient=0.0,
    correction=None,
  )
  loss = lambda logprob: grpo_loss(
    logprob, one(0.0), one(0.0), one(advantage), one(1.0), clip=clip, **settings
  )
  (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(
    one(np.log(ratio))
  )
  return float(value), metrics, float(gradient[0])


# clip, advantage, ratio -> loss, and whether the ratio has a gradient.
GOLDEN = [
  (EPSILON, 1, 0.5, -0.5, True),
  (EPSILON, 1, 1.25, -1.2, False),
  (EPSILON, 1, 1.5, -1.2, False),
  (ASYMMETRIC, 1, 1.25, -1.25, True),
  (ASYMMETRIC, 1, 1.5, -1.28, False),
  (TEN, 1, 1.5, -1.5, True),
  (TEN, 1, 20.0, -11.0, False),
  (EPSILON, -1, 0.5, 0.8, False),
  (EPSILON, -1, 1.25, 1.25, True),
  (EPSILON, -1, 20.0, 20.0, True),
  (TEN, -1, 0.001, 0.001, True),
  (TEN, -1, 20.0, 20.0, True),
  (DELTA, -1, 2.0, 2.0, True),
  (DELTA, -1, 20.0, 3.0, False),
  (DELTA, -1, 0.5, 0.8, False),
  (DELTA, 1, 20.0, -1.2, False),
]


@pytest.mark.parametrize("clip, advantage, ratio, expected, learns", GOLDEN)
def test_the_clip_stops_the_gradient(clip, advantage, ratio, expected, learns):
  value, metrics, gradient = loss_of_one_token(ratio, advantage, clip)
  assert value == pytest.approx(expected, rel=1e-5)
  assert gradient == pytest.approx(-advantage * ratio * learns, rel=1e-5)
  assert metrics["clip_ratio/region"] == (not learns)
  assert metrics["clip_ratio/high"] == (not learns and ratio > 1)
  assert metrics["clip_ratio/low"] == (not learns and ratio < 1)


@pytest.mark.parametrize("advantage", [1, -1])
@pytest.mark.parametrize("ratio, weight", [(0.5, 0.8), (1.1, 1.1), (9.0, 1.28)])
def test_in_cispo_every_token_keeps_a_gradient(advantage, ratio, weight):
  value, metrics, gradient = loss_of_one_token(ratio, advantage, CISPO)
  assert value == pytest.approx(-weight * advantage * np.log(ratio), rel=1e-5)
  assert gradient == pytest.approx(-weight * advantage, rel=1e-5)
  assert metrics["clip_ratio/region"] == (weight != ratio)


def test_r1s_epsilon_clips_only_ratios_of_positive_advantages():
  """The range is [-9, 11], and ratios are positive."""
  for ratio in (1e-6, 0.1, 1.0, 5.0, 10.9):
    for advantage in (1, -1):
      _, metrics, gradient = loss_of_one_token(ratio, advantage, TEN)
      assert metrics["clip_ratio/region"] == 0
      assert gradient == pytest.approx(-advantage * ratio, rel=1e-5)
  assert loss_of_one_token(11.1, 1, TEN)[2] == 0.0
  assert loss_of_one_token(1000.0, -1, TEN)[2] == pytest.approx(
    1000.0, rel=1e-5
  )


def test_a_token_without_advantage_is_never_counted_as_clipped():
  for clip in (EPSILON, ASYMMETRIC, CISPO, DELTA):
    for ratio in (0.01, 100.0):
      _, metrics, gradient = loss_of_one_token(ratio, 0.0, clip)
      assert metrics["clip_ratio/region"] == 0.0
      assert gradient == 0.0


# Ratios out of all bounds.


def test_up_to_20_nats_the_exponential_is_exact():
  x = jnp.linspace(-100.0, 20.0, 1001)
  np.testing.assert_array_equal(safe_exp(x), jnp.exp(x))
  assert safe_exp(jnp.zeros(1))[0] == 1.0
  x = np.linspace(-80, 20, 1001)  # Below, float32 has no normal numbers.
  slope = jax.vmap(jax.grad(lambda y: safe_exp(y[None])[0]))(jnp.asarray(x))
  np.testing.assert_allclose(slope, np.exp(x), rtol=2e-5)


def test_above_20_nats_value_and_gradient_are_finite_and_keep_direction():
  x = jnp.asarray([20.5, 30.0, 88.0, 1000.0, 1e6], jnp.float32)
  value = safe_exp(x)
  slope = jax.vmap(jax.grad(lambda y: safe_exp(y[None])[0]))(x)
  assert np.all(np.isfinite(value)) and np.all(np.diff(value) > 0)
  np.testing.assert_allclose(slope, np.exp(20.0), rtol=1e-5)


@pytest.mark.parametrize(
  "clip, kl",
  [(clip, "k3_importance") for clip in EVERY[1:]]
  + [(EPSILON, kl) for kl in KLS],
  ids=lambda x: x if isinstance(x, str) else x["name"],
)
def test_no_log_ratio_overflows(clip, kl):
  """Even when the gradient is squared, as in its norm."""
  apart = jnp.asarray([-1e4, -200.0, 200.0, 1e4], jnp.float32)
  every = lambda x: jnp.full((4,), x, jnp.float32)
  loss = lambda logprobs: grpo_loss(
    logprobs,
    every(0.0),
    apart / 2,
    every(-1.0),
    every(1.0),
    sampler_logprobs=apart,
    completions=jnp.arange(4),
    num_completions=4,
    num_tokens=4,
    ratio="token",
    clip=clip,
    kl=kl,
    kl_coefficient=1.0,
    entropy_coefficient=0.0,
    correction=dict(name="truncate", level="sequence", cap=2.0),
  )
  (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(apart)
  assert np.isfinite(value) and np.all(np.isfinite(gradient**2))
  assert all(np.isfinite(number) for number in metrics.values())


def test_a_policy_far_from_its_reference_is_pulled_back():
  """Clamping only the exponent would flip the sign of the gradient."""
  one = lambda x: jnp.full((1,), x, jnp.float32)
  loss = lambda logprob: grpo_loss(
    logprob,
    logprob,
    one(-1.0),
    one(0.0),
    one(1.0),
    num_tokens=1,
    ratio="token",
    clip=EPSILON,
    kl="k3",
    kl_coefficient=1.0,
    entropy_coefficient=0.0,
    correction=None,
  )[0]
  assert jax.grad(loss)(one(-40.0))[0] < 0  # Descent raises it.
  assert jax.grad(loss)(one(-0.1))[0] > 0
