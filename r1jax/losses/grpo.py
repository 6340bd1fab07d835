"""Group Relative Policy Optimization (arXiv:2402.03300) and its relatives.

Pure array maths: no model, no sampling. Each term of the objective is chosen by
name from a table: RATIOS and CORRECTIONS, CLIPS, KLS. The advantages and the
weights come from `r1jax.losses.advantages` and `r1jax.losses.aggregation`;
whole recipes are in `r1jax.losses.presets`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from r1jax.losses.clips import CLIPS
from r1jax.losses.kl import KLS, k3
from r1jax.losses.ratios import RATIOS, completion_total, correct, exp
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
  """What an update descends, summed with the tokens' weights.

    -sum_t w_t (c_t S(r_t, A_t) - beta KL_t + eta H_t)

  with GRPO's clipped surrogate S = min(r A, clip(r, 1 - e, 1 + e) A), eq. 3, or
  another. The arrays hold tokens in any layout, but all tokens of a completion.

  Args:
    logprobs: of the current policy.
    old_logprobs: of the policy that the ratio r divides by.
    reference_logprobs: of the reference policy; None leaves the KL out.
    advantages: one per token, equal within a completion.
    weights: of each token; what has weight 0 may hold anything, NaN included.
    num_tokens: with a weight in the whole update; metrics are means over them.
    completions: which completion a token is of, for what is per completion.
    num_completions: a bound on those numbers, static.
    sampler_logprobs: of the policy that sampled, for the correction.
    entropy: of the policy, in nats.
    ratio: one of RATIOS.
    clip: the name of one of CLIPS and its keyword arguments.
    kl: one of KLS.
    kl_coefficient: beta, per nat; 0 for no KL.
    entropy_coefficient: eta, per nat; 0 for no bonus.
    correction: "name" of one of CORRECTIONS, "level" and keyword arguments of
      c, a constant in the gradient; None for c = 1.

  Returns:
    The loss, and metrics that add up over the parts of an update. Those whose
    names end in "max" or "min" are the largest and least instead; the least of
    no tokens is inf.

  Raises ValueError for settings that do not exist or lack their arrays.
  """
  _require(kl_coefficient=kl_coefficient, reference_logprobs=reference_logprobs)
  _require(entropy_coefficient=entropy_coefficient, entropy=entropy)
  _require(correction=correction, sampler_logprobs=sampler_logprobs)
  counts = weights > 0
  known = lambda x: jnp.where(counts, x, 0.0)
  mean = lambda x: jnp.sum(known(x)) / jnp.maximum(num_tokens, 1)

  def total(values):
    if completions is None or not num_completions:
      raise ValueError(
        "what is of whole sequences needs completions and num_completions"
      )
    return completion_total(completions, num_completions, counts, values)

  logprobs, old_logprobs, advantages = map(
    known, (logprobs, old_logprobs, advantages)
  )
  log_ratio = logprobs - old_logprobs
  r = choose("ratio", RATIOS, dict(name=ratio))(log_ratio, total)
  surrogate, low, high = choose("clip", CLIPS, clip)(r, advantages, logprobs)
  metrics = {
    "ratio/mean": mean(r),
    "ratio/min": jnp.min(jnp.where(counts, r, jnp.inf)),
    "ratio/max": jnp.max(jnp.where(counts, r, 0.0)),
    "kl/old": mean(k3(log_ratio, r)),
    "kl/old_k1": mean(-log_ratio),
    "clip_ratio/low": mean(low),
    "clip_ratio/high": mean(high),
    "clip_ratio/region": mean(low | high),
  }
  if correction is not None:
    rho, weight = correct(
      old_logprobs - known(sampler_logprobs), total, **correction
    )
    surrogate = jax.lax.stop_gradient(weight) * surrogate
    metrics |= {
      "sampling/is_ratio_mean": mean(rho),
      "sampling/is_ratio_max": jnp.max(jnp.where(counts, rho, 0.0)),
      "sampling/is_clipped_frac": mean(weight != rho),
    }
  loss = metrics["loss/policy"] = -jnp.sum(weights * surrogate)

  estimate = choose("kl", KLS, dict(name=kl))
  if reference_logprobs is not None:
    x, importance = known(reference_logprobs) - logprobs, exp(log_ratio)
    metrics["kl/ref"] = mean(k3(x, importance))
    if kl_coefficient:
      penalty = kl_coefficient * jnp.sum(weights * estimate(x, importance))
      metrics["loss/kl"] = penalty
      loss = loss + penalty
  if entropy is not None:
    metrics["entropy/mean"] = mean(known(entropy))
    if entropy_coefficient:
      bonus = entropy_coefficient * jnp.sum(weights * known(entropy))
      metrics["loss/entropy"] = -bonus
      loss = loss - bonus
  return loss, metrics


def _require(**pair) -> None:
  """Raises ValueError if the setting is on and its array absent."""
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
  """Raises ValueError for settings that `grpo_loss` would not run with.

  It traces the loss of one token, which compiles nothing.
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
