"""Estimates of KL(pi || pi_ref) from tokens that were sampled.

Each takes x = log pi_ref - log pi of the sampled tokens, and their importance
pi / pi_old, and gives back nats per token. Their values are what
http://joschu.net/blog/kl-approx.html calls k1, k2 and k3. With tokens from pi,
k1 and k3 are unbiased in value; what their gradients are, each says itself.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from r1jax.losses.ratios import completion_sums, exp
from r1jax.losses.tables import choose

Values = Float[Array, "*B"]


def k1(x: Values, importance: Values) -> Values:
  """-x. In a loss its gradient is 0 on average; its place is in the reward."""
  del importance
  return -x


def k2(x: Values, importance: Values) -> Values:
  """x^2 / 2. Its gradient on policy is that of KL(pi || pi_ref), unbiased."""
  del importance
  return x * x / 2


def k3(x: Values, importance: Values) -> Values:
  """e^x - x - 1, never negative: GRPO (arXiv:2402.03300, eq. 4).

  Its gradient on policy is that of KL(pi_ref || pi), the other way round.
  """
  del importance
  return exp(x) - x - 1


def k3_importance(x: Values, importance: Values) -> Values:
  """(pi / pi_old) (e^x - x - 1): DeepSeek-V3.2 (arXiv:2512.02556, eq. 7).

  Unbiased for tokens from pi_old, in value and in gradient.
  """
  return importance * k3(x, importance)


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
  """The penalty of each of N completions for its distance from the reference.

    beta sum_t KL_t

  To be subtracted from the rewards before the advantages, as in RLOO
  (arXiv:2402.14740) with k1.

  Args:
    logprobs: of the policy that sampled.
    reference_logprobs: of the reference policy.
    mask: True at the sampled tokens; elsewhere any value is ignored, also NaN.
    completions: the completion of each token, below `num_completions`.
    num_completions: N
    name: one of KLS.
    coefficient: beta, per nat.
  """
  x = jnp.where(mask, reference_logprobs - logprobs, 0.0)
  estimate = choose("kl", KLS, dict(name=name))(x, jnp.ones_like(x))
  sums = completion_sums(completions, num_completions, mask, estimate)
  return coefficient * sums
