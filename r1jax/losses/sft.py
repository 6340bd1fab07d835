"""Supervised fine-tuning: imitate texts, whoever wrote them."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def sft_loss(
  logprobs: Float[Array, "B T"], weights: Float[Array, "B T"]
) -> Float[Array, ""]:
  """Weighted negative log-likelihood, in nats.

  The weights carry the denominator (1 / number of tokens of the whole batch),
  so that parts of a batch add up. Where a weight is 0, any log-probability
  will do, infinite ones too.
  """
  return -jnp.sum(jnp.where(weights > 0, logprobs, 0.0) * weights)
