"""KL estimators: golden numbers, and their gradients by enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.grpo import grpo_loss
from r1jax.losses.kl import KLS, kl_penalties

# Three tokens: the policy's logits, and three other policies.
LOGITS = np.array([0.3, -0.5, 1.0])
REFERENCE = np.log([0.5, 0.3, 0.2])
OLD = np.log([0.2, 0.45, 0.35])
SAMPLER = np.log([0.3, 0.3, 0.4])
ADVANTAGES = np.array([1.0, -0.5, 0.25])


@pytest.fixture(scope="module", autouse=True)
def double_precision():
  with jax.enable_x64(True):
    yield


def policy(logits):
  return jax.nn.log_softmax(jnp.asarray(logits))


def expected_loss(logits, sampled_by, old, sampler=None, **settings):
  """The loss of all tokens, weighted by their probability under the sampler.

  `sampled_by` and `old` are constant logprobs.
  """
  settings = (
    dict(
      ratio="token",
      clip=dict(name="none"),
      kl="k3",
      kl_coefficient=0.0,
      entropy_coefficient=0.0,
      correction=None,
      num_tokens=3,
      advantages=np.zeros(3),
    )
    | settings
  )
  advantages = settings.pop("advantages")
  return grpo_loss(
    policy(logits),
    jnp.asarray(old),
    jnp.asarray(REFERENCE),
    jnp.asarray(advantages),
    jnp.exp(jnp.asarray(sampled_by)),
    sampler_logprobs=None if sampler is None else jnp.asarray(sampler),
    **settings,
  )


def kl_to_reference(logits):
  """KL(pi || pi_ref)."""
  p = policy(logits)
  return jnp.sum(jnp.exp(p) * (p - REFERENCE))


def kl_from_reference(logits):
  """KL(pi_ref || pi)."""
  return jnp.sum(np.exp(REFERENCE) * (REFERENCE - policy(logits)))


def kl_value_and_gradient(name, sampled_by):
  """Expected value and gradient of the KL term, by enumerating all tokens."""

  def kl(logits):
    settings = dict(kl=name, kl_coefficient=1.0)
    return expected_loss(logits, sampled_by, sampled_by, **settings)[0]

  return jax.value_and_grad(kl)(LOGITS)


@pytest.mark.parametrize(
  "name, expected",
  [("k1", 0.693147), ("k2", 0.240227), ("k3", 0.193147)],
)
def test_the_estimates_of_a_half_against_a_quarter(name, expected):
  x = jnp.log(jnp.array([0.25])) - jnp.log(jnp.array([0.5]))
  one = jnp.ones(1)
  assert KLS[name](x, one)[0] == pytest.approx(expected, abs=1e-6)
  # k1 is positive where the policy is likelier, and so is its penalty.
  assert KLS["k1"](-x, one)[0] < 0
  assert KLS["k3_importance"](x, 2 * one)[0] == 2 * KLS["k3"](x, one)[0]


def test_on_policy_k1_and_k3_have_the_right_value_and_k2_does_not():
  truth = float(kl_to_reference(LOGITS))
  for name in ("k1", "k3", "k3_importance"):
    assert kl_value_and_gradient(name, policy(LOGITS))[0] == pytest.approx(
      truth, rel=1e-9
    )
  assert abs(kl_value_and_gradient("k2", policy(LOGITS))[0] / truth - 1) > 0.02


def test_on_policy_each_gradient_is_the_documented_one():
  right = jax.grad(kl_to_reference)(LOGITS)
  reverse = jax.grad(kl_from_reference)(LOGITS)
  assert np.abs(right - reverse).max() > 0.03
  close = lambda name, expected: np.testing.assert_allclose(
    kl_value_and_gradient(name, policy(LOGITS))[1], expected, atol=1e-12
  )
  close("k1", 0.0)
  close("k2", right)
  close("k3", reverse)
  close("k3_importance", right)


def test_off_policy_only_the_weighted_k3_is_unbiased():
  truth, right = jax.value_and_grad(kl_to_reference)(LOGITS)
  value, gradient = kl_value_and_gradient("k3_importance", OLD)
  assert value == pytest.approx(float(truth), rel=1e-9)
  np.testing.assert_allclose(gradient, right, atol=1e-12)
  for name in ("k1", "k2", "k3"):
    value, gradient = kl_value_and_gradient(name, OLD)
    assert np.abs(gradient - right).max() > 0.01, name


def test_off_policy_the_ratio_makes_the_policy_gradient_unbiased():
  """The sum over all tokens of pi_old r A is the sum of pi A."""
  truth = lambda logits: -jnp.sum(jnp.exp(policy(logits)) * ADVANTAGES)
  loss = lambda logits: expected_loss(logits, OLD, OLD, advantages=ADVANTAGES)
  value, gradient = jax.value_and_grad(lambda x: loss(x)[0])(LOGITS)
  assert value == pytest.approx(float(truth(LOGITS)), rel=1e-9)
  np.testing.assert_allclose(gradient, jax.grad(truth)(LOGITS), atol=1e-12)


def test_an_unclipped_correction_gives_the_gradient_of_the_old_policy():
  truth = lambda logits: -jnp.sum(jnp.exp(policy(logits)) * ADVANTAGES)

  def loss(logits, **correction):
    section = dict(name="truncate", level="token") | correction
    settings = dict(correction=section, advantages=ADVANTAGES)
    return expected_loss(logits, SAMPLER, OLD, SAMPLER, **settings)

  gradient = jax.grad(lambda x: loss(x, cap=100.0)[0])(LOGITS)
  np.testing.assert_allclose(gradient, jax.grad(truth)(LOGITS), atol=1e-12)
  (value, metrics) = loss(LOGITS, cap=1.1)
  assert value != pytest.approx(float(truth(LOGITS)), rel=1e-3)
  # Of the three, the second alone is that much likelier under the old policy.
  assert metrics["sampling/ratio_clipped"] == pytest.approx(1 / 3)


# In the reward.

RNG = np.random.default_rng(0)
P, G, T = 2, 3, 5
LENGTHS = np.array([[5, 1, 3], [2, 4, 5]])
MASK = np.arange(T) < LENGTHS[..., None]
NOW, THEN = (RNG.uniform(-4, 0, (P, G, T)).astype(np.float32) for _ in "ab")


COMPLETIONS = np.broadcast_to(np.arange(P * G).reshape(P, G, 1), MASK.shape)


def penalties(now, then, *, name):
  found = kl_penalties(
    jnp.asarray(now),
    jnp.asarray(then),
    jnp.asarray(MASK),
    jnp.asarray(COMPLETIONS),
    P * G,
    name=name,
    coefficient=0.1,
  )
  return np.asarray(found).reshape(P, G)


@pytest.mark.parametrize("name", KLS)
def test_a_penalty_is_the_sum_over_the_tokens_of_a_completion(name):
  got = penalties(NOW, THEN, name=name)
  for p, g in np.ndindex(P, G):
    x = [float(THEN[p, g, t] - NOW[p, g, t]) for t in range(LENGTHS[p, g])]
    terms = {
      "k1": [-y for y in x],
      "k2": [y * y / 2 for y in x],
      "k3": [np.exp(y) - y - 1 for y in x],
    }
    expected = 0.1 * sum(terms[name.removesuffix("_importance")])
    assert got[p, g] == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_tokens_that_were_not_sampled_have_no_penalty():
  for hole in (np.nan, np.inf, -np.inf):
    holed = [np.where(MASK, x, np.float32(hole)) for x in (NOW, THEN)]
    np.testing.assert_array_equal(
      penalties(*holed, name="k3"), penalties(NOW, THEN, name="k3")
    )


def test_a_kl_that_does_not_exist_is_refused():
  with pytest.raises(ValueError, match="unknown kl 'k5'"):
    penalties(NOW, THEN, name="k5")
