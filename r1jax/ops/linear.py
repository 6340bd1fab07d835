"""Matrix products and SwiGLU, with gradients that are fast on CPUs as well."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def linear(
  x: Float[Array, "*B D"], weight: Float[Array, "D *F"]
) -> Float[Array, "..."]:
  """Returns x @ weight [*B, *F], summed over D."""
  return jnp.tensordot(x, weight, 1)


linear.defvjp(
  lambda x, weight: (linear(x, weight), (x, weight)),
  lambda saved, gradient: (
    input_gradient(gradient, saved[1]),
    weight_gradient(saved[0], gradient),
  ),
)


def input_gradient(
  gradient: Float[Array, "..."], weight: Float[Array, "D *F"]
) -> Float[Array, "*B D"]:
  """The gradient of `linear` with respect to x, given that of its result."""
  summed = tuple(range(1 - weight.ndim, 0))  # The dimensions F of both.
  return jnp.tensordot(gradient, weight, (summed, summed))


def weight_gradient(
  x: Float[Array, "*B D"], gradient: Float[Array, "..."]
) -> Float[Array, "D *F"]:
  """The gradient of `linear` with respect to its weight, a sum over tokens.

  CPUs copy the left operand of this product, so the narrower operand goes
  there. The barrier stops XLA from swapping the two.
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
  """SwiGLU, down(silu(gate(x)) * up(x)) (arXiv:2002.05202).

  `gate_up` holds the weights of gate and up, so that they run as one product.
  Apart from its inputs, only the values before the silu are saved for the
  gradient.
  """
  return _swiglu_forward(x, gate_up, down)[0]


def gated_silu(gate_up: Float[Array, "*B 2 F"]) -> Float[Array, "*B F"]:
  """Returns silu(gate) * up of gate and up, stacked on the second-last axis."""
  return _gated_silu(gate_up[..., 0, :], gate_up[..., 1, :])


def _gated_silu(gate, up):
  return jax.nn.silu(gate) * up


def _swiglu_forward(x, gate_up, down):
  both = linear(x, gate_up)
  return linear(gated_silu(both), down), (x, gate_up, down, both)


def _swiglu_backward(saved, gradient):
  x, gate_up, down, both = saved
  hidden, pull = jax.vjp(_gated_silu, both[..., 0, :], both[..., 1, :])
  d_both = pull(input_gradient(gradient, down))
  # Gate and up are stacked only now, as weights: these are smaller than the
  # gradients of many tokens.
  d_gate_up = jnp.stack([weight_gradient(x, d) for d in d_both], axis=1)
  d_x = sum(input_gradient(d, gate_up[:, i]) for i, d in enumerate(d_both))
  # Transposed, so that for equal widths the left operand, which is copied, is
  # `gradient`: it is in memory already.
  return d_x, d_gate_up, weight_gradient(gradient, hidden).T


swiglu.defvjp(_swiglu_forward, _swiglu_backward)
