"""Feed-forward layers: SwiGLU, and a mixture of routed and shared experts.

DeepSeekMoE as in V3 (arXiv:2412.19437, sec. 2.1.2). V3 balances the load of its
experts by a bias on their choice, which moves against the load after every
optimizer step (`rebalance`). In RL the bias may stay as it is, so that a policy
differs from an older one by its gradient alone (`router_bias_speed` 0, as in
our experiments), or go on moving.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from r1jax import ops
from r1jax.models.config import Experts
from r1jax.models.layers import Layer
from r1jax.parallel import sharding
from r1jax.parallel.experts import routed_experts
from r1jax.types import Ints


class FeedForward(Layer):
  """SwiGLU with `hidden` units (arXiv:2002.05202)."""

  hidden: int

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """down(silu(gate(x)) * up(x))."""
    d, f = x.shape[-1], self.hidden
    axes = ("width", None, "hidden")
    gate_up = self.dense_weight("gate_up", (d, 2, f), axes)
    down = self.dense_weight("down", (f, d), ("hidden", "width"))
    return ops.swiglu(x, gate_up, down)


class Routing(NamedTuple):
  """The experts of each token, and their gates."""

  indices: Int[Array, "*M k"]
  gates: Float[Array, "*M k"]  # Float32.
  affinity: Float[Array, "*M E"]  # Scores, normalised to sum to 1.
  mismatch: Bool[Array, "*M"]  # Replayed experts are not the router's choice.


class Router(Layer):
  """Chooses the experts of each token, in float32."""

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "*M D"],
    replay: Int[Array, "*M k"] | None = None,
  ) -> Routing:
    """See `route`; `replay` are experts to use instead of the router's."""
    e = self.config.experts
    shape, axes = (x.shape[-1], e.num_routed), ("width", None)
    weight = sharding.gather_width(self.weight("weight", shape, axes), axes)
    logits = x.astype(jnp.float32) @ weight.astype(jnp.float32)
    bias = None
    if e.biased:
      zeros = nn.initializers.zeros
      bias = self.weight("bias", (e.num_routed,), (None,), zeros)
    return route(logits, bias, e, replay)


class Load(NamedTuple):
  """What the routing of one layer amounts to."""

  tokens: Float[Array, "E"]  # That each expert got.
  balance_loss: Float[Array, ""]  # Eq. 17-20 without alpha, summed over tokens.
  indices: Int[Array, "B T k"]
  mismatch: Bool[Array, "B T"]


class MoE(Layer):
  """A mixture of shared experts and, for each token, a few routed ones."""

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    is_token: Float[Array, "B T"],
    replay: Int[Array, "B T k"] | None = None,
  ) -> tuple[Float[Array, "B T D"], Load]:
    """The sum of the experts' outputs (eq. 12), and the load of each.

    Args:
      x: normalised hidden states.
      is_token: 0 for empty slots, which do not count in the load.
      replay: experts to use instead of the router's choice.
    """
    e, d = self.config.experts, x.shape[-1]
    routing = Router(self.config, name="router")(x, replay)
    # Experts stay split over the mesh: `routed_experts` gathers their width.
    gate_up = self.weight(
      "expert_gate_up",
      (e.num_routed, d, 2, e.width),
      ("expert", "width", None, "hidden"),
    )
    down = self.weight(
      "expert_down", (e.num_routed, e.width, d), ("expert", "hidden", "width")
    )
    dtype = self.config.compute_dtype
    routed = routed_experts(
      x,
      routing.gates,
      routing.indices,
      gate_up.astype(dtype),
      down.astype(dtype),
      chunk=self.config.moe_chunk,
    )
    shared = FeedForward(self.config, e.num_shared * e.width, name="shared")
    return routed + shared(x), load_of(routing, is_token, e)


def route(
  logits: Float[Array, "*M E"],
  bias: Float[Array, "E"] | None,
  e: Experts,
  replay: Int[Array, "*M k"] | None = None,
) -> Routing:
  """The experts of each token and their gates (eq. 12-16), in float32.

  s = sigmoid(logits) or softmax(logits). The best groups are found first: those
  whose two best s + bias sum highest (V3), or whose best s is highest (V2). The
  top k of s + bias within them are chosen. Their gates are their s, without the
  bias, normalised to sum to 1 if `renormalise`, times `scale`.

  Args:
    logits: of tokens for each expert.
    bias: the balancing bias; None for softmax.
    e: sizes, and which of the two it is.
    replay: experts to use instead of those; below 0 for the router's choice.
  """
  scores = (jax.nn.softmax if bias is None else jax.nn.sigmoid)(logits)
  ranked = scores if bias is None else scores + bias
  chosen = choose(jax.lax.stop_gradient(ranked), e)
  indices = chosen if replay is None else jnp.where(replay < 0, chosen, replay)
  # A masked sum: its gradient is no scatter.
  one_hot = indices[..., None] == jnp.arange(e.num_routed)
  gates = jnp.sum(jnp.where(one_hot, scores[..., None, :], 0), axis=-1)
  if e.renormalise:
    gates /= jnp.sum(gates, axis=-1, keepdims=True) + 1e-20
  return Routing(
    indices=indices,
    gates=gates * e.scale,
    affinity=scores / jnp.sum(scores, axis=-1, keepdims=True),
    mismatch=router_mismatch(chosen, indices),
  )


def router_mismatch(
  chosen: Int[Array, "*B k"], replayed: Ints
) -> Bool[Array, "*B"]:
  """True where a token's chosen experts, as a set, are not the replayed ones.

  False where nothing was recorded to replay (below 0).
  """
  same = jnp.any(chosen[..., None] == replayed[..., None, :], axis=-1).all(-1)
  return ~same & (replayed >= 0).all(-1)


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
  """The k largest numbers in order, and their indices; k is small.

  As `jax.lax.top_k`, which takes the first of equals; but on a mesh that one
  gathers the rows of all devices.
  """
  values, indices, places = [], [], jnp.arange(x.shape[-1])
  for _ in range(k):
    index = jnp.argmax(x, axis=-1)
    values.append(jnp.max(x, axis=-1))
    indices.append(index)
    x = jnp.where(places == index[..., None], -jnp.inf, x)
  return jnp.stack(values, axis=-1), jnp.stack(indices, axis=-1)


def load_of(
  routing: Routing, is_token: Float[Array, "B T"], e: Experts
) -> Load:
  """Tokens per expert, and the balance loss, of tokens alone.

  The loss of a row is sum_e f_e P_e (eq. 17-20 without alpha): f_e is the share
  of its tokens that expert e got, relative to an even load, and P_e its mean
  affinity. A row counts as much as it has tokens.
  """
  by_row = lambda y: jnp.sum(y * is_token[..., None], axis=1)
  counts = by_row(jax.nn.one_hot(routing.indices, e.num_routed).sum(-2))
  tokens = jnp.maximum(is_token.sum(1, keepdims=True), 1)
  frequency = counts / tokens * (e.num_routed / e.per_token)
  return Load(
    tokens=counts.sum(0),
    balance_loss=jnp.sum(frequency * by_row(routing.affinity)),
    indices=routing.indices,
    mismatch=routing.mismatch,
  )


def no_load(batch: int, length: int, e: Experts | None) -> Load:
  """The stacked load of no layer at all [0, ...]."""
  experts, k = (e.num_routed, e.per_token) if e else (0, 0)
  return Load(
    tokens=jnp.zeros((0, experts)),
    balance_loss=jnp.zeros(0),
    indices=jnp.zeros((0, batch, length, k), jnp.int32),
    mismatch=jnp.zeros((0, batch, length), bool),
  )


def rebalance(
  bias: Float[Array, "*L E"], load: Float[Array, "*L E"], speed: float
) -> Float[Array, "*L E"]:
  """Moves the balancing bias by `speed` against the load (sec. 2.1.2).

  It falls for experts with more than the mean load, and rises for the others.
  """
  return bias + speed * jnp.sign(load.mean(-1, keepdims=True) - load)
