"""From one mesh of some devices to another of the same, within a program.

XLA splits an array anew with one exchange, if one axis of the mesh moves: from
a dimension to another, or off. Where several do, it copies the array whole to
every device first. So the way is taken here in such steps, on a mesh fine
enough for both.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

Split = list[list[str]]  # Of each dimension: its axes of the fine mesh.


def moved(x: Array, before: NamedSharding, after: NamedSharding) -> Array:
  """`x`, which lies as `before` says, as `after` says; see `steps`.

  The devices of both are the same, in the same order.
  """
  mesh = common(before.mesh, after.mesh)
  if mesh is not None:
    path = steps(
      _fine(before, x.ndim, mesh), _fine(after, x.ndim, mesh), x.shape, mesh
    )
    for split in path[:-1]:
      on = NamedSharding(mesh, PartitionSpec(*(tuple(axes) for axes in split)))
      x = jax.lax.with_sharding_constraint(x, on)
  return jax.lax.with_sharding_constraint(x, after)


def steps(
  before: Split, after: Split, shape: Sequence[int], mesh: Mesh
) -> list[Split]:
  """The splits on the way, `after` the last.

  Axes leave a dimension from its end, where what they split lies side by side:
  first those that another dimension takes, while the parts are small, then
  those that none does. Last, devices swap their parts, where their order alone
  is another.
  """
  now, path = [list(axes) for axes in before], []
  home = {axis: i for i, axes in enumerate(after) for axis in axes}
  size = lambda i: math.prod(mesh.shape[axis] for axis in now[i])
  for taken in (True, False):
    for i, axes in enumerate(now):
      while axes and home.get(axes[-1]) != i:
        to = home.get(axes[-1])
        if taken and to is None:
          break
        axis = axes.pop()
        if to is not None and shape[to] % (size(to) * mesh.shape[axis]) == 0:
          now[to].append(axis)
        path.append([list(axes) for axes in now])
  return [*path, after]


def common(one: Mesh, other: Mesh) -> Mesh | None:
  """The coarsest mesh whose axes are parts of the axes of both.

  None where there is none, such as of 2 x 3 and 3 x 2 devices.
  """
  ends = sorted({*_ends(one), *_ends(other)})
  pairs = [*itertools.pairwise(ends)]
  if any(end % start for start, end in pairs):
    return None
  sizes = [end // start for start, end in reversed(pairs)]
  return Mesh(
    one.devices.reshape(sizes),
    tuple(f"part{end}" for _, end in reversed(pairs)),
    axis_types=(AxisType.Auto,) * len(sizes),
  )


def _ends(mesh: Mesh) -> list[int]:
  """How many devices the last axes of a mesh have together, and 1."""
  sizes = reversed(mesh.devices.shape)
  return [1, *itertools.accumulate(sizes, lambda a, b: a * b)]


def _fine(on: NamedSharding, ndim: int, mesh: Mesh) -> Split:
  """A sharding in the axes of the `common` mesh."""
  ends = dict(zip(reversed(on.mesh.axis_names), _ends(on.mesh)[1:]))
  parts: list[Any] = [*on.spec, *[None] * (ndim - len(on.spec))]
  found = []
  for part in parts:
    names = part if isinstance(part, tuple) else (part,) if part else ()
    fine = []
    for name in names:
      start = ends[name] // on.mesh.shape[name]
      fine += [
        axis
        for axis in mesh.axis_names
        if start < int(axis.removeprefix("part")) <= ends[name]
      ]
    found.append(fine)
  return found
