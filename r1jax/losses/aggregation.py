"""The weight of one token's loss in the loss of an update.

Weights are made once, on the host, from the final counts of the whole update.
They carry its denominators, so that the loss is a plain weighted sum and any
split of the update into devices, microbatches or packed rows adds up.

All tokens of a completion have the same weight. Arguments are the number of
tokens that the policy chose [P, G] and the completions that are trained on
[P, G]. The other completions are in no numerator and in no denominator. If none
is trained on, all weights are 0.
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
  """The weight that `AGGREGATIONS[name]` gives to each token of a completion.

  Raises ValueError for a name or a keyword argument that does not exist.
  """
  section = dict(name=name, **settings)
  num_tokens = np.where(trained, num_tokens, 0)
  return choose("aggregation", AGGREGATIONS, section)(num_tokens)


def completion_mean(
  num_tokens: Int[np.ndarray, "P G"],
) -> Float[np.ndarray, "P G"]:
  """1/N sum_i 1/|o_i| sum_t: GRPO (arXiv:2402.03300, eq. 3).

  The mean over the N completions of the mean over a completion's tokens.
  """
  trained = num_tokens > 0
  return trained / np.maximum(num_tokens, 1) / _at_least_one(trained)


def token_mean(num_tokens: Int[np.ndarray, "P G"]) -> Float[np.ndarray, "P G"]:
  """1/(sum_i |o_i|) sum_i sum_t: DAPO (arXiv:2503.14476, eq. 8).

  The mean over all tokens of the update; the paper writes it for one group.
  """
  return (num_tokens > 0) / _at_least_one(num_tokens)


def constant(
  num_tokens: Int[np.ndarray, "P G"], *, divisor: int
) -> Float[np.ndarray, "P G"]:
  """1/N sum_i 1/divisor sum_t: Dr. GRPO (arXiv:2503.20783).

  Its divisor is the token limit of a completion, whatever was sampled. With a
  divisor of 1, a completion counts by the sum over its tokens.
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
