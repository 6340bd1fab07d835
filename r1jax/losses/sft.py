"""The loss of supervised fine-tuning."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def sft_loss(
  logprobs: Float[Array, "B T"], weights: Float[Array, "B T"]
) -> Float[Array, ""]:
  """The weighted negative log-likelihood, in nats.

  The weights include the denominator, 1 / (tokens of the whole batch), so that
  the losses of parts of a batch add up. Tokens of weight 0 are ignored, even if
  their logprobs are infinite.
  """
  return -jnp.sum(jnp.where(weights > 0, logprobs, 0.0) * weights)
