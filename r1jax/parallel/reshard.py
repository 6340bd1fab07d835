"""Resharding from one mesh to another of the same devices, within a program.

XLA reshards an array with one exchange if only one mesh axis moves to another
dimension, or off the array. If several do, it first gathers the whole array on
every device. `reshard` therefore takes one such step at a time, on a mesh that
is fine enough to express both shardings.
"""

import collections
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

# For each dimension, the axes of the fine mesh that split it.
Layout = list[list[str]]


def reshard(x: Array, before: NamedSharding, after: NamedSharding) -> Array:
  """`x` with the sharding `after`; its current sharding is `before`.

  Both meshes must have the same devices in the same order. See `steps`.
  """
  mesh = common_mesh(before.mesh, after.mesh)
  if mesh is not None:
    path = steps(
      _layout(before, x.ndim, mesh), _layout(after, x.ndim, mesh), x.shape, mesh
    )
    for layout in path[:-1]:
      on = NamedSharding(mesh, PartitionSpec(*map(tuple, layout)))
      x = jax.lax.with_sharding_constraint(x, on)
  return jax.lax.with_sharding_constraint(x, after)


def steps(
  before: Layout, after: Layout, shape: Sequence[int], mesh: Mesh
) -> list[Layout]:
  """The layouts from `before` (exclusive) to `after` (inclusive).

  Each step removes the last axis from a dimension, because the parts that it
  separates are contiguous. Axes that another dimension takes over come first,
  while parts are small; then those that leave the array. The last step permutes
  parts between devices if only their order differs.
  """
  now, path = [list(axes) for axes in before], []
  target = {axis: i for i, axes in enumerate(after) for axis in axes}
  size = lambda i: math.prod(mesh.shape[axis] for axis in now[i])
  for only_taken_over in (True, False):
    for i, axes in enumerate(now):
      while axes and target.get(axes[-1]) != i:
        to = target.get(axes[-1])
        if only_taken_over and to is None:
          break
        axis = axes.pop()
        if to is not None and shape[to] % (size(to) * mesh.shape[axis]) == 0:
          now[to].append(axis)
        path.append([list(axes) for axes in now])
  return [*path, after]


def common_mesh(one: Mesh, other: Mesh) -> Mesh | None:
  """The coarsest mesh into whose axes the axes of both meshes factor.

  None if there is no such mesh, as for 2 x 3 and 3 x 2 devices.
  """
  # An axis between strides a and b of the device order is named "part<b>".
  strides = sorted({*_strides(one), *_strides(other)})
  pairs = [*itertools.pairwise(strides)]
  if any(end % start for start, end in pairs):
    return None
  sizes = [end // start for start, end in reversed(pairs)]
  return Mesh(
    one.devices.reshape(sizes),
    tuple(f"part{end}" for _, end in reversed(pairs)),
    axis_types=(AxisType.Auto,) * len(sizes),
  )


def _strides(mesh: Mesh) -> list[int]:
  """The number of devices in the last 0, 1, 2, ... axes of a mesh together."""
  sizes = reversed(mesh.devices.shape)
  return [1, *itertools.accumulate(sizes, lambda a, b: a * b)]


def _layout(sharding: NamedSharding, ndim: int, mesh: Mesh) -> Layout:
  """A sharding in terms of the axes of the `common_mesh`."""
  ends = dict(
    zip(reversed(sharding.mesh.axis_names), _strides(sharding.mesh)[1:])
  )
  spec: list[Any] = [*sharding.spec, *[None] * (ndim - len(sharding.spec))]
  layout = []
  for part in spec:
    names = part if isinstance(part, tuple) else (part,) if part else ()
    fine = []
    for name in names:
      start = ends[name] // sharding.mesh.shape[name]
      fine += [
        axis
        for axis in mesh.axis_names
        if start < int(axis.removeprefix("part")) <= ends[name]
      ]
    layout.append(fine)
  return layout


def bytes_received(tree: Any, cast: Any, shardings: Any) -> int:
  """The most bytes that a device receives from others when a tree is resharded.

  Args:
    tree: arrays with their current shardings.
    cast: their shapes, and the dtypes in which they are sent.
    shardings: their new shardings.
  """
  received = collections.Counter()

  def count(leaf, sent, sharding):
    box = lambda index: [
      range(*part.indices(size)) for part, size in zip(index, leaf.shape)
    ]
    volume = lambda ranges: math.prod(map(len, ranges))
    old = leaf.sharding.devices_indices_map(leaf.shape)
    for device, index in sharding.devices_indices_map(leaf.shape).items():
      new = box(index)
      present = box(old[device]) if device in old else [range(0)] * len(new)
      overlap = [
        range(max(a.start, b.start), min(a.stop, b.stop))
        for a, b in zip(new, present)
      ]
      missing = volume(new) - volume(overlap)
      received[device] += sent.dtype.itemsize * missing

  jax.tree.map(count, tree, cast, shardings)
  return max(received.values())
