"""The mesh, what lies where on it, and the way between hosts and devices.

Inside a jitted function an array is global: one program, partitioned by XLA.
Modules name the dimensions of their arrays ("rows", "heads"), and `LAYOUT`
alone says over which axes of the mesh a name is split. What a host knows it has
whole, as NumPy: `assemble` and `local` are the only places where one becomes
the other.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)
from jaxtyping import Array

Tree = TypeVar("Tree")

# Of every mesh; the further right, the more two neighbours have to say.
AXES = ("data", "fsdp", "expert", "context", "tensor")

# What each logical axis is split over. An axis of the mesh splits an array once
# at most: names that stand higher choose first. One that does not divide what
# the axes before it left of a dimension is passed over there.
LAYOUT = {
  "layers": (),
  "rows": ("data", "fsdp", "expert"),  # Of a batch, of a cache: texts.
  "tokens": ("context",),  # Of a row.
  "expert": ("expert",),
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "hidden": ("tensor",),
  "vocab": ("tensor",),
  # Of weights, which are gathered where they are used (ZeRO-3,
  # arXiv:1910.02054): over what the names above have left.
  "width": ("fsdp", "expert", "context", "tensor"),
}


def make_mesh(
  *,
  data: int = -1,
  fsdp: int = 1,
  expert: int = 1,
  context: int = 1,
  tensor: int = 1,
  num_slices: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """A mesh over the first devices of the job, as many as its axes ask for.

  Args:
    data: rows of a batch are split, weights are copied; -1 takes what is left.
    fsdp: rows are split and weights too, which are gathered for each layer.
    expert: rows are split, and so are a layer's experts.
    context: the tokens of each row are split.
    tensor: heads, hidden units and the vocabulary are split.
    num_slices: of a job, with a slower network between them (DCN): slices of
      TPUs, or the hosts of other devices. Only `data` crosses it.
    devices: all that there are; None for the job's own.

  Raises ValueError when the sizes do not fit the devices, or when a job of
  several hosts would leave one of them without a device.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = dict(zip(AXES, (data, fsdp, expert, context, tensor), strict=True))
  for name, size in sizes.items():
    if size < 1 and (name, size) != ("data", -1):
      raise ValueError(
        f"mesh.{name} is {size}; an axis that is not used has size 1"
      )
  others = fsdp * expert * context * tensor
  if data == -1:
    sizes["data"] = len(devices) // others
  count = sizes["data"] * others
  asked = ", ".join(f"{k} {v}" for k, v in sizes.items() if v > 1) or "1"
  if data == -1 and count != len(devices):
    raise ValueError(
      f"the {others} devices of the mesh's fsdp {fsdp}, expert {expert}, "
      f"context {context} and tensor {tensor} do not divide the "
      f"{len(devices)} devices that there are"
    )
  if count > len(devices):
    raise ValueError(
      f"mesh.data is {data}: a mesh of {asked} takes {count} devices, but "
      f"there are {len(devices)}; set it to -1 to use them all"
    )
  if count < len(devices) and len({d.process_index for d in devices}) > 1:
    raise ValueError(
      f"mesh.data is {data}: a mesh of {asked} takes {count} devices, but the "
      f"hosts hold {len(devices)}; a job of several hosts must use them all"
    )
  if num_slices < 1 or sizes["data"] % num_slices:
    raise ValueError(
      f"mesh.num_slices {num_slices} does not divide mesh.data "
      f"{sizes['data']}, the only axis between slices"
    )
  grid = _arrange(tuple(sizes.values()), num_slices, devices[:count])
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(shape, num_slices, devices) -> np.ndarray:
  """The devices in the order that suits their network."""
  hosts = num_slices > 1 and not hasattr(devices[0], "slice_index")
  name = "process_index" if hosts else "slice_index"
  found = len({getattr(device, name, 0) for device in devices})
  if found != num_slices:
    raise ValueError(
      f"mesh.num_slices is {num_slices}, but the devices of the mesh are those "
      f"of {found} {'hosts' if hosts else 'slices'}"
    )
  if num_slices == 1:
    return mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  return mesh_utils.create_hybrid_device_mesh(
    (shape[0] // num_slices, *shape[1:]),
    (num_slices, *[1] * (len(shape) - 1)),
    devices,
    process_is_granule=hosts,
    allow_split_physical_axes=True,
  )


def reshaped(
  mesh: Mesh,
  *,
  data: int = -1,
  fsdp: int = 1,
  expert: int = 1,
  context: int = 1,
  tensor: int = 1,
) -> Mesh:
  """Another mesh of the same devices in the same order; see `make_mesh`.

  One program may read arrays that lie on either and write to the other.
  """
  sizes = dict(zip(AXES, (data, fsdp, expert, context, tensor), strict=True))
  devices = [*mesh.devices.flat]
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  made = make_mesh(devices=devices, num_slices=slices, **sizes)
  if made.size != mesh.size:
    raise ValueError(
      f"a mesh of {made.size} devices has not those of one of {mesh.size}"
    )
  grid = mesh.devices.reshape(made.devices.shape)
  return Mesh(grid, AXES, axis_types=made.axis_types)


def spec(
  names: Sequence[str | None],
  shape: Sequence[int],
  mesh: Mesh | AbstractMesh,
) -> PartitionSpec:
  """How an array of this shape is split, by the names of its dimensions.

  None is a dimension that stays whole. Axes of a mesh that the program splits
  by hand, within `jax.shard_map`, are left alone.
  """
  free = {
    axis: mesh.shape[axis]
    for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if kind == AxisType.Auto and mesh.shape[axis] > 1
  }
  parts: list[Any] = [None] * len(shape)
  rank = list(LAYOUT).index
  named = [i for i, name in enumerate(names) if name is not None]
  for i in sorted(named, key=lambda i: rank(names[i])):
    chosen, left = [], shape[i]
    for axis in LAYOUT[names[i]]:
      if axis in free and left % free[axis] == 0:
        chosen.append(axis)
        left //= free.pop(axis)
    if chosen:
      parts[i] = tuple(chosen) if len(chosen) > 1 else chosen[0]
  return PartitionSpec(*parts)


def current() -> AbstractMesh | None:
  """The mesh of the context (`jax.set_mesh`), if it splits anything."""
  mesh = jax.sharding.get_abstract_mesh()
  free = mesh.axis_types and AxisType.Auto in mesh.axis_types
  return mesh if free and mesh.size > 1 else None


def constrain(x: Array, *names: str | None) -> Array:
  """`x`, split as the names of its dimensions say.

  On the mesh of the context; without one, `x` as it is.
  """
  mesh = current()
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, spec(names, x.shape, mesh))


def gathered(weight: Array, names: tuple[str | None, ...]) -> Array:
  """A weight as layers use it, its width whole; its gradient lies as it does.

  So it is gathered right before its use, and its gradient is summed straight
  into parts. On the mesh of the context; without one, `weight` as it is.
  """
  if "width" not in names or current() is None:
    return weight
  return _gathered(weight, names)


def in_use(names: Sequence[str | None]) -> tuple[str | None, ...]:
  """The names of a weight's dimensions as layers use it: its width is whole."""
  return tuple(None if name == "width" else name for name in names)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(weight, names):
  return constrain(weight, *in_use(names))


_gathered.defvjp(
  lambda weight, names: (_gathered(weight, names), None),
  lambda names, _, gradient: (constrain(gradient, *names),),
)


def specs(mesh: Mesh | AbstractMesh, axes: Any, tree: Any) -> Any:
  """How every leaf of `tree`, which may be shapes alone, is split.

  `axes` is the tree of the parameters, with the names of dimensions as leaves.
  What belongs to a parameter (the parameter itself, its copy in a reference,
  its means in an optimizer) lies as it does: a leaf whose path ends as that of
  a parameter. Scalars are whole.

  Raises ValueError for any other leaf: nothing is copied by accident.
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


def shardings(mesh: Mesh, axes: Any, tree: Any) -> Any:
  """The sharding of every leaf of `tree`; see `specs`."""
  named = lambda of: NamedSharding(mesh, of)
  return jax.tree.map(named, specs(mesh, axes, tree))


def lay_out(tree: Tree, axes: Any) -> Tree:
  """`tree` split as `specs` says, within a program; see `constrain`."""
  if (mesh := current()) is None or axes is None:
    return tree
  split = jax.lax.with_sharding_constraint
  return jax.tree.map(split, tree, specs(mesh, axes, tree))


def make(mesh: Mesh, axes: Any, fn: Callable, *args: Any) -> Any:
  """fn(*args), made in parts on the devices that keep them; see `specs`."""
  split = shardings(mesh, axes, jax.eval_shape(fn, *args))
  with jax.set_mesh(mesh):
    return jax.jit(fn, out_shardings=split)(*args)


def shapes(mesh: Mesh, axes: Any, fn: Callable, *args: Any) -> Any:
  """What `make` makes of the same arguments, as shapes: nothing is computed."""
  made = jax.eval_shape(fn, *args)
  return jax.tree.map(
    lambda x, split: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split),
    made,
    shardings(mesh, axes, made),
  )


def place(tree: Tree, shardings: Any) -> Tree:
  """`tree` on the devices; every leaf as its sharding says.

  All hosts must bring the same values. A JAX array that is there already is
  returned as it is: donating it takes it from whoever else holds it.
  """

  def one(leaf, sharding):
    if isinstance(leaf, jax.Array):
      if jax.process_count() == 1 or not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    leaf = np.array(leaf)  # A copy: CPU devices would share the caller's.
    return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

  return jax.tree.map(one, tree, shardings)


def rows(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch: axis 0 over all that "rows" are split over."""
  return NamedSharding(mesh, PartitionSpec(LAYOUT["rows"]))


def row_shards(mesh: Mesh) -> int:
  """In how many parts the rows of a batch are split."""
  return math.prod(mesh.shape[axis] for axis in LAYOUT["rows"])


def whole(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device holds a copy of."""
  return NamedSharding(mesh, PartitionSpec())


def row_hosts(mesh: Mesh) -> np.ndarray:
  """The host that looks after each part of the rows: it holds replica 0."""
  parts = rows(mesh).devices_indices_map((row_shards(mesh),))
  hosts = np.full(row_shards(mesh), -1)
  for device, (index,) in parts.items():
    part = index.start or 0
    if hosts[part] < 0:
      hosts[part] = device.process_index
  return hosts


def assemble(mesh: Mesh, tree: Tree) -> Tree:
  """The global batch whose rows are those of `tree`; undoes `local`.

  All hosts bring the whole batch, and each of their devices takes its rows. The
  leaves are copied.

  Raises ValueError when the rows do not divide the devices that share them.
  """
  split, parts = rows(mesh), row_shards(mesh)

  def one(leaf):
    leaf = np.array(leaf)  # A copy: CPU devices would share the caller's.
    if leaf.ndim == 0 or len(leaf) % parts:
      raise ValueError(
        f"{len(leaf) if leaf.ndim else 'no'} rows do not divide over the "
        f"{parts} parts of the mesh axes {', '.join(LAYOUT['rows'])}"
      )
    return jax.make_array_from_callback(leaf.shape, split, leaf.__getitem__)

  return jax.tree.map(one, tree)


def local(tree: Tree) -> Tree:
  """Global arrays as NumPy, whole, on every host.

  All hosts must call it alike: what lies split over them is gathered. The
  result owns its memory, so the device buffers may be donated afterwards.
  """

  def one(leaf):
    if isinstance(leaf, jax.Array) and not (
      leaf.is_fully_addressable or leaf.is_fully_replicated
    ):
      leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.array(leaf)

  return jax.tree.map(one, tree)


def replicate(mesh: Mesh, tree: Tree) -> Tree:
  """`tree` with a copy of every leaf on every device; see `place`."""
  return place(tree, jax.tree.map(lambda _: whole(mesh), tree))
