"""Advantages: how much better a completion is than the rest of its group.

Rewards [P, G] become advantages [P, G], on the host and in float64. Each row of
the array is one group.

A reward of NaN means that the completion could not be graded. It is left out of
the group's statistics, and its advantage is 0. A group whose rewards are all
equal has no learning signal, and its advantages are exactly 0. Equality is
tested by max == min, not by a small standard deviation.
"""

import numpy as np
from jaxtyping import Bool, Float

from r1jax.losses.tables import choose


def advantages(
  rewards: Float[np.ndarray, "P G"], *, name: str, **settings
) -> Float[np.ndarray, "P G"]:
  """Returns `ADVANTAGES[name](rewards, **settings)`.

  Raises ValueError for groups of one completion, and for a name or a keyword
  argument that does not exist.
  """
  function = choose("advantage", ADVANTAGES, dict(name=name, **settings))
  rewards = np.asarray(rewards, np.float64)
  if rewards.shape[1] < 2:
    raise ValueError(
      f"group_size is {rewards.shape[1]}, but must be at least 2: an advantage "
      "compares a completion with the rest of its group"
    )
  return function(rewards)


def zero_signal(rewards: Float[np.ndarray, "P G"]) -> Bool[np.ndarray, "P"]:
  """True for groups without a learning signal: all their grades are equal.

  A group with fewer than two grades has none either.
  """
  graded = np.isfinite(rewards)
  highest = np.where(graded, rewards, -np.inf).max(axis=1)
  lowest = np.where(graded, rewards, np.inf).min(axis=1)
  return ~(highest > lowest)


def group_mean(
  rewards: Float[np.ndarray, "P G"],
) -> Float[np.ndarray, "P G"]:
  """r - mean(r): Dr. GRPO (arXiv:2503.20783).

  Examples:
    >>> group_mean(np.array([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]]))
    array([[ 0.5, -0.5, -0.5,  0.5],
           [ 0. ,  0. ,  0. ,  0. ]])
  """
  graded = np.isfinite(rewards)
  grades = np.where(graded, rewards, 0.0)
  mean = grades.sum(axis=1, keepdims=True) / _num_graded(rewards)
  has_signal = graded & ~zero_signal(rewards)[:, None]
  return np.where(has_signal, grades - mean, 0.0)


def group_std(
  rewards: Float[np.ndarray, "P G"], *, ddof: int = 0
) -> Float[np.ndarray, "P G"]:
  """(r - mean(r)) / std(r): GRPO (arXiv:2402.03300, sec. 4.1.2).

  No epsilon is added to the standard deviation. The paper does not say which
  deviation it uses. The default, `ddof` 0, is that of the population, which
  bounds advantages by sqrt(G - 1). `ddof` 1 is that of the sample, as in TRL
  and verl, and the bound is (G - 1) / sqrt(G).

  Examples:
    >>> rewards = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, np.nan, 1.0]])
    >>> group_std(rewards).round(2)
    array([[ 1.  , -1.  , -1.  ,  1.  ],
           [ 0.71, -1.41,  0.  ,  0.71]])

  Raises ValueError for another `ddof`.
  """
  if ddof not in (0, 1):
    raise ValueError(
      f"advantage 'group_std': ddof is {ddof}, but must be 0 or 1"
    )
  centred = group_mean(rewards)
  squares = (centred**2).sum(axis=1, keepdims=True)
  std = np.sqrt(squares / np.maximum(_num_graded(rewards) - ddof, 1))
  # The deviation is 0 for equal rewards, and where tiny squares underflow.
  return np.divide(centred, std, out=np.zeros_like(centred), where=std > 0)


def leave_one_out(
  rewards: Float[np.ndarray, "P G"],
) -> Float[np.ndarray, "P G"]:
  """r_i - mean of the other r_j: RLOO (arXiv:2402.14740).

  This equals (r - mean(r)) n / (n - 1) for n graded completions.

  Examples:
    >>> leave_one_out(np.array([[3.0, 0.0, 0.0]]))
    array([[ 3. , -1.5, -1.5]])
  """
  size = _num_graded(rewards)
  return group_mean(rewards) * (size / np.maximum(size - 1, 1))


ADVANTAGES = {
  "group_std": group_std,
  "group_mean": group_mean,
  "leave_one_out": leave_one_out,
}


def _num_graded(rewards: np.ndarray) -> np.ndarray:
  """Number of graded completions of each group [P, 1], at least 1."""
  return np.maximum(np.isfinite(rewards).sum(axis=1, keepdims=True), 1)
