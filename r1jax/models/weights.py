"""The parameters of a model as data: shapes, logical axes, dtypes, counts."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax

from r1jax.models import transformer
from r1jax.models.config import RUNTIME_FIELDS, ModelConfig
from r1jax.parallel import sharding
from r1jax.types import Params


@dataclasses.dataclass(frozen=True)
class Weight:
  """The shape and the logical axes of one array of the parameter tree."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]  # A logical name for each dimension.


def weights(config: ModelConfig) -> dict:
  """The tree of parameters, with a `Weight` in place of each array.

  The model's initialisation is traced for it, once per model, but not run.
  """
  # How a model runs does not affect its weights, so defaults share one trace.
  defaults = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
  plain = {name: defaults[name] for name in RUNTIME_FIELDS}
  # A copy of the tree, as callers may change it.
  return jax.tree.map(
    lambda weight: weight, _weights(dataclasses.replace(config, **plain))
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
  """The logical axes of every array, as a tree like the parameters."""
  return jax.tree.map(lambda w: w.axes, weights(config))


def used_axes(config: ModelConfig) -> dict:
  """The logical axes of weights that layers have gathered.

  See `sharding.without_width`.
  """
  return jax.tree.map(lambda w: sharding.without_width(w.axes), weights(config))


def names_of(path) -> tuple[str, ...]:
  """The keys along a path in the tree of parameters."""
  return tuple(str(key.key) for key in path)


def is_router_bias(path) -> bool:
  """Whether the weight at a path is the balancing bias of a router."""
  return names_of(path)[-2:] == ("router", "bias")


def is_matrix(path) -> bool:
  """Whether the weight at a path is a matrix: not a norm's scale or a bias."""
  return not names_of(path)[-1].endswith(("scale", "bias"))


def keeps_float32(path) -> bool:
  """Whether layers use the weight at a path in its own dtype.

  This holds for norm scales, router weights and balancing biases. All other
  weights are cast to the compute dtype.
  """
  names = names_of(path)
  return names[-1] == "scale" or "router" in names[-2:]


def to_compute_dtype(params: Params, config: ModelConfig) -> Params:
  """The weights cast as layers cast them; see `keeps_float32`.

  A forward pass with the result equals one with `params`, bit for bit.
  """

  def one(path, weight):
    if keeps_float32(path):
      return weight
    return weight.astype(config.compute_dtype)

  return jax.tree.map_with_path(one, params)


def sizes(config: ModelConfig) -> dict[str, int]:
  """Numbers of parameters by top-level name, and their "total".

  The total excludes the balancing biases, which are not trained by gradients,
  and the MTP blocks. They are counted as "router_bias" and "mtp".
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
