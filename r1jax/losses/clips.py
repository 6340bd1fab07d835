"""How far a ratio may move before it stops teaching.

Each takes ratios, advantages and the policy's log-probabilities, token by
token, and gives back what is to be maximised.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from r1jax.losses.tables import positive


class Clipped(NamedTuple):
  """A surrogate objective, and where a bound took the ratio's place."""

  surrogate: Float[Array, "*B"]
  low: Bool[Array, "*B"]  # The ratio was below its range, ...
  high: Bool[Array, "*B"]  # ... above it. Never both, nor for advantage 0.


def unclipped(
  ratio: Float[Array, "*B"],
  advantages: Float[Array, "*B"],
  logprobs: Float[Array, "*B"],
) -> Clipped:
  """r A. On policy its gradient is REINFORCE's."""
  del logprobs
  never = jnp.zeros_like(ratio, bool)
  return Clipped(ratio * advantages, never, never)


def symmetric(
  ratio: Float[Array, "*B"],
  advantages: Float[Array, "*B"],
  logprobs: Float[Array, "*B"],
  *,
  epsilon: float,
) -> Clipped:
  """min(r A, clip(r, 1 - e, 1 + e) A): PPO (arXiv:1707.06347, eq. 7).

  As no ratio is negative, an epsilon above 1 is a cap for A > 0 alone; R1's 10
  lets ratios grow to 11.
  """
  positive("clip 'symmetric'", epsilon=epsilon)
  return higher(ratio, advantages, logprobs, low=epsilon, high=epsilon)


def higher(
  ratio: Float[Array, "*B"],
  advantages: Float[Array, "*B"],
  logprobs: Float[Array, "*B"],
  *,
  low: float,
  high: float,
) -> Clipped:
  """min(r A, clip(r, 1 - low, 1 + high) A): DAPO (arXiv:2503.14476, eq. 8)."""
  del logprobs
  positive("clip 'higher'", low=low, high=high)
  clipped = jnp.clip(ratio, 1 - low, 1 + high)
  return Clipped(
    jnp.minimum(ratio * advantages, clipped * advantages),
    (ratio < 1 - low) & (advantages < 0),
    (ratio > 1 + high) & (advantages > 0),
  )


def two_sided(
  ratio: Float[Array, "*B"],
  advantages: Float[Array, "*B"],
  logprobs: Float[Array, "*B"],
  *,
  low: float,
  high: float,
  delta: float,
) -> Clipped:
  """min(min(r, d) A, clip(r, 1 - low, 1 + high) A): arXiv:2505.07291.

  For A < 0 the ratio is capped too, at delta; also known as dual clip
  (arXiv:1912.09729). Raises ValueError unless delta exceeds 1 + high.
  """
  if not delta > 1 + high:
    raise ValueError(
      f"clip 'two_sided': delta is {delta}, but must be above 1 + high, "
      f"{1 + high}"
    )
  capped = jnp.minimum(ratio, delta)
  surrogate, below, above = higher(
    capped, advantages, logprobs, low=low, high=high
  )
  return Clipped(surrogate, below, above | ((ratio > delta) & (advantages < 0)))


def cispo(
  ratio: Float[Array, "*B"],
  advantages: Float[Array, "*B"],
  logprobs: Float[Array, "*B"],
  *,
  low: float,
  high: float,
) -> Clipped:
  """sg(clip(r, 1 - low, 1 + high)) A log pi: CISPO (arXiv:2506.13585, eq. 4-5).

  The clip bounds what a token weighs; no token loses its gradient. A `low` of 1
  or more is no lower bound.
  """
  positive("clip 'cispo'", low=low, high=high)
  weight = jax.lax.stop_gradient(jnp.clip(ratio, 1 - low, 1 + high))
  return Clipped(
    weight * advantages * logprobs,
    (ratio < 1 - low) & (advantages != 0),
    (ratio > 1 + high) & (advantages != 0),
  )


CLIPS = {
  "none": unclipped,
  "symmetric": symmetric,
  "higher": higher,
  "two_sided": two_sided,
  "cispo": cispo,
}
