"""Ops in plain JAX: pure functions of arrays, and the contracts of kernels.

A layer calls an op by its name here and knows nothing else of it. What an op
does for the sake of speed (custom gradients, barriers, blocks, chunks) stays
behind its signature. This package is the only one that may import `kernels/`.
"""

from r1jax.ops.attention import (
  Segment,
  cached_attention,
  latent_attention,
  packed_attention,
)
from r1jax.ops.experts import expert_swiglu
from r1jax.ops.linear import linear, swiglu
from r1jax.ops.logprobs import linear_logprobs, mask_padding

__all__ = [
  "Segment",
  "cached_attention",
  "expert_swiglu",
  "latent_attention",
  "linear",
  "linear_logprobs",
  "mask_padding",
  "packed_attention",
  "swiglu",
]
