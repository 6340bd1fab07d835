"""Rows too long for one device: their tokens are split over `context`.

Each device has some tokens of a row, next to each other. All but attention
treats tokens alone. To attend, a device gathers what the others have cached of
theirs, latents or keys and values, and makes keys for a few tokens at a time.
The gradient of what it gathered is summed where it came from. Texts are causal,
so the device that has a row's last tokens sees up to twice the mean number of
keys; rows of several texts even that out.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float

from r1jax import sharding
from r1jax.models import ops
from r1jax.types import Ints

AXIS = "context"


def attend(
  make: Callable,
  queries: Float[Array, "B T K G H"],
  cached: Any,
  weights: Any,
  names: tuple[Any, Any, Any],
  *,
  scale: float,
  k_start: Ints,
  prefix_end: Ints,
) -> Float[Array, "B T K G Hv"]:
  """`ops.blockwise_attention` of rows to themselves, on the context's mesh.

  `names` are those of the dimensions of `queries`, and trees of those of
  `cached` and of `weights`.
  """
  fn = functools.partial(ops.blockwise_attention, make, scale=scale)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return fn(queries, cached, weights, k_start=k_start, prefix_end=prefix_end)[
      0
    ]
  spec = lambda x, names: sharding.spec(names, x.shape, mesh)
  specs = tuple(
    jax.tree.map(spec, x, n) for x, n in zip((queries, cached, weights), names)
  )
  rows = spec(k_start, ("rows", "tokens"))

  def on_device(queries, cached, weights, k_start, prefix_end):
    start = 0
    if rows[1] is not None:
      start = lax.axis_index(AXIS) * queries.shape[1]
      gather = functools.partial(
        lax.all_gather, axis_name=AXIS, axis=1, tiled=True
      )
      cached = jax.tree.map(gather, cached)
    return fn(
      queries,
      cached,
      weights,
      k_start=k_start,
      prefix_end=prefix_end,
      start=start,
    )[0]

  return jax.shard_map(
    on_device,
    in_specs=(*specs, rows, rows),
    out_specs=specs[0],
    check_vma=False,
  )(queries, cached, weights, k_start, prefix_end)


def is_split() -> bool:
  """Whether the mesh of the context splits the tokens of a row."""
  return jax.sharding.get_abstract_mesh().shape.get(AXIS, 1) > 1
