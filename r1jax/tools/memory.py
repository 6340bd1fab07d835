"""How much memory a run takes, roughly, and how much there is."""

import math
import os
import pathlib

import jax
import ml_collections

from r1jax import ops
from r1jax.models.config import ModelConfig
from r1jax.models.weights import weights
from r1jax.rollouts import prompts


def count(tree) -> int:
  """Numbers in a tree of `models.weights`."""
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(leaf.shape) for leaf in leaves)


def estimate(
  config: ml_collections.ConfigDict, model: ModelConfig
) -> dict[str, int]:
  """Bytes of all that is large, by name, in float32 and on one device.

  Activations are those of one microbatch, kept for its gradient.
  """
  tree, c = weights(model), config
  frozen = c.optimizer.get("frozen", ())
  params = count(tree)
  moving = params - sum(count(tree.get(name, {})) for name in frozen)
  tokens = c.rows.microbatch_rows * c.rows.width
  by_token = 12 * model.width
  by_token += model.attention.num_heads * min(c.rows.width, ops.attention.NAIVE)
  experts = model.experts
  routed = experts.num_routed * experts.width if experts else 0
  if experts and routed > ops.experts.DENSE:
    routed = experts.per_token * experts.width
  by_token += 4 * max(model.dense_width, routed)
  numbers = {
    "parameters": params,
    "moments": 2 * moving,
    "gradients": 2 * params,  # A microbatch's, and their sum.
    "activations": tokens * model.num_layers * by_token,
    "logits": 3 * min(tokens * model.vocab_size, ops.logprobs.LOGITS),
  }
  if "sampling" in c:
    slots, window = c.sampling.num_slots, c.sampling.prompt_tokens
    copies = slots // prompts.slots_per_prompt(
      window, c.sampling.max_tokens, c.group_size, slots
    )
    cached = copies * window + slots * c.sampling.max_tokens
    cached += 2 * prompts.PREFILL * window
    refers = c.loss.kl_coefficient or c.kl_reward.coefficient
    numbers["reference"] = params if refers else 0
    numbers["caches"] = cached * model.num_layers * model.cache_size
    sampled = 4 * slots * model.vocab_size
    numbers["logits"] = max(numbers["logits"], sampled)
  return {name: 4 * number for name, number in numbers.items()}


def limit() -> int:
  """Bytes: the device's own, or what this process may have of the host's."""
  stats = jax.devices()[0].memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"]
  host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  group = pathlib.Path("/sys/fs/cgroup/memory.max")
  text = group.read_text().strip() if group.is_file() else ""
  return min(host, int(text)) if text.isdigit() else host
