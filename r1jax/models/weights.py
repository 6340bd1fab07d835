"""Every weight of a model: its shape, its logical axes, how it begins."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.models.config import ModelConfig
from r1jax.types import Params


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
    "unembed": Weight((c.width, c.vocab_size), ("width", "vocab")),
    "final_norm": Weight((c.width,), ("width",), "ones"),
  }
  dense = attention_weights(c) | dense_weights(c)
  sparse = attention_weights(c) | moe_weights(c)
  if c.num_dense_layers:
    tree["dense"] = stacked(dense, c.num_dense_layers)
  if c.num_moe_layers:
    tree["moe"] = stacked(sparse, c.num_moe_layers)
  if c.mtp_depth:
    tree["mtp"] = {
      "hidden_norm": Weight((c.width,), ("width",), "ones"),
      "embed_norm": Weight((c.width,), ("width",), "ones"),
      "project": Weight((2 * c.width, c.width), (None, "width")),
      "block": sparse if c.num_moe_layers else dense,
      "final_norm": Weight((c.width,), ("width",), "ones"),
    }
  return tree


def attention_weights(c: ModelConfig) -> dict:
  """Latent attention, and the norms before it and before the feed-forward."""
  head = c.nope_size + c.rope_size
  up = c.nope_size + c.value_size
  return {
    "attention_norm": Weight((c.width,), ("width",), "ones"),
    "q_down": Weight((c.width, c.q_rank), ("width", "rank")),
    "q_norm": Weight((c.q_rank,), ("rank",), "ones"),
    "q_up": Weight((c.q_rank, c.num_heads, head), ("rank", "heads", None)),
    "kv_down": Weight((c.width, c.cache_size), ("width", None)),
    "kv_norm": Weight((c.kv_rank,), (None,), "ones"),
    "kv_up": Weight((c.kv_rank, c.num_heads, up), (None, "heads", None)),
    "out": Weight(
      (c.num_heads, c.value_size, c.width), ("heads", None, "width")
    ),
    "feed_forward_norm": Weight((c.width,), ("width",), "ones"),
  }


def dense_weights(c: ModelConfig) -> dict:
  """One gated feed-forward."""
  return {
    "gate_up": Weight((c.width, 2 * c.dense_width), ("width", "hidden")),
    "down": Weight((c.dense_width, c.width), ("hidden", "width")),
  }


def moe_weights(c: ModelConfig) -> dict:
  """The router, the routed experts and the shared ones, fused into one."""
  e, d, f = c.num_experts, c.width, c.expert_width
  shared = c.num_shared_experts * f
  return {
    "router": Weight((d, e), ("width", None)),
    "router_bias": Weight((e,), (None,), "zeros"),
    "gate_up": Weight((e, d, 2 * f), ("expert", "width", "hidden")),
    "down": Weight((e, f, d), ("expert", "hidden", "width")),
    "shared_gate_up": Weight((d, 2 * shared), ("width", "hidden")),
    "shared_down": Weight((shared, d), ("hidden", "width")),
  }


def stacked(tree: dict, layers: int) -> dict:
  """The same weights for `layers` layers, along a new first dimension."""
  return jax.tree.map(
    lambda w: Weight((layers, *w.shape), ("layers", *w.axes), w.init),
    tree,
    is_leaf=is_weight,
  )


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


def logical_axes(config: ModelConfig) -> dict:
  """The names of every weight's dimensions, in the tree of the parameters."""
  return jax.tree.map(lambda w: w.axes, weights(config), is_leaf=is_weight)
