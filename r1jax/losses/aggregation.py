"""What one token's loss counts in the loss of an update.

Each token of a rollout gets a weight, once, from the mask of the whole update.
The weights carry the denominators, so that a loss is a plain weighted sum and
any split of the update into devices, microbatches or packed rows adds up.

Arguments are the mask of tokens that the policy chose [P, G, T] and which
completions count [P, G]. One that does not (it could not be graded, or was cut
short where that is masked) leaves the numerator and the denominator. If none
counts, all weights are 0.
"""

import numpy as np
from jaxtyping import Bool, Float

from r1jax.losses.tables import choose, positive


def token_weights(
  mask: Bool[np.ndarray, "P G T"],
  counted: Bool[np.ndarray, "P G"],
  *,
  name: str,
  **settings,
) -> Float[np.ndarray, "P G T"]:
  """The weights that `AGGREGATIONS[name]` gives to the tokens.

  Raises ValueError for a name or a keyword argument that does not exist.
  """
  section = dict(name=name, **settings)
  return choose("aggregation", AGGREGATIONS, section)(mask, counted)


def completion_mean(
  mask: Bool[np.ndarray, "P G T"], counted: Bool[np.ndarray, "P G"]
) -> Float[np.ndarray, "P G T"]:
  """1/N sum_i 1/|o_i| sum_t: GRPO (arXiv:2402.03300, eq. 3).

  The mean, over the N completions that count, of the mean over a completion's
  tokens.
  """
  mask = _final(mask, counted)
  tokens = np.maximum(mask.sum(axis=-1, keepdims=True), 1)
  return mask / tokens / _completions(mask)


def token_mean(
  mask: Bool[np.ndarray, "P G T"], counted: Bool[np.ndarray, "P G"]
) -> Float[np.ndarray, "P G T"]:
  """1/(sum_i |o_i|) sum_i sum_t: DAPO (arXiv:2503.14476, eq. 8).

  The mean over all tokens of the update; the paper writes it for one group.
  """
  mask = _final(mask, counted)
  return mask / np.maximum(mask.sum(), 1)


def constant(
  mask: Bool[np.ndarray, "P G T"],
  counted: Bool[np.ndarray, "P G"],
  *,
  divisor: int,
) -> Float[np.ndarray, "P G T"]:
  """1/N sum_i 1/divisor sum_t: Dr. GRPO (arXiv:2503.20783).

  Its divisor is the token limit of a completion, the same whatever was sampled.
  With a divisor of 1, a completion counts by the sum over its tokens.
  """
  positive("aggregation 'constant'", divisor=divisor)
  mask = _final(mask, counted)
  return mask / (_completions(mask) * divisor)


AGGREGATIONS = {
  "completion_mean": completion_mean,
  "token_mean": token_mean,
  "constant": constant,
}


def _final(mask: np.ndarray, counted: np.ndarray) -> np.ndarray:
  return np.asarray(mask) & np.asarray(counted)[..., None]


def _completions(mask: np.ndarray) -> int:
  """How many completions have a token in the mask, at least 1."""
  return max(int(mask.any(axis=-1).sum()), 1)
