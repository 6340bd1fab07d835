"""Device meshes: their axes, and the table from logical axes to mesh axes.

Modules name the dimensions of their arrays with logical axes ("rows", "heads").
`AXIS_RULES` alone maps them to axes of the mesh. See `sharding` for what is
computed from it.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

# The axes of every mesh, ordered from least to most communication.
AXES = ("data", "fsdp", "expert", "context", "tensor")

# Mesh axes over which each logical axis is split. A mesh axis splits an array
# at most once: logical axes that come first in this table choose first. A mesh
# axis is skipped where its size does not divide what the axes before it left of
# the dimension.
AXIS_RULES = {
  "layers": (),
  "rows": ("data", "fsdp", "expert"),  # Rows of a batch or of a cache.
  "tokens": ("context",),  # Tokens of a row.
  "expert": ("expert",),
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "hidden": ("tensor",),
  "vocab": ("tensor",),
  # The width of weights is split over the mesh axes that the names above left
  # unused; weights are gathered where they are used (ZeRO-3, arXiv:1910.02054).
  "width": ("fsdp", "expert", "context", "tensor"),
}


def make_mesh(
  *,
  data: int = -1,
  fsdp: int = 1,
  expert: int = 1,
  context: int = 1,
  tensor: int = 1,
  num_slices: int | None = None,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """A mesh over the first devices of the job, as many as the axes need.

  Args:
    data: parts into which the rows of a batch are split; every part has a copy
      of the weights. -1 uses all remaining devices.
    fsdp: parts into which rows and weights are split; the weights are gathered
      for each layer.
    expert: parts into which rows and the experts of a layer are split.
    context: parts into which the tokens of each row are split.
    tensor: parts into which heads, hidden units and vocabulary are split.
    num_slices: TPU slices of the job that a slower network (DCN) connects. Only
      the `data` axis extends over several slices. For other devices, a slice is
      as many consecutive hosts as there are for each. None means all slices of
      TPUs, and 1 for other devices: any axis may extend over hosts of GPUs.
    devices: the available devices; None means those of the job.

  Raises ValueError if the sizes do not fit the devices, or if a host of a
  multi-host job would have no device in the mesh.
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
  shown = ", ".join(f"{k} {v}" for k, v in sizes.items() if v > 1) or "1"
  if data == -1 and count != len(devices):
    raise ValueError(
      f"mesh.fsdp {fsdp} x expert {expert} x context {context} x "
      f"tensor {tensor} does not divide the {len(devices)} devices; choose "
      "other sizes"
    )
  if count > len(devices):
    raise ValueError(
      f"mesh.data is {data}: a mesh of {shown} takes {count} devices, but "
      f"there are {len(devices)}; set mesh.data to -1 to use them all"
    )
  if count < len(devices) and len({d.process_index for d in devices}) > 1:
    raise ValueError(
      f"mesh.data is {data}: a mesh of {shown} takes {count} devices, but the "
      f"hosts have {len(devices)}; a job of several hosts must use all of them"
    )
  slices = _slices(devices[:count], num_slices)
  if sizes["data"] % len(slices):
    raise ValueError(
      f"mesh.num_slices {len(slices)} does not divide mesh.data "
      f"{sizes['data']}, the only axis between slices"
    )
  shape = (sizes["data"] // len(slices), fsdp, expert, context, tensor)
  grids = [  # In an order that suits the network of a slice.
    mesh_utils.create_device_mesh(shape, each, allow_split_physical_axes=True)
    for each in slices
  ]
  return Mesh(np.concatenate(grids), AXES, axis_types=(AxisType.Auto,) * 5)


def _slices(devices: Sequence[Any], count: int | None) -> list[list[Any]]:
  """The devices of each of `count` slices; see `make_mesh`."""
  # For other devices than TPUs, `slice_index` is the machine, if it exists.
  tpus = devices[0].platform == "tpu"
  parts: dict[int, list[Any]] = {}
  for device in devices:
    part = getattr(device, "slice_index", 0) if tpus else device.process_index
    parts.setdefault(part, []).append(device)
  if count is None:
    count = len(parts) if tpus else 1
  if count < 1 or len(parts) % count or (tpus and count != len(parts)):
    raise ValueError(
      f"mesh.num_slices is {count}, but the devices of the mesh belong to "
      f"{len(parts)} {'slices' if tpus else 'hosts'}"
    )
  ordered, size = [parts[part] for part in sorted(parts)], len(parts) // count
  return [
    [*itertools.chain(*ordered[first : first + size])]
    for first in range(0, len(parts), size)
  ]


def reshape_mesh(
  mesh: Mesh,
  *,
  data: int = -1,
  fsdp: int = 1,
  expert: int = 1,
  context: int = 1,
  tensor: int = 1,
) -> Mesh:
  """A mesh of other axis sizes over the same devices in the same order.

  One program can read arrays on either mesh and write to the other. The sizes
  are those of `make_mesh`. Raises ValueError if they do not use every device.
  """
  sizes = dict(zip(AXES, (data, fsdp, expert, context, tensor), strict=True))
  devices = [*mesh.devices.flat]
  new = make_mesh(devices=devices, **sizes)
  if new.size != mesh.size:
    raise ValueError(
      f"the new mesh has {new.size} devices, but the mesh it reshapes has "
      f"{mesh.size}; the sizes must use every device"
    )
  grid = mesh.devices.reshape(new.devices.shape)
  return Mesh(grid, AXES, axis_types=new.axis_types)


def current_mesh() -> AbstractMesh | None:
  """The mesh of the context (`jax.set_mesh`) if it splits anything, else None.

  None also within `jax.shard_map`, where no axis is left to XLA.
  """
  mesh = jax.sharding.get_abstract_mesh()
  automatic = mesh.axis_types and AxisType.Auto in mesh.axis_types
  return mesh if automatic and mesh.size > 1 else None


def row_shards(mesh: Mesh) -> int:
  """The number of parts into which the rows of a batch are split."""
  return math.prod(mesh.shape[axis] for axis in AXIS_RULES["rows"])
