"""Feed-forward layers: SwiGLU, and a mixture of routed and shared experts.

The mixture is DeepSeekMoE as in V3 (arXiv:2412.19437, sec. 2.1.2), whose
equations are cited below. V3 balances the load of experts without an auxiliary
loss: after every optimizer step, `rebalance` moves a bias that is added to the
scores when experts are chosen. In RL the bias can be frozen
(`router_bias_speed` 0, as in our experiments), so that only the gradient
changes the policy.
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
  """The SwiGLU feed-forward layer (arXiv:2002.05202) with `hidden` units, F."""

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
  mismatch: Bool[Array, "*M"]  # Whether the router would choose other experts.


class Router(Layer):
  """The router: chooses the experts of each token, in float32."""

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "*M D"],
    replay: Int[Array, "*M k"] | None = None,
  ) -> Routing:
    """The experts and gates of each token; for `replay`, see `route`."""
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
  """The load of the experts of one layer, and the routing that caused it."""

  tokens: Float[Array, "E"]  # Number of tokens of each expert.
  balance_loss: Float[Array, ""]  # Summed over tokens; see `load_of`.
  indices: Int[Array, "B T k"]  # The experts of each token.
  mismatch: Bool[Array, "B T"]  # See `Routing`.


class MoE(Layer):
  """Mixture of experts: shared experts, and k routed experts for each token."""

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    is_token: Float[Array, "B T"],
    replay: Int[Array, "B T k"] | None = None,
  ) -> tuple[Float[Array, "B T D"], Load]:
    """The sum of the outputs of the experts (eq. 12), and their load.

    Args:
      x: normalised hidden states.
      is_token: 1 for tokens, 0 for empty slots, which the load excludes.
      replay: experts to use instead of the router's choice; see `route`.
    """
    e, d = self.config.experts, x.shape[-1]
    routing = Router(self.config, name="router")(x, replay)
    # `weight`, not `dense_weight`: experts stay sharded over the mesh, and
    # `routed_experts` gathers their width.
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

  The scores s are sigmoid(logits) in V3, or softmax(logits) in V2. A token uses
  experts of its best groups only. V3 ranks groups by the sum of their two
  highest s + bias, V2 by their highest s. Of the experts in these groups, those
  with the top k of s + bias are chosen. Their gates are s without the bias,
  divided by their sum if `renormalise`, times `scale`.

  Args:
    logits: of each token for each expert.
    bias: the balancing bias; None for softmax scores.
    e: the config of the experts.
    replay: experts to use instead of the router's choice, for each token.
      Indices below 0 leave the choice to the router. Gates are the router's.
  """
  scores = (jax.nn.softmax if bias is None else jax.nn.sigmoid)(logits)
  ranked = scores if bias is None else scores + bias
  chosen = choose_experts(jax.lax.stop_gradient(ranked), e)
  indices = chosen if replay is None else jnp.where(replay < 0, chosen, replay)
  # A masked sum instead of a gather, whose gradient would be a scatter.
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
  """True where the chosen and the replayed experts of a token differ as sets.

  False where no experts were recorded, which are indices below 0.
  """
  same = jnp.any(chosen[..., None] == replayed[..., None, :], axis=-1).all(-1)
  return ~same & (replayed >= 0).all(-1)


def choose_experts(
  ranked: Float[Array, "*M E"], e: Experts
) -> Int[Array, "*M k"]:
  """The k best experts within each token's best groups; see `route`."""
  if e.groups_per_token < e.num_groups:
    groups = ranked.reshape(*ranked.shape[:-1], e.num_groups, -1)
    counted = min(2 if e.biased else 1, groups.shape[-1])
    group_scores = top_k(groups, counted)[0].sum(-1)
    _, best = top_k(group_scores, e.groups_per_token)
    eligible = jnp.any(best[..., None] == jnp.arange(e.num_groups), axis=-2)
    groups = jnp.where(eligible[..., None], groups, -jnp.inf)
    ranked = groups.reshape(ranked.shape)
  return top_k(ranked, e.per_token)[1]


def top_k(
  x: Float[Array, "*M n"], k: int
) -> tuple[Float[Array, "*M k"], Int[Array, "*M k"]]:
  """The k largest numbers in descending order, and their indices.

  The result is that of `jax.lax.top_k`; of equal numbers, the first is taken.
  Unlike `top_k`, it does not gather rows that are sharded over a mesh. Its cost
  grows with k, which is small here.
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
  """The load of the experts, without empty slots.

  The balance loss of a row is sum_e f_e P_e (eq. 17-20 without alpha). f_e is
  the share of the row's tokens that expert e received, relative to an even
  load, and P_e is its mean affinity. Rows are weighted by their number of
  tokens.
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
  """The load of a model without experts: stacked arrays of 0 layers."""
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
  """The balancing bias after a step, moved by `speed` (sec. 2.1.2).

  It decreases for experts with more than the mean load, and increases for those
  with less.
  """
  return bias + speed * jnp.sign(load.mean(-1, keepdims=True) - load)
