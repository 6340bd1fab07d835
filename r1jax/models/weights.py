"""Every weight of a model: its shape, its logical axes, how it begins."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax import sharding
from r1jax.models.config import Experts, Latent, ModelConfig
from r1jax.types import Params

# Weights that keep their own precision whatever the compute dtype is: scales
# of norms, and what routes tokens.
FLOAT32 = (
  *("attention_norm", "feed_forward_norm", "q_norm", "kv_norm"),
  *("hidden_norm", "embed_norm", "final_norm"),
  *("router", "router_bias"),
)


class Weight(NamedTuple):
  """One array of the parameter tree."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]  # Logical names, one per dimension.
  init: str = "normal"  # "normal" (0, init_scale), "ones" or "zeros".


def weights(config: ModelConfig) -> dict:
  """The tree of weights: the blocks of like layers are stacked [L, ...]."""
  c = config
  tree = {
    "embed": Weight((c.vocab_size, c.width), ("vocab", "width")),
    "final_norm": _norm(c.width),
  }
  if not c.tied:
    tree["unembed"] = Weight((c.width, c.vocab_size), ("width", "vocab"))
  if c.num_dense_layers:
    tree["dense"] = stacked(block_weights(c, sparse=False), c.num_dense_layers)
  if c.num_moe_layers:
    tree["moe"] = stacked(block_weights(c, sparse=True), c.num_moe_layers)
  if c.mtp_depth:
    module = {
      "hidden_norm": _norm(c.width),
      "embed_norm": _norm(c.width),
      "project": Weight((2 * c.width, c.width), (None, "width")),
      "block": block_weights(c, sparse=c.num_moe_layers > 0),
      "final_norm": _norm(c.width),
    }
    tree["mtp"] = stacked(module, c.mtp_depth)
  return tree


def block_weights(config: ModelConfig, *, sparse: bool) -> dict:
  """One layer's attention and its feed-forward; `sparse` ones have experts."""
  c = config
  own = moe_weights(c.width, c.experts) if sparse else dense_weights(c)
  return attention_weights(c) | own


def attention_weights(config: ModelConfig) -> dict:
  """Attention, and the norms before it and before the feed-forward."""
  make = latent_weights if isinstance(config.attention, Latent) else qkv_weights
  return {
    "attention_norm": _norm(config.width),
    "feed_forward_norm": _norm(config.width),
  } | make(config.width, config.attention)


def latent_weights(d: int, a) -> dict:
  """Latent attention; `qkv_down` makes all latents of a token.

  A latent is a width too: what is made from it is gathered like any weight.
  """
  latents = a.kv_rank + a.rope_size
  up = a.nope_size + a.value_size
  tree = {
    "qkv_down": Weight((d, (a.q_rank or 0) + latents), ("width", None)),
    "kv_norm": _norm(a.kv_rank, None),
    "kv_up": Weight((a.kv_rank, a.num_heads, up), ("width", "heads", None)),
    "out": Weight((a.num_heads, a.value_size, d), ("heads", None, "width")),
  }
  if a.q_rank is None:
    query = (d, a.num_heads, a.key_size)
    return tree | {"q": Weight(query, ("width", "heads", None))}
  return tree | {
    "q_norm": _norm(a.q_rank, None),
    "q_up": Weight(
      (a.q_rank, a.num_heads, a.key_size), ("width", "heads", None)
    ),
  }


def qkv_weights(d: int, a) -> dict:
  """Grouped-query attention.

  By key/value head: its queries, its key, its value, so that one matmul makes
  all of them and a split over heads keeps each group together.
  """
  heads, per_head = a.num_kv_heads, a.num_heads // a.num_kv_heads + 2
  tree = {
    "qkv": Weight(
      (d, heads, per_head, a.head_size), ("width", "kv_heads", None, None)
    ),
    "out": Weight(
      (heads, per_head - 2, a.head_size, d), ("kv_heads", None, None, "width")
    ),
  }
  if a.bias:
    tree["qkv_bias"] = Weight(
      (heads, per_head, a.head_size), ("kv_heads", None, None), "zeros"
    )
  return tree


def dense_weights(config: ModelConfig) -> dict:
  """One gated feed-forward."""
  d, f = config.width, config.dense_width
  return {
    "gate_up": Weight((d, 2, f), ("width", None, "hidden")),
    "down": Weight((f, d), ("hidden", "width")),
  }


def moe_weights(d: int, e: Experts) -> dict:
  """The router, the routed experts and the shared ones, fused into one."""
  count, f, shared = e.num_routed, e.width, e.num_shared * e.width
  tree = {
    "router": Weight((d, count), ("width", None)),
    "expert_gate_up": Weight(
      (count, d, 2, f), ("expert", "width", None, "hidden")
    ),
    "expert_down": Weight((count, f, d), ("expert", "hidden", "width")),
    "shared_gate_up": Weight((d, 2, shared), ("width", None, "hidden")),
    "shared_down": Weight((shared, d), ("hidden", "width")),
  }
  if e.biased:
    tree["router_bias"] = Weight((count,), (None,), "zeros")
  return tree


def stacked(tree: dict, layers: int) -> dict:
  """The same weights for `layers` layers, along a new first dimension."""
  return jax.tree.map(
    lambda w: Weight((layers, *w.shape), ("layers", *w.axes), w.init),
    tree,
    is_leaf=is_weight,
  )


def _norm(size: int, axis: str | None = "width") -> Weight:
  return Weight((size,), (axis,), "ones")


def is_weight(x) -> bool:
  """Where the tree of `weights` ends."""
  return isinstance(x, Weight)


def initialise(key: jax.Array, tree: dict, scale: float) -> Params:
  """Float32 arrays for `tree`; "normal" ones have deviation `scale`."""
  leaves, treedef = jax.tree.flatten(tree, is_leaf=is_weight)
  make = {
    "normal": lambda key, shape: scale * jax.random.normal(key, shape),
    "ones": lambda key, shape: jnp.ones(shape),
    "zeros": lambda key, shape: jnp.zeros(shape),
  }
  arrays = [
    make[w.init](k, w.shape)
    for k, w in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
  ]
  return jax.tree.unflatten(treedef, arrays)


def to_compute_dtype(params: Params, config: ModelConfig) -> Params:
  """The weights as layers compute with them: cast, but for those in `FLOAT32`.

  For every copy of a policy that only computes (the sampler's, the reference).
  A forward pass casts by the same list, so that such a copy gives the policy's
  log-probabilities bit for bit.
  """

  def cast(path, weight):
    if path[-1].key in FLOAT32:
      return weight
    return weight.astype(config.compute_dtype)

  return jax.tree_util.tree_map_with_path(cast, params)


def logical_axes(config: ModelConfig) -> dict:
  """The names of every weight's dimensions, in the tree of the parameters."""
  return jax.tree.map(lambda w: w.axes, weights(config), is_leaf=is_weight)


def used_axes(config: ModelConfig) -> dict:
  """The same as layers use them; see `sharding.in_use`."""
  used = lambda w: sharding.in_use(w.axes)
  return jax.tree.map(used, weights(config), is_leaf=is_weight)


def sizes(config: ModelConfig) -> dict[str, int]:
  """Number of parameters by top-level name, and their "total".

  The total counts neither the balancing biases, which are no parameters to an
  optimizer, nor the MTP blocks, whose number stands beside it.
  """
  tree, counts, biases = weights(config), {}, 0
  for path, weight in jax.tree.leaves_with_path(tree, is_leaf=is_weight):
    size = math.prod(weight.shape)
    if path[-1].key == "router_bias":
      biases += size * (path[0].key != "mtp")
      continue
    counts[path[0].key] = counts.get(path[0].key, 0) + size
  total = sum(size for name, size in counts.items() if name != "mtp")
  return counts | {"router_bias": biases, "total": total}
