"""The base class of the model's modules, and RMSNorm."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from r1jax.models.config import ModelConfig
from r1jax.parallel import sharding

Axes = tuple[str | None, ...]


class Layer(nn.Module):
  """Base class of modules: holds the model's config and declares weights."""

  config: ModelConfig

  @nn.nowrap
  def weight(
    self,
    name: str,
    shape: tuple[int, ...],
    axes: Axes,
    init: Callable | None = None,
  ) -> Float[Array, "..."]:
    """Declares a weight and returns it in its own dtype.

    The dtype is float32 when initialised, else that of the loaded parameters.

    Args:
      name: of the weight within the module.
      shape: of the weight in one layer.
      axes: a logical name for each dimension. `AXIS_RULES` maps logical
        names to mesh axes.
      init: initialiser; None for a normal distribution with standard deviation
        `config.init_scale`.
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
    """Declares a weight and returns it ready for a product.

    It is cast to the compute dtype, and its width is gathered from all devices
    (FSDP). For the arguments, see `weight`.
    """
    weight = self.weight(name, shape, axes, init)
    return sharding.gather_width(weight.astype(self.config.compute_dtype), axes)


class RMSNorm(nn.Module):
  """RMSNorm: scales vectors to unit root mean square (arXiv:1910.07467)."""

  epsilon: float
  axis: str | None = "width"  # Logical name of the dimension D.

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """x / sqrt(mean(x^2) + epsilon) * scale, in float32, cast to x's dtype."""
    ones = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
    scale = self.param("scale", ones, x.shape[-1:])
    scale = sharding.gather_width(scale, (self.axis,))
    x32 = x.astype(jnp.float32)
    square = jnp.mean(x32 * x32, axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(square + self.epsilon) * scale).astype(x.dtype)
