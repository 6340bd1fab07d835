"""Every weight of a model as data: its shape, its logical axes, its dtype."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax

from r1jax.models import transformer
from r1jax.models.config import HOW, ModelConfig
from r1jax.parallel import sharding
from r1jax.types import Params


@dataclasses.dataclass(frozen=True)
class Weight:
  """One array of the parameter tree: a leaf of `weights`."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]  # A logical name for each dimension.


def weights(config: ModelConfig) -> dict:
  """The tree of parameters with a `Weight` for each array.

  It is what the model's modules declare, traced once and not computed.
  """
  how = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
  how = {name: how[name] for name in HOW}
  return jax.tree.map(
    lambda weight: weight, _weights(dataclasses.replace(config, **how))
  )


@functools.lru_cache(maxsize=128)
def _weights(config: ModelConfig) -> dict:
  init = functools.partial(transformer.init_boxed, config)
  no_mesh = jax.sharding.AbstractMesh((), ())
  with jax.sharding.use_abstract_mesh(no_mesh):
    boxed = jax.eval_shape(init, jax.random.key(0))
  is_boxed = lambda x: isinstance(x, nn.LogicallyPartitioned)
  return jax.tree.map(
    lambda x: Weight(x.value.shape, tuple(x.names)), boxed, is_leaf=is_boxed
  )


def logical_axes(config: ModelConfig) -> dict:
  """The logical axes of every array, in the tree of the parameters."""
  return jax.tree.map(lambda w: w.axes, weights(config))


def used_axes(config: ModelConfig) -> dict:
  """The same as layers use them, gathered; see `sharding.without_width`."""
  return jax.tree.map(lambda w: sharding.without_width(w.axes), weights(config))


def names_of(path) -> tuple[str, ...]:
  """The names along a path in the tree of parameters."""
  return tuple(str(key.key) for key in path)


def is_router_bias(path) -> bool:
  """Whether a path leads to a balancing bias of a router."""
  return names_of(path)[-2:] == ("router", "bias")


def is_matrix(path) -> bool:
  """Whether a path leads to a matrix, not to a norm's scale or a bias."""
  return not names_of(path)[-1].endswith(("scale", "bias"))


def keeps_float32(path) -> bool:
  """Whether layers use a weight in the precision that it has.

  Norm scales, router weights and balancing biases are; all else is cast to the
  compute dtype.
  """
  names = names_of(path)
  return names[-1] == "scale" or "router" in names[-2:]


def to_compute_dtype(params: Params, config: ModelConfig) -> Params:
  """The weights as layers use them; see `keeps_float32`.

  A forward pass of the result is bit for bit that of `params`.
  """

  def one(path, weight):
    if keeps_float32(path):
      return weight
    return weight.astype(config.compute_dtype)

  return jax.tree.map_with_path(one, params)


def sizes(config: ModelConfig) -> dict[str, int]:
  """Number of parameters by top-level name, and their "total".

  The total counts neither the balancing biases, which no optimizer moves, nor
  the MTP blocks; "router_bias" and "mtp" are their numbers.
  """
  counts, biases = {}, 0
  for path, weight in jax.tree.leaves_with_path(weights(config)):
    size, group = math.prod(weight.shape), path[0].key
    if is_router_bias(path):
      biases += size * (group != "mtp")
      continue
    counts[group] = counts.get(group, 0) + size
  total = sum(size for name, size in counts.items() if name != "mtp")
  return counts | {"router_bias": biases, "total": total}
