"""Routed and shared experts (arXiv:2412.19437, sec. 2.1.2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from r1jax.models import ops
from r1jax.models.config import ModelConfig
from r1jax.models.layers import swiglu
from r1jax.types import Params


def route(
  params: Params, x: Float[Array, "M D"], config: ModelConfig
) -> tuple[Float[Array, "M E"], Float[Array, "M E"], Float[Array, "M E"]]:
  """Who works on each token, and how much it counts (eq. 12-16).

  s = sigmoid(x W); the top k of s + bias are chosen; the gates of the chosen
  are their s, without the bias, scaled to sum to `routed_scale`.

  Returns:
    `gates`, 0 where not chosen; `chosen`, 1 or 0; and `affinity` = s / sum(s).
  """
  scores = jax.nn.sigmoid(
    x.astype(jnp.float32) @ params["router"].astype(jnp.float32)
  )
  biased = jax.lax.stop_gradient(scores + params["router_bias"])
  _, indices = jax.lax.top_k(biased, config.experts_per_token)
  chosen = jnp.sum(jax.nn.one_hot(indices, config.num_experts), axis=-2)
  gates = scores * chosen
  gates *= config.routed_scale / jnp.sum(gates, axis=-1, keepdims=True)
  return gates, chosen, scores / jnp.sum(scores, axis=-1, keepdims=True)


def moe(
  params: Params,
  x: Float[Array, "B T D"],
  mask: Float[Array, "B T"],
  config: ModelConfig,
) -> tuple[Float[Array, "B T D"], Float[Array, "E"], Float[Array, ""]]:
  """Shared experts for all tokens, routed experts for those they chose.

  Returns:
    The output; the load, the number of masked-in tokens that each expert got;
    and the balance loss, sum_e f_e P_e of every row (eq. 17-20, without alpha)
    times the row's tokens, summed over rows.
  """
  flat = x.reshape(-1, x.shape[-1])
  gates, chosen, affinity = route(params, flat, config)
  routed = ops.experts(flat, gates, params["gate_up"], params["down"])
  out = routed + swiglu(flat, params["shared_gate_up"], params["shared_down"])

  by_row = lambda y: jnp.sum(y.reshape(*mask.shape, -1) * mask[..., None], 1)
  counts, tokens = by_row(chosen), jnp.maximum(mask.sum(1, keepdims=True), 1)
  frequency = counts / tokens * (config.num_experts / config.experts_per_token)
  balance = jnp.sum(frequency * by_row(affinity))  # A sum is tokens * P.
  return out.reshape(x.shape), counts.sum(0), balance


def rebalance(
  bias: Float[Array, "*L E"], load: Float[Array, "*L E"], speed: float
) -> Float[Array, "*L E"]:
  """Moves the bias by `speed` against the load (sec. 2.1.2).

  Experts with more than the mean load lose `speed`, those with less gain it.
  """
  return bias + speed * jnp.sign(load.mean(-1, keepdims=True) - load)
