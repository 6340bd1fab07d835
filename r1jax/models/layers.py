"""How the model's modules declare their weights; the norm."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from r1jax.models.config import ModelConfig
from r1jax.parallel import sharding

Axes = tuple[str | None, ...]


class Layer(nn.Module):
  """A module of the model that `config` describes."""

  config: ModelConfig

  @nn.nowrap
  def weight(
    self,
    name: str,
    shape: tuple[int, ...],
    axes: Axes,
    init: Callable | None = None,
  ) -> Float[Array, "..."]:
    """Declares a weight, in float32 or as it is loaded.

    Args:
      name: within the module.
      shape: of one layer.
      axes: a logical name for each dimension; `AXIS_RULES` maps them to
        axes of the mesh.
      init: initialiser; None for a normal distribution of `config.init_scale`.
    """
    init = init or nn.initializers.normal(self.config.init_scale)
    return self.param(name, nn.with_logical_partitioning(init, axes), shape)

  @nn.nowrap
  def dense_weight(
    self,
    name: str,
    shape: tuple[int, ...],
    axes: Axes,
    init: Callable | None = None,
  ) -> Float[Array, "..."]:
    """A weight in the compute dtype, its width gathered from all devices."""
    weight = self.weight(name, shape, axes, init)
    return sharding.gather_width(weight.astype(self.config.compute_dtype), axes)


class RMSNorm(nn.Module):
  """Scales vectors to unit root mean square (arXiv:1910.07467), in float32."""

  epsilon: float
  axis: str | None = "width"  # Logical name of the dimension.

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """x / sqrt(mean(x^2) + epsilon) * scale, in the dtype of x."""
    ones = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
    scale = self.param("scale", ones, x.shape[-1:])
    scale = sharding.gather_width(scale, (self.axis,))
    x32 = x.astype(jnp.float32)
    square = jnp.mean(x32 * x32, axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(square + self.epsilon) * scale).astype(x.dtype)
