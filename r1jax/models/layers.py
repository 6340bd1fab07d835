"""Norms, rotary positions, gated feed-forward: pure functions of weights."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from r1jax.models.config import Llama3, ModelConfig, Yarn


def rms_norm(
  x: Float[Array, "*B D"], scale: Float[Array, "D"], epsilon: float
) -> Float[Array, "*B D"]:
  """Scales `x` to unit root mean square along D (arXiv:1910.07467)."""
  x32 = x.astype(jnp.float32)
  square = jnp.mean(x32 * x32, axis=-1, keepdims=True)
  return (x32 * jax.lax.rsqrt(square + epsilon) * scale).astype(x.dtype)


class Rotation(NamedTuple):
  """What turns the pairs of every token: computed once for all layers."""

  sin: Float[Array, "B T half"]
  cos: Float[Array, "B T half"]


def rotation_of(positions: Int[Array, "B T"], config: ModelConfig) -> Rotation:
  """Sines and cosines of position times frequency (arXiv:2104.09864)."""
  scaling = config.rope_scaling
  angles = positions[..., None].astype(jnp.float32) * frequencies(
    config.attention.rope_size, config.rope_theta, scaling
  )
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  # 1, but for rounding. What XLA counts as cheap, and sines are, it makes again
  # in every layer and head that uses it. A division is not.
  length = jnp.sqrt(sin * sin + cos * cos)
  amplitude = scaling.amplitude if scaling else 1.0
  return Rotation(amplitude * sin / length, amplitude * cos / length)


def rotate(
  x: Float[Array, "B T *N H"], rotation: Rotation, *, interleaved: bool
) -> Float[Array, "B T *N H"]:
  """Turns pairs of `x`.

  Number i is paired with i + H/2; `interleaved` pairs 2i with 2i + 1 instead,
  as DeepSeek's weights expect. Either way all first halves stand before all
  second halves on the way out: queries and keys are permuted alike, so their
  products are the same.
  """
  heads = range(2, x.ndim - 1)
  sin, cos = (jnp.expand_dims(y, heads) for y in rotation)
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
  """Radians per token for each of the size / 2 pairs, fastest first."""
  plain = theta ** (-np.arange(0, size, 2) / size)
  turns = plain / (2 * math.pi)  # Per token.
  match scaling:
    case None:
      kept = 1.0
    case Yarn():
      # Pairs are numbered; i is where a pair turns `count` times in the window.
      i = lambda count: (
        size
        * math.log(scaling.original_length / (count * 2 * math.pi))
        / (2 * math.log(theta))
      )
      first = max(math.floor(i(scaling.beta_fast)), 0)
      last = min(math.ceil(i(scaling.beta_slow)), size - 1)
      ramp = (np.arange(size // 2) - first) / max(last - first, 1e-3)
      kept = 1 - np.clip(ramp, 0, 1)
    case Llama3():
      within = turns * scaling.original_length
      ramp = (within - scaling.low) / (scaling.high - scaling.low)
      kept = np.clip(ramp, 0, 1)
  slow = plain / scaling.factor if scaling else 0.0
  return np.float32(plain * kept + slow * (1 - kept))


@jax.custom_vjp
def linear(
  x: Float[Array, "*B D"], weight: Float[Array, "D *F"]
) -> Float[Array, "..."]:
  """[*B, *F]: the sum over D, whose gradients a CPU is quick at."""
  return jnp.tensordot(x, weight, 1)


linear.defvjp(
  lambda x, weight: (linear(x, weight), (x, weight)),
  lambda saved, gradient: (
    of_input(gradient, saved[1]),
    of_weight(saved[0], gradient),
  ),
)


def of_input(
  gradient: Float[Array, "..."], weight: Float[Array, "D *F"]
) -> Float[Array, "*B D"]:
  """Of what `linear` read, by the gradient of what it made."""
  made = tuple(range(1 - weight.ndim, 0))
  return jnp.tensordot(gradient, weight, (made, made))


def of_weight(
  x: Float[Array, "*B D"], gradient: Float[Array, "..."]
) -> Float[Array, "D *F"]:
  """Of the weight: a sum over tokens.

  A CPU copies the left side of such a product, which is therefore the narrow
  one; the barrier keeps XLA from turning that round.
  """
  tokens = tuple(range(x.ndim - 1))
  over_tokens = lambda a, b: jax.lax.optimization_barrier(
    jnp.tensordot(a, b, (tokens, tokens))
  )
  if x.shape[-1] <= math.prod(gradient.shape[len(tokens) :]):
    return over_tokens(x, gradient)
  return jnp.moveaxis(over_tokens(gradient, x), -1, 0)


@jax.custom_vjp
def swiglu(
  x: Float[Array, "*B D"],
  gate_up: Float[Array, "D 2 F"],
  down: Float[Array, "F D"],
) -> Float[Array, "*B D"]:
  """down(silu(gate(x)) * up(x)) (arXiv:2002.05202); one matmul for both.

  Of what it makes, the gradient keeps what stands before the silu alone.
  """
  return _swiglu_forward(x, gate_up, down)[0]


def activate(both: Float[Array, "*B 2 F"]) -> Float[Array, "*B F"]:
  """silu(gate) * up."""
  return _gated(both[..., 0, :], both[..., 1, :])


def _gated(gate, up):
  return jax.nn.silu(gate) * up


def _swiglu_forward(x, gate_up, down):
  both = linear(x, gate_up)
  return linear(activate(both), down), (x, gate_up, down, both)


def _swiglu_backward(saved, gradient):
  x, gate_up, down, both = saved
  hidden, pull = jax.vjp(_gated, both[..., 0, :], both[..., 1, :])
  of_both = pull(of_input(gradient, down))
  # Joined as weights, which are smaller than what is made of many tokens.
  of_gate_up = jnp.stack([of_weight(x, of) for of in of_both], axis=1)
  of_x = sum(of_input(of, gate_up[:, i]) for i, of in enumerate(of_both))
  # Of equal widths `gradient`, which is there already, is the one to copy.
  return of_x, of_gate_up, of_weight(gradient, hidden).T


swiglu.defvjp(_swiglu_forward, _swiglu_backward)
