"""Estimates of KL(pi || pi_ref) from tokens that were sampled.

Each takes x = log pi_ref - log pi of the sampled tokens, and their importance
pi / pi_old, and gives back nats per token. Their values are what
http://joschu.net/blog/kl-approx.html calls k1, k2 and k3. With tokens from pi,
k1 and k3 are unbiased in value; what their gradients are, each says itself.
"""

import numpy as np
from jaxtyping import Array, Bool, Float

from r1jax.losses.ratios import exp
from r1jax.losses.tables import choose

Values = Float[Array, "*B"] | Float[np.ndarray, "*B"]


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
  logprobs: Float[np.ndarray, "P G T"],
  reference_logprobs: Float[np.ndarray, "P G T"],
  mask: Bool[np.ndarray, "P G T"],
  *,
  name: str,
  coefficient: float,
) -> Float[np.ndarray, "P G"]:
  """What each completion pays for its distance from the reference policy.

    beta sum_t KL_t

  To be subtracted from the rewards before the advantages, as in RLOO
  (arXiv:2402.14740) with k1. Sums are float64, on the host.

  Args:
    logprobs: of the policy that sampled.
    reference_logprobs: of the reference policy.
    mask: the sampled tokens; elsewhere anything may stand, NaN included.
    name: of KLS.
    coefficient: beta, per nat.
  """
  x = np.zeros(mask.shape, np.result_type(logprobs, reference_logprobs))
  np.subtract(reference_logprobs, logprobs, out=x, where=mask)
  estimate = choose("kl", KLS, dict(name=name))(x, np.ones_like(x))
  return coefficient * estimate.sum(axis=-1, dtype=np.float64)
