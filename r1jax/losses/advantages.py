"""How much better a completion is than the others of its group.

Host arithmetic in float64, rewards [P, G] to advantages [P, G]. A reward of NaN
could not be graded: it leaves the statistics and its advantage is 0. A group
whose rewards are all equal teaches nothing and its advantages are exactly 0:
equal is decided by max == min, never by a small deviation. Groups are rows of
the array, whatever their prompts say.
"""

import numpy as np
from jaxtyping import Bool, Float

from r1jax.losses.tables import choose


def advantages(
  rewards: Float[np.ndarray, "P G"], *, name: str, **settings
) -> Float[np.ndarray, "P G"]:
  """The advantages that `ADVANTAGES[name]` makes of the rewards.

  Raises ValueError for groups of one completion, and for a name or a keyword
  argument that does not exist.
  """
  function = choose("advantage", ADVANTAGES, dict(name=name, **settings))
  rewards = np.asarray(rewards, np.float64)
  if rewards.shape[1] < 2:
    raise ValueError(
      f"group_size is {rewards.shape[1]}: an advantage is measured against the "
      "rest of the group, so it must be at least 2"
    )
  return function(rewards)


def zero_signal(rewards: Float[np.ndarray, "P G"]) -> Bool[np.ndarray, "P"]:
  """Whether a group teaches nothing: max == min, or fewer than two grades."""
  graded = np.isfinite(rewards)
  highest = np.where(graded, rewards, -np.inf).max(axis=1)
  lowest = np.where(graded, rewards, np.inf).min(axis=1)
  return ~(highest > lowest)


def group_mean(
  rewards: Float[np.ndarray, "P G"],
) -> Float[np.ndarray, "P G"]:
  """r - mean(r): Dr. GRPO (arXiv:2503.20783)."""
  graded = np.isfinite(rewards)
  known = np.where(graded, rewards, 0.0)
  mean = known.sum(axis=1, keepdims=True) / _size(rewards)
  teaches = graded & ~zero_signal(rewards)[:, None]
  return np.where(teaches, known - mean, 0.0)


def group_std(
  rewards: Float[np.ndarray, "P G"], *, ddof: int = 0
) -> Float[np.ndarray, "P G"]:
  """(r - mean(r)) / std(r): GRPO (arXiv:2402.03300, sec. 4.1.2).

  Nothing is added to the deviation. By default it is the population's, and no
  advantage exceeds sqrt(G - 1). The paper does not say which; with `ddof` 1 it
  is the sample's, as in TRL and verl, and the bound is (G - 1) / sqrt(G).
  """
  if ddof not in (0, 1):
    raise ValueError(
      f"advantage 'group_std': ddof is {ddof}, but must be 0 or 1"
    )
  centred = group_mean(rewards)
  squares = (centred**2).sum(axis=1, keepdims=True)
  deviation = np.sqrt(squares / np.maximum(_size(rewards) - ddof, 1))
  return _divide(centred, deviation)


def leave_one_out(
  rewards: Float[np.ndarray, "P G"],
) -> Float[np.ndarray, "P G"]:
  """r_i - mean of the other r_j: RLOO (arXiv:2402.14740).

  Equal to (r - mean(r)) n / (n - 1). It is not divided by a deviation of the
  others: where these are equal, that would be a division by 0.
  """
  size = _size(rewards)
  return group_mean(rewards) * (size / np.maximum(size - 1, 1))


ADVANTAGES = {
  "group_std": group_std,
  "group_mean": group_mean,
  "leave_one_out": leave_one_out,
}


def _size(rewards: np.ndarray) -> np.ndarray:
  """How many of each group were graded [P, 1], at least 1."""
  return np.maximum(np.isfinite(rewards).sum(axis=1, keepdims=True), 1)


def _divide(centred: np.ndarray, deviation: np.ndarray) -> np.ndarray:
  """0 where the deviation is 0, which happens when tiny squares underflow."""
  apart = deviation > 0
  return np.where(apart, centred / np.where(apart, deviation, 1.0), 0.0)
