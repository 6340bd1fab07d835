"""Rotary position embeddings, RoPE (arXiv:2104.09864), and its scalings."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from r1jax.models.config import Llama3, ModelConfig, Yarn


class Rotation(NamedTuple):
  """Sines and cosines of each token's rotation angles, for all layers."""

  sin: Float[Array, "B T half"]
  cos: Float[Array, "B T half"]


def rotation(positions: Int[Array, "B T"], config: ModelConfig) -> Rotation:
  """Sines and cosines of position times frequency, times YaRN's amplitude."""
  scaling = config.rope_scaling
  angles = positions[..., None].astype(jnp.float32) * frequencies(
    config.attention.rope_size, config.rope_theta, scaling
  )
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  # XLA recomputes cheap operations, among which it counts sines, in every layer
  # and head that uses them. Divisions are not cheap to XLA, so dividing by this
  # length, which is 1 up to rounding, makes it keep the results.
  length = jnp.sqrt(sin * sin + cos * cos)
  amplitude = scaling.amplitude if scaling else 1.0
  return Rotation(amplitude * sin / length, amplitude * cos / length)


def rotate(
  x: Float[Array, "B T *N H"], angles: Rotation, *, interleaved: bool
) -> Float[Array, "B T *N H"]:
  """Each head of `x` with its pairs of numbers rotated by the token's angles.

  Number i is paired with number i + H/2, or, if `interleaved`, number 2i with
  2i + 1, as in DeepSeek's weights. The result has the first numbers of all
  pairs, then the second ones, in both cases. Queries and keys are permuted
  alike, so that their dot products are unaffected.
  """
  heads = range(2, x.ndim - 1)
  sin, cos = (jnp.expand_dims(y, heads) for y in angles)
  if interleaved:
    pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    first, second = pairs[..., 0], pairs[..., 1]
  else:
    first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  ).astype(x.dtype)


def frequencies(
  size: int, theta: float, scaling: Yarn | Llama3 | None
) -> Float[np.ndarray, "half"]:
  """Radians per token of each of the size / 2 pairs, from fast to slow.

  Scaling divides the frequencies of slow pairs by its factor, keeps those of
  fast pairs, and interpolates linearly in between.
  """
  plain = theta ** (-np.arange(0, size, 2) / size)
  turns = plain / (2 * math.pi)  # Full turns per token.
  match scaling:
    case None:
      kept = 1.0
    case Yarn():
      # The index of the pair that makes `count` full turns within the original
      # context length.
      pair = lambda count: (
        size
        * math.log(scaling.original_length / (count * 2 * math.pi))
        / (2 * math.log(theta))
      )
      first = max(math.floor(pair(scaling.beta_fast)), 0)
      last = min(math.ceil(pair(scaling.beta_slow)), size - 1)
      ramp = (np.arange(size // 2) - first) / max(last - first, 1e-3)
      kept = 1 - np.clip(ramp, 0, 1)
    case Llama3():
      within = turns * scaling.original_length
      ramp = (within - scaling.low) / (scaling.high - scaling.low)
      kept = np.clip(ramp, 0, 1)
  slow = plain / scaling.factor if scaling else 0.0
  return np.float32(plain * kept + slow * (1 - kept))
