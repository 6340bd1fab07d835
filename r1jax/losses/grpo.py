"""The loss of Group Relative Policy Optimization, GRPO (arXiv:2402.03300).

The terms of the objective are chosen by name from tables: RATIOS, CORRECTIONS,
CLIPS and KLS. Advantages come from `r1jax.losses.advantages`, token weights
from `r1jax.losses.aggregation`. `r1jax.losses.presets` has the combinations
that papers use.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from r1jax.losses.clips import CLIPS
from r1jax.losses.kl import KLS, k3
from r1jax.losses.ratios import (
  RATIOS,
  completion_total,
  correction_weights,
  safe_exp,
)
from r1jax.losses.tables import choose


def grpo_loss(
  logprobs: Float[Array, "*B"],
  old_logprobs: Float[Array, "*B"],
  reference_logprobs: Float[Array, "*B"] | None,
  advantages: Float[Array, "*B"],
  weights: Float[Array, "*B"],
  num_tokens: Int[Array, ""] | int,
  *,
  completions: Int[Array, "*B"] | None = None,
  num_completions: int = 0,
  sampler_logprobs: Float[Array, "*B"] | None = None,
  entropy: Float[Array, "*B"] | None = None,
  ratio: str,
  clip: Mapping[str, Any],
  kl: str,
  kl_coefficient: float,
  entropy_coefficient: float,
  correction: Mapping[str, Any] | None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The loss of an update, or of a part of it, and its metrics.

    -sum_t w_t (c_t S(r_t, A_t) - beta KL_t + eta H_t)

  In GRPO, S is the clipped surrogate min(r A, clip(r, 1 - e, 1 + e) A), eq. 3,
  and c = 1. The arrays hold tokens in any layout. A ratio or correction over
  sequences needs all tokens of a completion in the same call.

  Args:
    logprobs: of the policy, in nats.
    old_logprobs: of the old policy, the denominator of the ratio r.
    reference_logprobs: of the reference policy; None leaves the KL out.
    advantages: A of each token, equal within a completion.
    weights: w of each token. Values at tokens of weight 0 are ignored, NaN
      included.
    num_tokens: tokens with a weight in the whole update; metrics are means over
      these.
    completions: the completion of each token, below `num_completions`; needed
      for ratios and corrections over sequences.
    num_completions: static.
    sampler_logprobs: of the sampler, for the correction.
    entropy: H of the policy at each token, in nats.
    ratio: a key of RATIOS.
    clip: "name", a key of CLIPS, and the keyword arguments of that.
    kl: a key of KLS.
    kl_coefficient: beta, per nat; 0 for no KL.
    entropy_coefficient: eta, per nat; 0 for no bonus.
    correction: keyword arguments of `correction_weights`, which computes the
      weight c. Its gradient is stopped. None for c = 1.

  Returns:
    The loss, and metrics that add up over the parts of an update. Metrics whose
    names end in "max" or "min" are extrema instead; the minimum over no tokens
    is inf.

  Raises ValueError for settings that do not exist or lack their arrays.
  """
  _require(kl_coefficient=kl_coefficient, reference_logprobs=reference_logprobs)
  _require(entropy_coefficient=entropy_coefficient, entropy=entropy)
  _require(correction=correction, sampler_logprobs=sampler_logprobs)
  trained = weights > 0
  masked = lambda x: jnp.where(trained, x, 0.0)
  mean = lambda x: jnp.sum(masked(x)) / jnp.maximum(num_tokens, 1)

  def total(values):
    if completions is None or not num_completions:
      raise ValueError(
        "a ratio or correction over sequences needs completions and "
        "num_completions"
      )
    return completion_total(completions, num_completions, trained, values)

  # Masked before anything is computed, so that gradients have no NaN either.
  logprobs, old_logprobs, advantages = map(
    masked, (logprobs, old_logprobs, advantages)
  )
  log_ratio = logprobs - old_logprobs
  r = choose("ratio", RATIOS, dict(name=ratio))(log_ratio, total)
  surrogate, low, high = choose("clip", CLIPS, clip)(r, advantages, logprobs)
  metrics = {
    "ratio/mean": mean(r),
    "ratio/min": jnp.min(jnp.where(trained, r, jnp.inf)),
    "ratio/max": jnp.max(masked(r)),
    "kl/old": mean(k3(log_ratio, r)),
    "kl/old_k1": mean(-log_ratio),
    "clip_ratio/low": mean(low),
    "clip_ratio/high": mean(high),
    "clip_ratio/region": mean(low | high),
  }
  if correction is not None:
    rho, weight = correction_weights(
      old_logprobs - masked(sampler_logprobs), total, **correction
    )
    surrogate = jax.lax.stop_gradient(weight) * surrogate
    metrics |= {
      "sampling/ratio_mean": mean(rho),
      "sampling/ratio_max": jnp.max(masked(rho)),
      "sampling/ratio_clipped": mean(weight != rho),
    }
  loss = metrics["loss/policy"] = -jnp.sum(weights * surrogate)

  estimate = choose("kl", KLS, dict(name=kl))
  if reference_logprobs is not None:
    # Of single tokens, whatever the ratio of the surrogate is.
    token_ratio = safe_exp(log_ratio)
    x = masked(reference_logprobs) - logprobs
    metrics["kl/ref"] = mean(k3(x, token_ratio))
    if kl_coefficient:
      penalty = kl_coefficient * jnp.sum(weights * estimate(x, token_ratio))
      metrics["loss/kl"] = penalty
      loss = loss + penalty
  if entropy is not None:
    metrics["entropy/mean"] = mean(entropy)
    if entropy_coefficient:
      bonus = entropy_coefficient * jnp.sum(weights * masked(entropy))
      metrics["loss/entropy"] = -bonus
      loss = loss - bonus
  return loss, metrics


def _require(**pair) -> None:
  """Raises ValueError if a setting is on and the array it needs is None."""
  (setting, value), (name, array) = pair.items()
  if value and array is None:
    raise ValueError(f"{setting} is {value!r}, but there is no {name}")


def check(
  *,
  ratio: str,
  clip: Mapping[str, Any],
  kl: str,
  kl_coefficient: float,
  entropy_coefficient: float,
  correction: Mapping[str, Any] | None,
) -> None:
  """Raises ValueError for settings that `grpo_loss` would refuse.

  It traces the loss of one token and compiles nothing.
  """
  loss = functools.partial(
    grpo_loss,
    num_tokens=1,
    num_completions=1,
    ratio=ratio,
    clip=clip,
    kl=kl,
    kl_coefficient=kl_coefficient,
    entropy_coefficient=entropy_coefficient,
    correction=correction,
  )
  values = jax.ShapeDtypeStruct((1,), jnp.float32)
  numbers = jax.ShapeDtypeStruct((1,), jnp.int32)
  jax.eval_shape(
    loss,
    *[values] * 5,
    completions=numbers,
    sampler_logprobs=values,
    entropy=values,
  )
