"""Routed and shared experts (arXiv:2412.19437, sec. 2.1.2).

V3 balances its experts by a bias on the choice that moves against the load
(`rebalance`), after every optimizer step. In RL the bias may stay as it is
(`router_bias_speed` 0, what our experiments do: a policy that is compared with
an older self should differ from it by its gradient alone) or go on moving.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from r1jax.models.config import Experts, ModelConfig
from r1jax.models.exchange import NOBODY
from r1jax.models.expert_parallel import routed_experts
from r1jax.models.layers import swiglu
from r1jax.types import Ints, Params


class Routing(NamedTuple):
  """Who works on each token, and how much it counts."""

  indices: Int[Array, "*M k"]
  gates: Float[Array, "*M k"]  # Float32.
  affinity: Float[Array, "*M E"]  # Scores, made to sum to 1.
  differ: Bool[Array, "*M"]  # The router would have chosen others.


class Load(NamedTuple):
  """What the routing of one layer amounts to."""

  tokens: Float[Array, "E"]  # That each expert got.
  balance: Float[Array, ""]  # sum_e f_e P_e per row, times the row's tokens.
  indices: Int[Array, "B T k"]
  differ: Bool[Array, "B T"]  # The router would have chosen other experts.
  dropped: Float[Array, ""]  # Choices for which a buffer had no room.


def route(
  block: Params,
  x: Float[Array, "*M D"],
  e: Experts,
  given: Int[Array, "*M k"] | None = None,
) -> Routing:
  """The experts of each token (eq. 12-16), or the gates of `given` ones.

  A token whose `given` ones are below 0 keeps its own choice.

  s = sigmoid(x W) or softmax(x W). The best groups are found first: those whose
  two best s + bias sum highest (V3), or whose best s is highest (V2). The top k
  of s + bias within them are chosen; their gates are their s, without the bias,
  made to sum to 1 if `renormalise`, times `scale`. All in float32.
  """
  logits = x.astype(jnp.float32) @ block["router"].astype(jnp.float32)
  activate = jax.nn.sigmoid if e.biased else jax.nn.softmax
  scores = activate(logits)
  ranked = scores + block["router_bias"] if e.biased else scores
  indices = own = choose(jax.lax.stop_gradient(ranked), e)
  if given is not None:
    indices = jnp.where(given < 0, own, given)
  chosen = indices[..., None] == jnp.arange(e.num_routed)
  gates = jnp.sum(
    jnp.where(chosen, scores[..., None, :], 0), axis=-1
  )  # No gather.
  if e.renormalise:
    gates /= jnp.sum(gates, axis=-1, keepdims=True) + 1e-20
  affinity = scores / jnp.sum(scores, axis=-1, keepdims=True)
  return Routing(indices, gates * e.scale, affinity, differ(own, indices))


def differ(own: Int[Array, "*B k"], given: Ints) -> Bool[Array, "*B"]:
  """True where a token's `own` experts, as a set, are not the `given` ones.

  Where none are given (below 0) they do not differ.
  """
  same = jnp.any(own[..., None] == given[..., None, :], axis=-1).all(-1)
  return ~same & (given >= 0).all(-1)


def choose(ranked: Float[Array, "*M E"], e: Experts) -> Int[Array, "*M k"]:
  """The best experts of each token's best groups."""
  if e.groups_per_token < e.num_groups:
    groups = ranked.reshape(*ranked.shape[:-1], e.num_groups, -1)
    counted = min(2 if e.biased else 1, groups.shape[-1])
    value = largest(groups, counted)[0].sum(-1)
    _, best = largest(value, e.groups_per_token)
    eligible = jnp.any(best[..., None] == jnp.arange(e.num_groups), axis=-2)
    groups = jnp.where(eligible[..., None], groups, -jnp.inf)
    ranked = groups.reshape(ranked.shape)
  return largest(ranked, e.per_token)[1]


def largest(
  x: Float[Array, "*M n"], k: int
) -> tuple[Float[Array, "*M k"], Int[Array, "*M k"]]:
  """The k largest numbers, in order, and where they stand; `k` is small.

  What `jax.lax.top_k` gives, of equals the first; but that one gathers the rows
  of all devices.
  """
  found, places = [], jnp.arange(x.shape[-1])
  for _ in range(k):
    at = jnp.argmax(x, axis=-1)
    found.append((jnp.max(x, axis=-1), at))
    x = jnp.where(places == at[..., None], -jnp.inf, x)
  values, indices = (jnp.stack(part, axis=-1) for part in zip(*found))
  return values, indices


def moe(
  block: Params,
  x: Float[Array, "B T D"],
  mask: Float[Array, "B T"],
  config: ModelConfig,
  given: Int[Array, "B T k"] | None = None,
) -> tuple[Float[Array, "B T D"], Load]:
  """Shared experts for all tokens, routed experts for those they chose.

  The balance loss is eq. 17-20 without alpha, f_e the share of a row's tokens
  that expert e got and P_e its mean affinity; it and the load count the tokens
  that `mask` lets in. `given` experts replace the router's choice.
  """
  e = config.experts
  routing = route(block, x, e, given)
  indices = routing.indices
  if config.moe_capacity is not None:  # Room is for tokens alone.
    indices = jnp.where(mask[..., None] > 0, indices, NOBODY)
  routed, dropped = routed_experts(
    x,
    routing.gates,
    indices,
    block["expert_gate_up"],
    block["expert_down"],
    config,
  )
  out = routed + swiglu(x, block["shared_gate_up"], block["shared_down"])

  by_row = lambda y: jnp.sum(y * mask[..., None], axis=1)
  chosen = jax.nn.one_hot(routing.indices, e.num_routed).sum(-2)
  counts, tokens = by_row(chosen), jnp.maximum(mask.sum(1, keepdims=True), 1)
  frequency = counts / tokens * (e.num_routed / e.per_token)
  balance = jnp.sum(
    frequency * by_row(routing.affinity)
  )  # A sum is tokens * P.
  return out, Load(
    tokens=counts.sum(0),
    balance=balance,
    indices=routing.indices,
    differ=routing.differ,
    dropped=dropped,
  )


def rebalance(
  bias: Float[Array, "*L E"], load: Float[Array, "*L E"], speed: float
) -> Float[Array, "*L E"]:
  """Moves the bias by `speed` against the load (sec. 2.1.2).

  Experts with more than the mean load lose `speed`, those with less gain it.
  """
  return bias + speed * jnp.sign(load.mean(-1, keepdims=True) - load)
