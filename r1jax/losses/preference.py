"""Losses of reward models: pairwise (helpfulness) and pointwise (safety).

The weights include the denominator, so that the losses of parts of a batch add
up. Scores of weight 0 are ignored, even if they are not finite.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def bradley_terry(
  chosen: Float[Array, "P"],
  rejected: Float[Array, "P"],
  weights: Float[Array, "P"],
  *,
  margin: float = 0.0,
) -> Float[Array, ""]:
  """The weighted negative log-likelihood of preferences, in nats.

      sum_i w_i * -log sigmoid(chosen_i - rejected_i - margin)

  The difference of two scores is the log-odds that the first is preferred
  (Bradley and Terry 1952; arXiv:2203.02155, eq. 1).

  Args:
    chosen: score of the preferred response of each pair.
    rejected: score of the other response.
    weights: of the pairs.
    margin: by which the scores should differ (arXiv:2307.09288, eq. 2).

  Examples:
    >>> scores = jnp.array([1.0]), jnp.array([1.0])
    >>> round(float(bradley_terry(*scores, jnp.ones(1))), 4)
    0.6931
  """
  used = weights > 0
  # Masked before the loss, so that the gradient is masked, too.
  difference = jnp.where(used, chosen, 0.0) - jnp.where(used, rejected, 0.0)
  return -jnp.sum(weights * jax.nn.log_sigmoid(difference - margin))


def binary_cross_entropy(
  scores: Float[Array, "N"],
  labels: Float[Array, "N"],
  weights: Float[Array, "N"],
) -> Float[Array, ""]:
  """The weighted negative log-likelihood of labels, in nats.

      sum_i -w_i * (y_i * log sigmoid(s_i) + (1 - y_i) * log sigmoid(-s_i))

  A score is the log-odds of label 1. DeepSeek-R1 trains its safety reward model
  on single responses, safe or unsafe (arXiv:2501.12948v2, sec. 3.1).

  Args:
    scores: of the responses.
    labels: 1 or 0.
    weights: of the responses.

  Examples:
    >>> loss = binary_cross_entropy(jnp.zeros(2), jnp.array([1.0, 0.0]),
    ...                             jnp.array([0.5, 0.5]))
    >>> round(float(loss), 4)
    0.6931
  """
  scores = jnp.where(weights > 0, scores, 0.0)
  positive, negative = jax.nn.log_sigmoid(scores), jax.nn.log_sigmoid(-scores)
  return -jnp.sum(weights * (labels * positive + (1 - labels) * negative))
