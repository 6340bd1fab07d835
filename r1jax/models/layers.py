"""Norms, rotary positions, gated feed-forward: pure functions of weights."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rms_norm(
  x: Float[Array, "*B D"], scale: Float[Array, "D"], epsilon: float
) -> Float[Array, "*B D"]:
  """Scales `x` to unit root mean square along D (arXiv:1910.07467)."""
  x32 = x.astype(jnp.float32)
  square = jnp.mean(x32 * x32, axis=-1, keepdims=True)
  return (x32 * jax.lax.rsqrt(square + epsilon) * scale).astype(x.dtype)


def rotate(
  x: Float[Array, "B T *N H"], positions: Int[Array, "B T"], theta: float
) -> Float[Array, "B T *N H"]:
  """Turns pairs of `x` by position times frequency (arXiv:2104.09864).

  Pairs are interleaved on the way in, (x0, x1), (x2, x3), ..., as DeepSeek's
  weights expect; on the way out all first halves stand before all second
  halves. Queries and keys are permuted alike, so their products are the same.
  """
  size = x.shape[-1]
  frequencies = theta ** (-jnp.arange(0, size, 2) / size)
  angles = positions[..., None].astype(jnp.float32) * frequencies
  angles = angles.reshape(positions.shape + (1,) * (x.ndim - 3) + (-1,))
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  pairs = x.reshape(*x.shape[:-1], size // 2, 2)
  first, second = pairs[..., 0], pairs[..., 1]
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  ).astype(x.dtype)


def swiglu(
  x: Float[Array, "*B D"],
  gate_up: Float[Array, "D twoF"],
  down: Float[Array, "F D"],
) -> Float[Array, "*B D"]:
  """down(silu(gate(x)) * up(x)) (arXiv:2002.05202); one matmul for both."""
  gate, up = jnp.split(x @ gate_up, 2, axis=-1)
  return (jax.nn.silu(gate) * up) @ down
