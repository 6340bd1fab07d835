"""Ops: the array functions that layers call, in plain JAX.

An op is defined by its signature and docstring. Custom gradients, blocks,
chunks and compiler barriers are implementation details of its module. A kernel
is another implementation of the same signature, and only this package may
import `kernels/`.
"""

from r1jax.ops.attention import (
  Segment,
  cached_attention,
  latent_attention,
  packed_attention,
)
from r1jax.ops.experts import expert_swiglu
from r1jax.ops.grouped import grouped_gate_up, grouped_matmul
from r1jax.ops.linear import linear, swiglu
from r1jax.ops.logprobs import linear_logprobs, mask_padding

__all__ = [
  "Segment",
  "cached_attention",
  "expert_swiglu",
  "grouped_gate_up",
  "grouped_matmul",
  "latent_attention",
  "linear",
  "linear_logprobs",
  "mask_padding",
  "packed_attention",
  "swiglu",
]
