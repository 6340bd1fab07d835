"""Aggregation: the weight of each token in the loss of an update.

Weights are computed once per update, on the host, from the token counts of the
whole update. They include the denominators. The loss is therefore a plain
weighted sum, and the parts of an update add up however it is split into
devices, microbatches or packed rows.

All tokens of a completion have the same weight, so the functions return one
weight per completion [P, G]. `num_tokens` counts the tokens that the policy
sampled. It is 0 for a completion that is not trained on, which then counts in
no numerator and no denominator.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from r1jax.losses.tables import choose, positive


def token_weights(
  num_tokens: Int[np.ndarray, "P G"],
  trained: Bool[np.ndarray, "P G"],
  *,
  name: str,
  **settings,
) -> Float[np.ndarray, "P G"]:
  """The weight of each token of a completion, by `AGGREGATIONS[name]`.

  `trained` is True for completions that are trained on. All weights are 0 if
  there are none.

  Raises ValueError for a name or a keyword argument that does not exist.
  """
  section = dict(name=name, **settings)
  num_tokens = np.where(trained, num_tokens, 0)
  return choose("aggregation", AGGREGATIONS, section)(num_tokens)


def completion_mean(
  num_tokens: Int[np.ndarray, "P G"],
) -> Float[np.ndarray, "P G"]:
  """1/N sum_i 1/|o_i| sum_t: GRPO (arXiv:2402.03300, eq. 3).

  The mean over N completions of the mean over the tokens of each.

  Examples:
    >>> completion_mean(np.array([[4, 1]]))
    array([[0.125, 0.5  ]])
  """
  trained = num_tokens > 0
  return trained / np.maximum(num_tokens, 1) / _at_least_one(trained)


def token_mean(num_tokens: Int[np.ndarray, "P G"]) -> Float[np.ndarray, "P G"]:
  """1/(sum_i |o_i|) sum_i sum_t: DAPO (arXiv:2503.14476, eq. 8).

  The mean over all tokens of the update. The paper writes it for one group.

  Examples:
    >>> token_mean(np.array([[4, 1]]))
    array([[0.2, 0.2]])
  """
  return (num_tokens > 0) / _at_least_one(num_tokens)


def constant(
  num_tokens: Int[np.ndarray, "P G"], *, divisor: int
) -> Float[np.ndarray, "P G"]:
  """1/N sum_i 1/divisor sum_t: Dr. GRPO (arXiv:2503.20783).

  In Dr. GRPO the divisor is the token limit of a completion. A divisor of 1
  gives the mean over completions of the sum over the tokens of each.

  Examples:
    >>> constant(np.array([[4, 1]]), divisor=10)
    array([[0.05, 0.05]])

  Raises ValueError for a divisor of 0 or below.
  """
  positive("aggregation 'constant'", divisor=divisor)
  trained = num_tokens > 0
  return trained / (_at_least_one(trained) * divisor)


AGGREGATIONS = {
  "completion_mean": completion_mean,
  "token_mean": token_mean,
  "constant": constant,
}


def _at_least_one(counts: np.ndarray) -> int:
  """The sum of counts, at least 1."""
  return max(int(counts.sum()), 1)
