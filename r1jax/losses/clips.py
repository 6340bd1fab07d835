"""Clips: surrogate objectives that bound how far a ratio may move the policy.

Each function takes the ratio r, the advantage A and the policy's logprob of
each token, and returns the objective to maximise. All raise ValueError for
bounds that are 0 or below.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from r1jax.losses.tables import positive


class Clipped(NamedTuple):
  """A surrogate objective, and the tokens at which the clip was active.

  Tokens with an advantage of 0 are in neither mask.
  """

  surrogate: Float[Array, "*B"]
  low: Bool[Array, "*B"]  # The lower bound replaced the ratio.
  high: Bool[Array, "*B"]  # An upper bound replaced the ratio.


def unclipped(
  ratio: Float[Array, "*B"],
  advantages: Float[Array, "*B"],
  logprobs: Float[Array, "*B"],
) -> Clipped:
  """r A: no clip. On policy, the gradient is that of REINFORCE."""
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

  Ratios are positive, so an epsilon of 1 or more sets no lower bound. R1 uses
  an epsilon of 10, which clips ratios at 11 where A > 0.
  """
  positive("clip 'symmetric'", epsilon=epsilon)
  return asymmetric(ratio, advantages, logprobs, low=epsilon, high=epsilon)


def asymmetric(
  ratio: Float[Array, "*B"],
  advantages: Float[Array, "*B"],
  logprobs: Float[Array, "*B"],
  *,
  low: float,
  high: float,
) -> Clipped:
  """min(r A, clip(r, 1 - low, 1 + high) A): DAPO (arXiv:2503.14476, eq. 8).

  The paper calls it Clip-Higher, as `high` is above `low` there.

  Examples:
    >>> ratio, one = jnp.array([0.5, 1.0, 2.0]), jnp.ones(3)
    >>> clipped = asymmetric(ratio, one, jnp.log(ratio), low=0.2, high=0.28)
    >>> [round(float(value), 2) for value in clipped.surrogate]
    [0.5, 1.0, 1.28]
  """
  del logprobs
  positive("clip 'asymmetric'", low=low, high=high)
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

  For A < 0 the ratio is capped as well, at d = delta. Also known as dual-clip
  PPO (arXiv:1912.09729).

  Raises ValueError unless delta is above 1 + high.
  """
  if not delta > 1 + high:
    raise ValueError(
      f"clip 'two_sided': delta is {delta}, but must be above 1 + high, "
      f"{1 + high}"
    )
  capped = jnp.minimum(ratio, delta)
  surrogate, below, above = asymmetric(
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

  The clipped ratio is a constant factor of the gradient (sg is stop_gradient),
  so that clipped tokens keep a gradient. A `low` of 1 or more sets no lower
  bound.
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
  "asymmetric": asymmetric,
  "two_sided": two_sided,
  "cispo": cispo,
}
