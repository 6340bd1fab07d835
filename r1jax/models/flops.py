"""Model FLOPs: those of the matrix products of a forward pass.

A multiplication and its addition count as two. Norms, softmax and other
elementwise work are not counted, nor is work that a program wastes, such as
padding and recomputation.
"""

import math

import jax

from r1jax.models.config import Latent, ModelConfig
from r1jax.models.weights import is_matrix, weights


def of_token(config: ModelConfig) -> int:
  """FLOPs of one token in all blocks: two per weight of each matrix it uses.

  Of the routed experts, only those that a token is routed to count. Attention
  scores are separate, see `of_pair`, and so is the unembedding, see
  `of_logits`.
  """
  tree, used = weights(config), 0
  layers = {name: tree[name] for name in ("dense", "moe") if name in tree}
  for path, weight in jax.tree.leaves_with_path(layers):
    share = 1.0
    if "expert" in weight.axes:
      share = config.experts.per_token / config.experts.num_routed
    if is_matrix(path):
      used += math.prod(weight.shape) * share
  return round(2 * used)


def of_logits(config: ModelConfig) -> int:
  """FLOPs from one hidden state to its logits."""
  return 2 * config.width * config.vocab_size


def of_pair(config: ModelConfig, *, cached: bool = False) -> int:
  """FLOPs of attention per query and key that it sees, in all layers and heads.

  With `cached` latents, latent attention reads the latents directly. A pair
  then takes more FLOPs, but keys and values of each head are not computed.
  """
  a = config.attention
  if not isinstance(a, Latent):
    read = 2 * a.head_size
  elif cached:
    read = 2 * a.kv_rank + a.rope_size
  else:
    read = a.key_size + a.value_size
  return 2 * read * a.num_heads * config.num_layers
