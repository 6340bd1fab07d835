"""GRPO against the paper's equations, and where other code went wrong."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.losses.grpo import completion_weights, group_advantages, grpo_loss

P, G, T = 3, 4, 6
RNG = np.random.default_rng(0)
LENGTHS = np.array([[6, 1, 3, 2], [4, 4, 6, 5], [2, 6, 1, 1]])
MASK = np.arange(T) < LENGTHS[..., None]
EVERY = np.ones((P, G), bool)


def draw(scale=0.5):
  return -np.abs(RNG.normal(scale=scale, size=(P, G, T))).astype(np.float32)


LOGPROBS, OLD, REFERENCE = draw(), draw(), draw()
REWARDS = RNG.integers(0, 3, (P, G)).astype(np.float64)
ADVANTAGES = group_advantages(REWARDS)


def arrays(mask=MASK, graded=EVERY, advantages=ADVANTAGES):
  """The loss's arguments, [P, G, T] each."""
  spread = np.broadcast_to(np.float32(advantages)[..., None], LOGPROBS.shape)
  weights = completion_weights(mask, graded).astype(np.float32)
  return tuple(map(jnp.asarray, (LOGPROBS, OLD, REFERENCE, spread, weights)))


@functools.partial(jax.jit, static_argnames=("clip_epsilon", "kl_coefficient"))
def run(*inputs, clip_epsilon=0.2, kl_coefficient=0.1):
  """(loss, metrics), and the gradient by the policy's log-probabilities."""
  return jax.value_and_grad(grpo_loss, has_aux=True)(
    *inputs, clip_epsilon=clip_epsilon, kl_coefficient=kl_coefficient
  )


def loss(*inputs, **kwargs):
  return run(*inputs, **kwargs)[0]


def value_and_grad(*inputs, **kwargs):
  (value, _), grads = run(*inputs, **kwargs)
  return value, grads


def equation_3(mask, graded, advantages, epsilon, beta):
  """-J of arXiv:2402.03300, eq. 3 and 4, completion by completion."""
  total, policy, penalty, number = 0.0, 0.0, 0.0, 0
  for p in range(P):
    for g in range(G):
      length = int(mask[p, g].sum())
      if not graded[p, g] or not length:
        continue
      number += 1
      for t in range(length):
        now, old, ref = (float(x[p, g, t]) for x in (LOGPROBS, OLD, REFERENCE))
        ratio = math.exp(now - old)
        clipped = min(max(ratio, 1 - epsilon), 1 + epsilon)
        a = float(advantages[p, g])
        kl = math.exp(ref - now) - (ref - now) - 1
        policy -= min(ratio * a, clipped * a) / length
        penalty += kl / length
  policy, penalty = policy / number, penalty / number
  total = policy + beta * penalty
  return total, policy, penalty


@pytest.mark.parametrize("epsilon", [0.2, 10.0])
@pytest.mark.parametrize("beta", [0.0, 0.001, 0.5])
def test_the_loss_is_equation_3(epsilon, beta):
  total, policy, penalty = equation_3(MASK, EVERY, ADVANTAGES, epsilon, beta)
  got, metrics = loss(*arrays(), clip_epsilon=epsilon, kl_coefficient=beta)
  assert got == pytest.approx(total, rel=1e-5)
  assert metrics["loss/policy"] == pytest.approx(policy, rel=1e-5)
  assert metrics["kl/ref"] == pytest.approx(penalty, rel=1e-5)
  assert metrics["loss/kl"] == pytest.approx(beta * penalty, rel=1e-5)


def test_without_a_reference_there_is_no_kl():
  logprobs, old, _, advantages, weights = arrays()
  got, metrics = loss(logprobs, old, None, advantages, weights)
  expected, _, _ = equation_3(MASK, EVERY, ADVANTAGES, 0.2, 0.0)
  assert got == pytest.approx(expected, rel=1e-5)
  assert not [name for name in metrics if name in ("kl/ref", "loss/kl")]


def test_completions_without_a_grade_leave_loss_and_denominators():
  graded = EVERY.copy()
  graded[0, 1] = graded[2] = False
  total, _, _ = equation_3(MASK, graded, ADVANTAGES, 0.2, 0.1)
  assert loss(*arrays(graded=graded))[0] == pytest.approx(total, rel=1e-5)


def test_metrics_are_sums_with_the_same_weights():
  logprobs, old, reference, advantages, weights = arrays()
  _, metrics = loss(logprobs, old, reference, advantages, weights)
  ratio, a, w = np.exp(LOGPROBS - OLD), np.asarray(advantages), weights
  low, high = (ratio < 0.8) & (a < 0), (ratio > 1.2) & (a > 0)
  close = lambda name, x: np.testing.assert_allclose(
    metrics[name], x, rtol=1e-5
  )
  close("clip_ratio/low", np.sum(w * low))
  close("clip_ratio/high", np.sum(w * high))
  close("clip_ratio/region", np.sum(w * (low | high)))
  close("ratio/mean", np.sum(w * ratio))
  close("ratio/max", ratio[MASK].max())
  close("kl/old", np.sum(w * (ratio - 1 - np.log(ratio))))
  assert 0 < metrics["clip_ratio/low"] < 1
  assert 0 < metrics["clip_ratio/high"] < 1


def test_on_policy_the_loss_is_minus_the_mean_advantage_and_still_teaches():
  logprobs, _, _, advantages, weights = arrays()
  inputs = (logprobs, logprobs, logprobs, advantages, weights)
  value, grads = value_and_grad(*inputs)
  _, metrics = loss(*inputs)
  assert metrics["ratio/mean"] == pytest.approx(1.0, rel=1e-6)
  assert metrics["ratio/max"] == 1.0
  for name in ("kl/ref", "kl/old", "clip_ratio/region"):
    assert metrics[name] == 0.0
  assert value == pytest.approx(-ADVANTAGES.mean(), abs=1e-6)
  np.testing.assert_allclose(grads, -weights * advantages, rtol=1e-5)
  assert np.abs(grads).max() > 0.01


# (advantage, epsilon, ratio) -> loss, and whether the ratio has a gradient.
CLIPS = [
  (1, 0.2, 0.5, -0.5, True),
  (1, 0.2, 1.25, -1.2, False),
  (1, 0.2, 1.5, -1.2, False),
  (1, 10.0, 1.5, -1.5, True),
  (1, 10.0, 20.0, -11.0, False),
  (-1, 0.2, 0.5, 0.8, False),
  (-1, 0.2, 1.25, 1.25, True),
  (-1, 0.2, 20.0, 20.0, True),
  (-1, 10.0, 20.0, 20.0, True),
]


@pytest.mark.parametrize("advantage, epsilon, ratio, expected, learns", CLIPS)
def test_the_clip_stops_the_gradient(
  advantage, epsilon, ratio, expected, learns
):
  one = lambda x: jnp.full((1,), x, jnp.float32)
  inputs = one(np.log(ratio)), one(0.0), one(0.0), one(advantage), one(1.0)
  kwargs = dict(clip_epsilon=epsilon, kl_coefficient=0.0)
  value, grad = value_and_grad(*inputs, **kwargs)
  assert value == pytest.approx(expected, rel=1e-5)
  assert grad[0] == pytest.approx(-advantage * ratio * learns, rel=1e-5)
  _, metrics = loss(*inputs, **kwargs)
  assert metrics["clip_ratio/region"] == (not learns)
  assert metrics["clip_ratio/high"] == (not learns and advantage > 0)


def test_the_kl_is_the_k3_estimator():
  one = lambda x: jnp.full((1,), x, jnp.float32)
  inputs = one(np.log(0.5)), one(np.log(0.5)), one(np.log(0.25)), one(0.0)
  value, grad = value_and_grad(*inputs, one(1.0), kl_coefficient=1.0)
  assert value == pytest.approx(0.193147, abs=1e-6)
  # d/dx (exp(ref - x) - (ref - x) - 1) = 1 - exp(ref - x).
  assert grad[0] == pytest.approx(1 - 0.25 / 0.5, rel=1e-5)


def test_padding_changes_nothing():
  inputs = arrays()
  longer = tuple(
    jnp.pad(x, ((0, 0), (0, 0), (0, 100)), constant_values=fill)
    for x, fill in zip(inputs, (-3.0, -1.0, -2.0, 5.0, 0.0))
  )
  weights = completion_weights(np.pad(MASK, ((0, 0), (0, 0), (0, 100))), EVERY)
  np.testing.assert_array_equal(np.float32(weights), longer[-1])
  value, grads = value_and_grad(*inputs)
  padded, padded_grads = value_and_grad(*longer)
  assert padded == pytest.approx(float(value), rel=1e-6)
  # Another shape is compiled anew: equal but for rounding.
  np.testing.assert_allclose(padded_grads[..., :T], grads, rtol=1e-6)
  np.testing.assert_array_equal(padded_grads[..., T:], 0.0)


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_what_has_no_weight_may_hold_anything(hole):
  *values, weights = arrays()
  holed = [jnp.where(MASK, x, hole) for x in values]
  value, grads = value_and_grad(*values, weights)
  got, got_grads = value_and_grad(*holed, weights)
  assert got == value
  np.testing.assert_array_equal(got_grads, grads)
  clean, dirty = loss(*values, weights)[1], loss(*holed, weights)[1]
  for name in clean:
    assert clean[name] == dirty[name], name


def test_nothing_graded_is_no_loss_and_no_gradient():
  nothing = np.zeros((P, G), bool)
  advantages = group_advantages(np.full((P, G), np.nan))
  np.testing.assert_array_equal(advantages, 0.0)
  inputs = arrays(graded=nothing, advantages=advantages)
  np.testing.assert_array_equal(inputs[-1], 0.0)
  value, grads = value_and_grad(*inputs)
  assert value == 0.0
  np.testing.assert_array_equal(grads, 0.0)
  for number in loss(*inputs)[1].values():
    assert np.isfinite(number)


def test_any_split_into_microbatches_adds_up():
  *values, weights = (x.reshape(P * G, T) for x in arrays())
  (whole, metrics), grads = run(*values, weights)
  for cuts in ([5], [3, 4, 9], range(1, P * G)):
    parts = []
    for rows in np.split(np.arange(P * G), cuts):
      inside = jnp.zeros_like(weights).at[rows].set(weights[rows])
      parts.append(run(*values, inside))
    assert sum(float(part[0][0]) for part in parts) == pytest.approx(
      float(whole), rel=1e-5
    )
    np.testing.assert_allclose(sum(part[1] for part in parts), grads, rtol=1e-5)
    for name, number in metrics.items():
      combine = max if name.endswith("max") else sum
      assert combine(float(part[0][1][name]) for part in parts) == (
        pytest.approx(float(number), rel=1e-4, abs=1e-7)
      )


def test_the_layout_of_tokens_does_not_matter():
  """Packed rows in any order, as [B, T] or flat."""
  order = RNG.permutation(P * G * T)
  whole, _ = loss(*arrays())
  shuffled, _ = loss(*(x.reshape(-1)[order] for x in arrays()))
  assert shuffled == pytest.approx(float(whole), rel=1e-5)


# Weights.


def test_every_graded_completion_weighs_the_same():
  graded = EVERY.copy()
  graded[1, 2] = False
  weights = completion_weights(MASK, graded)
  np.testing.assert_allclose(weights.sum(-1), graded / 11)
  np.testing.assert_array_equal(weights[~MASK], 0.0)
  for p, g in np.ndindex(P, G):
    tokens = weights[p, g, : LENGTHS[p, g]]
    np.testing.assert_array_equal(tokens, tokens[0])


def test_weights_give_the_mean_over_completions_of_token_means():
  """Token losses [2] and [1, 1, 1]: 1.5, where the token mean is 1.25."""
  mask = np.array([[[1, 0, 0], [1, 1, 1]]], bool)
  losses = np.array([[[2.0, 0, 0], [1, 1, 1]]])
  weights = completion_weights(mask, np.ones((1, 2), bool))
  assert np.sum(weights * losses) == pytest.approx(1.5)


# Advantages.


def test_advantages_of_one_right_in_four():
  got = group_advantages(np.array([[1.0, 0, 0, 0]]))
  np.testing.assert_allclose(got, [[1.73205, *[-0.57735] * 3]], atol=1e-5)


def test_advantages_of_one_right_in_sixteen():
  rewards = np.zeros((1, 16))
  rewards[0, 5] = 1
  got = group_advantages(rewards)
  assert got[0, 5] == pytest.approx(3.87298, abs=1e-5)
  np.testing.assert_allclose(np.delete(got[0], 5), -0.25820, atol=1e-5)


def test_equal_rewards_teach_nothing():
  for size in range(2, 65):
    for constant in (0.1, 0.3, 0.35, 0.7, 0.9, 1.1):
      got = group_advantages(np.full((2, size), constant))
      assert np.all(got == 0.0), (size, constant)  # Exactly.


def test_each_group_is_compared_with_itself_alone():
  rewards = RNG.normal(size=(4, 5))
  got = group_advantages(rewards)
  for p in range(4):
    expected = (rewards[p] - rewards[p].mean()) / rewards[p].std()
    np.testing.assert_allclose(got[p], expected, rtol=1e-12)
    np.testing.assert_array_equal(
      got[p], group_advantages(rewards[p : p + 1])[0]
    )
  order = RNG.permutation(5)
  np.testing.assert_allclose(
    group_advantages(rewards[:, order]), got[:, order], rtol=1e-9
  )


def test_what_could_not_be_graded_leaves_the_statistics():
  got = group_advantages(np.array([[1.0, np.nan, 0.0], [np.nan] * 3]))
  np.testing.assert_array_equal(got, [[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
  # One grade alone, or equal ones beside a NaN, teach nothing.
  got = group_advantages(np.array([[1.0, np.nan, np.nan], [0.3, 0.3, np.nan]]))
  assert np.all(got == 0.0)


def test_a_reward_of_zero_is_a_reward():
  got = group_advantages(np.array([[0.0, 0.0, 1.0]]))
  assert got[0, 0] == pytest.approx(-0.70711, abs=1e-5)


@pytest.mark.parametrize("size", [0, 1])
def test_a_group_needs_two(size):
  with pytest.raises(ValueError, match=f"group_size is {size}.*at least 2"):
    group_advantages(np.zeros((3, size)))


@given(
  st.lists(st.floats(-6e4, 6e4, width=16), min_size=2, max_size=64),
  st.floats(-100, 100),
)
def test_advantages_are_bounded_sum_to_zero_and_ignore_a_shift(rewards, shift):
  got = group_advantages(np.array([rewards]))
  size = len(rewards)
  assert np.abs(got).max() <= np.sqrt(size - 1) * (1 + 1e-6)
  assert abs(got.sum()) < 1e-6 * size
  if max(rewards) == min(rewards):
    assert np.all(got == 0.0)
  shifted = group_advantages(np.array([rewards]) + shift)
  np.testing.assert_allclose(shifted, got, atol=1e-3)


def test_rewards_that_hardly_differ_are_no_division_by_zero():
  got = group_advantages(np.array([[0.0, 1e-313], [0.0, 1e-200]]))
  assert np.all(np.isfinite(got))
