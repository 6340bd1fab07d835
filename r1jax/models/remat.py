"""Rematerialisation: what a block saves for its gradient."""

import flax.linen as nn
import jax

from r1jax.models.config import ModelConfig
from r1jax.ops.blockwise import OUTPUT as ATTENTION_OUTPUT

BLOCK_INPUT = "block_input"  # Its name for `jax.checkpoint` policies.


def remat(block: type[nn.Module], config: ModelConfig) -> type[nn.Module]:
  """`block` with rematerialisation: what is saved for its gradient.

  `config.remat` is one of:

  - "none": all intermediate results are saved.
  - "block": only the input is saved; the gradient runs the block again.
  - "attention": the input and the output of attention are saved, as attention
    takes most of the time in long rows.
  - "host": only the input is saved, in the memory of the host, for models whose
    block inputs do not fit into the memory of the device.
  """
  if config.remat == "none":
    return block
  policies, policy = jax.checkpoint_policies, None
  if config.remat == "attention":
    policy = policies.save_only_these_names(ATTENTION_OUTPUT)
  if config.remat == "host":
    policy = policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=[BLOCK_INPUT],
      offload_src="device",
      offload_dst="pinned_host",
    )
  # In a loop, the layer's number must stay an int. `self` is argument 0.
  static = () if config.scan else (2,)
  return nn.remat(
    block, policy=policy, prevent_cse=not config.scan, static_argnums=static
  )
