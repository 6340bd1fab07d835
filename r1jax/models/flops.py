"""FLOPs that a model cannot do without: its matmuls, forward.

A multiplication with its addition is two. Norms, softmax and the like are left
out, as is what a program computes only to throw it away.
"""

import math

import jax

from r1jax.models.config import Latent, ModelConfig
from r1jax.models.weights import is_matrix, weights


def of_token(config: ModelConfig) -> int:
  """One token's way through all blocks: two per weight of a matrix it meets.

  Of the routed experts it meets those that work on it. Attention's scores are
  not in it, see `of_pair`, nor is the unembedding, see `of_logits`.
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
  """From one hidden state to its logits."""
  return 2 * config.width * config.vocab_size


def of_pair(config: ModelConfig, *, cached: bool = False) -> int:
  """One query and one key that it sees, in all layers and heads.

  Latent attention reads the latents themselves where they are `cached`, which
  is more than keys and values of each head would take, but needs none made.
  """
  a = config.attention
  if not isinstance(a, Latent):
    read = 2 * a.head_size
  elif cached:
    read = 2 * a.kv_rank + a.rope_size
  else:
    read = a.key_size + a.value_size
  return 2 * read * a.num_heads * config.num_layers
