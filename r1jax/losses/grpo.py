"""Group Relative Policy Optimization (arXiv:2402.03300, sec. 4.1).

Pure array maths: no model, no sampling, no config.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def group_advantages(
  rewards: Float[np.ndarray, "P G"],
) -> Float[np.ndarray, "P G"]:
  """How much better a completion is than its group: (r - mean(r)) / std(r).

  The standard deviation is the population's (ddof 0), with nothing added. A
  group of equal rewards teaches nothing and gets exactly 0, and equal is
  decided by max == min, not by a small deviation. A reward of NaN (could not be
  graded) leaves the statistics and gets 0.

  Host arithmetic, float64. Raises ValueError for groups of one completion.
  """
  rewards = np.asarray(rewards, np.float64)
  if rewards.shape[1] < 2:
    raise ValueError(
      f"group_size is {rewards.shape[1]}: an advantage is measured against the "
      "rest of the group, so it must be at least 2"
    )
  graded = np.isfinite(rewards)
  count = np.maximum(graded.sum(axis=1, keepdims=True), 1)
  known = np.where(graded, rewards, 0.0)
  centred = np.where(
    graded, rewards - known.sum(axis=1, keepdims=True) / count, 0.0
  )
  deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
  highest = np.where(graded, rewards, -np.inf).max(axis=1, keepdims=True)
  lowest = np.where(graded, rewards, np.inf).min(axis=1, keepdims=True)
  apart = (highest > lowest) & (deviation > 0)  # Squares may underflow.
  return np.where(apart, centred / np.where(apart, deviation, 1.0), 0.0)


def completion_weights(
  mask: Bool[np.ndarray, "P G T"], graded: Bool[np.ndarray, "P G"]
) -> Float[np.ndarray, "P G T"]:
  """Each token's share when a loss is the mean, over graded completions, of
  the mean over a completion's tokens (eq. 3). They sum to 1, or to 0 when
  nothing was graded."""
  mask = np.asarray(mask) & np.asarray(graded)[..., None]
  tokens = np.maximum(mask.sum(axis=-1, keepdims=True), 1)
  completions = np.maximum(mask.any(axis=-1).sum(), 1)
  return mask / tokens / completions


def grpo_loss(
  logprobs: Float[Array, "*B"],
  old_logprobs: Float[Array, "*B"],
  reference_logprobs: Float[Array, "*B"] | None,
  advantages: Float[Array, "*B"],
  weights: Float[Array, "*B"],
  *,
  clip_epsilon: float,
  kl_coefficient: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Clipped surrogate and KL penalty, summed with the tokens' weights (eq. 3).

    -sum_t w_t (min(r_t A_t, clip(r_t, 1 - e, 1 + e) A_t) - beta KL_t)
    KL_t = pi_ref / pi - log(pi_ref / pi) - 1        (k3, eq. 4)

  Args:
    logprobs: of the current policy.
    old_logprobs: of the policy that the ratio r divides by.
    reference_logprobs: of the reference policy; None leaves the KL out.
    advantages: one per token, equal within a completion.
    weights: of each token; what has weight 0 may hold anything, NaN included.
    clip_epsilon: how far the ratio may move from 1 before its gradient stops.
    kl_coefficient: beta, per nat.

  Returns:
    The loss, and metrics that are sums over tokens with the same weights.
  """
  counts = weights > 0
  logprobs, old_logprobs, advantages = (
    jnp.where(counts, x, 0.0) for x in (logprobs, old_logprobs, advantages)
  )
  ratio = jnp.exp(logprobs - old_logprobs)
  clipped = jnp.clip(ratio, 1 - clip_epsilon, 1 + clip_epsilon)
  surrogate = jnp.minimum(ratio * advantages, clipped * advantages)
  policy = -jnp.sum(weights * surrogate)
  low = (ratio < 1 - clip_epsilon) & (advantages < 0)
  high = (ratio > 1 + clip_epsilon) & (advantages > 0)
  metrics = {
    "loss/policy": policy,
    "ratio/mean": jnp.sum(weights * ratio),
    "ratio/max": jnp.max(jnp.where(counts, ratio, 0.0)),
    "kl/old": jnp.sum(weights * (ratio - 1 - (logprobs - old_logprobs))),
    "clip_ratio/low": jnp.sum(weights * low),
    "clip_ratio/high": jnp.sum(weights * high),
    "clip_ratio/region": jnp.sum(weights * (low | high)),
  }
  if reference_logprobs is None:
    return policy, metrics
  log_ratio = jnp.where(counts, reference_logprobs, 0.0) - logprobs
  kl = jnp.sum(weights * (jnp.exp(log_ratio) - log_ratio - 1))
  metrics |= {"kl/ref": kl, "loss/kl": kl_coefficient * kl}
  return policy + kl_coefficient * kl, metrics
