"""Shardings of arrays, constraints within programs, and host <-> device copies.

Inside a jitted function an array is global: it is one program, partitioned by
XLA. On the host, arrays are NumPy and hold all rows. `rows_to_device` and
`to_host` convert batches and results between the two.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)
from jaxtyping import Array

from r1jax.parallel.mesh import AXIS_RULES, current_mesh, row_shards

Tree = TypeVar("Tree")


# Partition specs and shardings.


def spec(
  names: Sequence[str | None],
  shape: Sequence[int],
  mesh: Mesh | AbstractMesh,
) -> PartitionSpec:
  """The partition spec of an array whose dimensions have these logical axes.

  A dimension whose name is None is not split. Manual mesh axes, as within
  `jax.shard_map`, are not used.
  """
  free = {
    axis: mesh.shape[axis]
    for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if kind == AxisType.Auto and mesh.shape[axis] > 1
  }
  parts: list[Any] = [None] * len(shape)
  rank = list(AXIS_RULES).index
  named = [i for i, name in enumerate(names) if name is not None]
  for i in sorted(named, key=lambda i: rank(names[i])):
    chosen, size = [], shape[i]
    for axis in AXIS_RULES[names[i]]:
      if axis in free and size % free[axis] == 0:
        chosen.append(axis)
        size //= free.pop(axis)
    if chosen:
      parts[i] = tuple(chosen) if len(chosen) > 1 else chosen[0]
  return PartitionSpec(*parts)


def tree_specs(mesh: Mesh | AbstractMesh, axes: Any, tree: Any) -> Any:
  """The partition spec of every leaf of a tree that contains parameters.

  Args:
    mesh: of the devices.
    axes: the tree of the parameters, with tuples of logical axes as leaves.
    tree: arrays or shapes. A leaf is split like the parameter whose path its
      own path ends with: the parameter itself, its copy in a reference policy,
      its moments in an optimizer state. Scalars are replicated.

  Raises ValueError for a leaf that belongs to no parameter, because it would be
  replicated on every device by accident.
  """
  is_names = lambda x: (
    isinstance(x, tuple)
    and all(name is None or isinstance(name, str) for name in x)
  )
  known = dict(jax.tree.leaves_with_path(axes, is_leaf=is_names))

  def one(path, leaf):
    for start in range(len(path)):
      names = known.get(path[start:])
      if names is not None and len(names) == len(leaf.shape):
        return spec(names, leaf.shape, mesh)
    if leaf.shape:
      raise ValueError(
        f"{jax.tree_util.keystr(path)} {list(leaf.shape)} belongs to no "
        "parameter, and would be copied to every device"
      )
    return PartitionSpec()

  return jax.tree.map_with_path(one, tree)


def tree_shardings(mesh: Mesh, axes: Any, tree: Any) -> Any:
  """The sharding of every leaf of `tree`; see `tree_specs`."""
  on_mesh = lambda spec: NamedSharding(mesh, spec)
  return jax.tree.map(on_mesh, tree_specs(mesh, axes, tree))


def by_rows(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch, whose rows are axis 0."""
  return NamedSharding(mesh, PartitionSpec(AXIS_RULES["rows"]))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array of which every device holds a copy."""
  return NamedSharding(mesh, PartitionSpec())


def row_hosts(mesh: Mesh) -> np.ndarray:
  """The host that is responsible for each part of the rows.

  It is the host of the first device that holds the part.
  """
  parts = by_rows(mesh).devices_indices_map((row_shards(mesh),))
  hosts = np.full(row_shards(mesh), -1)
  for device, (index,) in parts.items():
    part = index.start or 0
    if hosts[part] < 0:
      hosts[part] = device.process_index
  return hosts


# Constraints within a program.


def shard_constraint(x: Array, *names: str | None) -> Array:
  """`x`, sharded by the logical axes of its dimensions.

  It uses the mesh of the context, and returns `x` unchanged without one.
  """
  mesh = current_mesh()
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, spec(names, x.shape, mesh))


def tree_shard_constraint(tree: Tree, axes: Any) -> Tree:
  """`tree`, sharded as `tree_specs` says; unchanged without a mesh or axes."""
  if (mesh := current_mesh()) is None or axes is None:
    return tree
  constrain = jax.lax.with_sharding_constraint
  return jax.tree.map(constrain, tree, tree_specs(mesh, axes, tree))


def gather_width(weight: Array, names: tuple[str | None, ...]) -> Array:
  """A weight whose width is no longer split, ready for use in a layer.

  The weight is gathered right before its use, and its gradient is summed
  directly into the parts (reduce-scatter). Without a mesh in the context,
  `weight` is returned unchanged.
  """
  if "width" not in names or current_mesh() is None:
    return weight
  return _gather_width(weight, names)


def without_width(names: Sequence[str | None]) -> tuple[str | None, ...]:
  """The logical axes of a weight after `gather_width`."""
  return tuple(None if name == "width" else name for name in names)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather_width(weight, names):
  return shard_constraint(weight, *without_width(names))


_gather_width.defvjp(
  lambda weight, names: (_gather_width(weight, names), None),
  lambda names, _, gradient: (shard_constraint(gradient, *names),),
)


# Arrays on the devices.


def init(mesh: Mesh, axes: Any, fn: Callable, *args: Any) -> Any:
  """fn(*args), computed in parts on the devices that keep them.

  No device and no host holds the whole result. See `tree_specs` for `axes`.
  """
  out_shardings = tree_shardings(mesh, axes, jax.eval_shape(fn, *args))
  with jax.set_mesh(mesh):
    return jax.jit(fn, out_shardings=out_shardings)(*args)


def eval_shape(mesh: Mesh, axes: Any, fn: Callable, *args: Any) -> Any:
  """Shapes, dtypes and shardings of what `init` returns; computes nothing."""
  result = jax.eval_shape(fn, *args)
  return jax.tree.map(
    lambda x, on: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on),
    result,
    tree_shardings(mesh, axes, result),
  )


def to_device(tree: Tree, shardings: Any) -> Tree:
  """`tree` on the devices, each leaf with its sharding.

  All hosts must pass the same values. A JAX array that already has its sharding
  is returned as it is, so donating the result also donates the argument.
  """

  def one(leaf, sharding):
    if isinstance(leaf, jax.Array):
      if jax.process_count() == 1 or not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    leaf = np.array(leaf)  # Copied, since CPU devices would share its memory.
    return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

  return jax.tree.map(one, tree, shardings)


def replicate(mesh: Mesh, tree: Tree) -> Tree:
  """`tree` with a copy of every leaf on every device; see `to_device`."""
  return to_device(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def rows_to_device(mesh: Mesh, tree: Tree) -> Tree:
  """The arrays of a batch on the devices, split by rows (axis 0).

  All hosts pass the whole batch, and each of their devices takes its own rows.
  The leaves are copied. `to_host` is the inverse.

  Raises ValueError if the rows do not divide over the devices that split them.
  """
  on, parts = by_rows(mesh), row_shards(mesh)

  def one(leaf):
    leaf = np.array(leaf)  # Copied, since CPU devices would share its memory.
    if leaf.ndim == 0 or len(leaf) % parts:
      raise ValueError(
        f"{len(leaf) if leaf.ndim else 'no'} rows do not divide over the "
        f"{parts} parts of the mesh axes {', '.join(AXIS_RULES['rows'])}"
      )
    return jax.make_array_from_callback(leaf.shape, on, leaf.__getitem__)

  return jax.tree.map(one, tree)


def to_host(tree: Tree) -> Tree:
  """Global arrays as whole NumPy arrays, on every host.

  Every host must call it, because arrays that are split over hosts are
  gathered. The result owns its memory: the arrays may be donated afterwards.
  """

  def one(leaf):
    if isinstance(leaf, jax.Array) and not (
      leaf.is_fully_addressable or leaf.is_fully_replicated
    ):
      leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.array(leaf)

  return jax.tree.map(one, tree)


def block_to_host(array: Array, lead: tuple[int, ...]) -> np.ndarray:
  """array[lead] in NumPy, of an array that is split over hosts.

  Only this block is gathered. Every host must call it with the same `lead`.
  """
  on = array.sharding
  parts = (*on.spec, *[None] * (array.ndim - len(on.spec)))
  block = _gather_block(array, lead, on.mesh, PartitionSpec(*parts))
  return np.asarray(block.addressable_data(0))


@functools.partial(jax.jit, static_argnames=("mesh", "parts"))
def _gather_block(
  array: Array, lead: tuple, mesh: Mesh, parts: PartitionSpec
) -> Array:
  """array[lead] on every device.

  XLA would gather the whole array to index a dimension that is split. Here, the
  devices that hold the block add it to the zeros of the others.
  """

  def take(local, lead):
    held, index, split = True, [], []
    for at, size, names in zip(lead, local.shape, parts):
      if names is not None:
        at -= jax.lax.axis_index(names) * size
        held &= (0 <= at) & (at < size)
        split += names if isinstance(names, tuple) else [names]
      index.append(jnp.clip(at, 0, size - 1))
    if not split:
      return local[tuple(index)]
    # The bits are added, as a sum of floats may flush small numbers to 0.
    bits = local[tuple(index)].view(f"uint{8 * array.dtype.itemsize}")
    total = jax.lax.psum(jnp.where(held, bits.astype("uint32"), 0), split)
    return total.astype(bits.dtype).view(array.dtype)

  block = jax.shard_map(
    take,
    mesh=mesh,
    in_specs=(parts, PartitionSpec()),
    out_specs=PartitionSpec(*parts[len(lead) :]),
  )(array, jnp.array(lead, jnp.int32))
  return jax.lax.with_sharding_constraint(block, replicated(mesh))
