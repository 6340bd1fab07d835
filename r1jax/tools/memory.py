"""A rough estimate of the memory of a run, and the available memory."""

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
  """The number of elements in a tree of `models.weights`."""
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(leaf.shape) for leaf in leaves)


def estimate(
  config: ml_collections.ConfigDict, model: ModelConfig
) -> dict[str, int]:
  """Bytes of everything large in a run, by name, in float32 on one device.

  Activations are those that one microbatch stores for its gradient.
  """
  tree, c = weights(model), config
  frozen = c.optimizer.get("frozen", ())
  params = count(tree)
  trained = params - sum(count(tree.get(name, {})) for name in frozen)
  width = max(c.rows.widths)
  tokens = c.rows.shard_rows * width
  by_token = 12 * model.width
  by_token += model.attention.num_heads * min(width, ops.attention.NAIVE)
  experts = model.experts
  routed = experts.num_routed * experts.width if experts else 0
  if experts and routed > ops.experts.DENSE:
    routed = experts.per_token * experts.width
  by_token += 4 * max(model.dense_width, routed)
  numbers = {
    "parameters": params,
    "moments": 2 * trained,
    "gradients": 2 * params,  # Those of one microbatch, and their sum.
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
    use_reference = c.loss.kl_coefficient or c.kl_reward.coefficient
    numbers["reference"] = params if use_reference else 0
    numbers["caches"] = cached * model.num_layers * model.cache_size
    sampled = 4 * slots * model.vocab_size
    numbers["logits"] = max(numbers["logits"], sampled)
  return {name: 4 * number for name, number in numbers.items()}


def limit() -> int:
  """The bytes available: of the device, or of the host to this process."""
  stats = jax.devices()[0].memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"]
  host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  group = pathlib.Path("/sys/fs/cgroup/memory.max")
  text = group.read_text().strip() if group.is_file() else ""
  return min(host, int(text)) if text.isdigit() else host
