"""What the gradient keeps of a block, and what it makes again (remat).

A policy is a name in `ModelConfig.remat`:

- "none": everything is kept.
- "block": its input alone; the gradient runs the block again.
- "attention": also what its attention gave, which is not made again: for long
  rows, where it is most of a block's time.
- "host": its input alone, in the memory of the host: for many tokens on a
  device, whose inputs of all blocks would fill its memory.
"""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

INPUT, ATTENTION = "block_input", "attention"


def rematerialised(block: Callable, name: str, *, scanned: bool) -> Callable:
  """`block(weights, layer, carry, given)`, whose gradient keeps what it may.

  `scanned` if it is the body of a scan.
  """
  if name == "none":
    return block
  policies = jax.checkpoint_policies
  policy = None
  if name == "attention":
    policy = policies.save_only_these_names(ATTENTION)
  if name == "host":
    policy = policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=[INPUT],
      offload_src="device",
      offload_dst="pinned_host",
    )

  def named(weights, layer, carry, given):
    x, rows = carry
    return block(weights, layer, (checkpoint_name(x, INPUT), rows), given)

  return jax.checkpoint(
    named,
    policy=policy,
    prevent_cse=not scanned,
    static_argnums=() if scanned else (1,),
  )
