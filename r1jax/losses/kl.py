"""Estimates of KL(pi || pi_ref) from sampled tokens, in nats per token.

Each function takes x = log pi_ref - log pi and the ratio pi / pi_old of every
sampled token. The names k1, k2 and k3 are those of
http://joschu.net/blog/kl-approx.html. For tokens sampled from pi, the values of
k1 and k3 are unbiased. The gradients differ, see each function.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from r1jax.losses.ratios import completion_sums, safe_exp
from r1jax.losses.tables import choose

Values = Float[Array, "*B"]


def k1(x: Values, ratio: Values) -> Values:
  """-x. Meant for the reward: as a loss, its expected gradient is 0."""
  del ratio
  return -x


def k2(x: Values, ratio: Values) -> Values:
  """x^2 / 2. On policy, the expected gradient is that of KL(pi || pi_ref)."""
  del ratio
  return x * x / 2


def k3(x: Values, ratio: Values) -> Values:
  """e^x - x - 1, never negative: GRPO (arXiv:2402.03300, eq. 4).

  On policy, the expected gradient is that of the reverse, KL(pi_ref || pi).

  Examples:
    >>> x = jnp.log(jnp.array([0.5, 1.0, 2.0]))  # pi_ref / pi
    >>> [round(float(value), 3) for value in k3(x, jnp.ones(3))]
    [0.193, 0.0, 0.307]
  """
  del ratio
  return safe_exp(x) - x - 1


def k3_importance(x: Values, ratio: Values) -> Values:
  """(pi / pi_old) (e^x - x - 1): DeepSeek-V3.2 (arXiv:2512.02556, eq. 7).

  For tokens sampled from pi_old, value and gradient are unbiased.
  """
  return ratio * k3(x, ratio)


KLS = {"k1": k1, "k2": k2, "k3": k3, "k3_importance": k3_importance}


def kl_penalties(
  logprobs: Float[Array, "*B"],
  reference_logprobs: Float[Array, "*B"],
  mask: Bool[Array, "*B"],
  completions: Int[Array, "*B"],
  num_completions: int,
  *,
  name: str,
  coefficient: float,
) -> Float[Array, "N"]:
  """The KL penalty of each of N completions, `coefficient` sum_t KL_t.

  It is subtracted from the rewards before advantages are computed, as in RLOO
  (arXiv:2402.14740) with k1.

  Args:
    logprobs: of the policy that sampled the tokens.
    reference_logprobs: of the reference policy.
    mask: True at sampled tokens. Other values are ignored, NaN included.
    completions: the completion of each token, below `num_completions`.
    num_completions: N, static.
    name: a key of KLS.
    coefficient: in units of reward per nat.
  """
  x = jnp.where(mask, reference_logprobs - logprobs, 0.0)
  estimate = choose("kl", KLS, dict(name=name))(x, jnp.ones_like(x))
  sums = completion_sums(completions, num_completions, mask, estimate)
  return coefficient * sums
