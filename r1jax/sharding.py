"""The mesh, and the two crossings between hosts and the devices they share.

Inside a jitted function an array is global: one program, partitioned by XLA.
Each host holds only its own rows of a batch, as NumPy. `assemble` and `local`
are the only places where one becomes the other.
"""

from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")

AXES = ("data",)  # Of every mesh. Rows of a batch are split over `data`.


def make_mesh(*, data: int = -1) -> Mesh:
  """A mesh over the first `data` devices of the job; -1 takes all of them.

  Raises ValueError when there are fewer devices, or when a job of several hosts
  would leave one of them without a device.
  """
  devices = jax.devices()
  count = len(devices) if data == -1 else data
  if not 0 < count <= len(devices):
    raise ValueError(
      f"mesh.data is {data}, but there are {len(devices)} devices; "
      "set it to -1 to use them all"
    )
  if count < len(devices) and jax.process_count() > 1:
    raise ValueError(
      f"mesh.data is {data}, but {jax.process_count()} hosts hold "
      f"{len(devices)} devices; a job of several hosts must use them all"
    )
  return jax.make_mesh(
    (count,), AXES, axis_types=(AxisType.Auto,), devices=devices[:count]
  )


def rows(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch: axis 0 over `data`, whole otherwise."""
  return NamedSharding(mesh, PartitionSpec("data"))


def whole(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device holds a copy of."""
  return NamedSharding(mesh, PartitionSpec())


def assemble(mesh: Mesh, tree: Tree) -> Tree:
  """The global batch whose rows of this host are `tree`.

  Every leaf has this host's rows on axis 0; all hosts bring equally many, and
  the global order is the order of the hosts. The leaves are copied.

  Raises ValueError when the rows do not divide the devices that share them.
  """
  shards = len(mesh.local_devices)

  def one(leaf):
    leaf = np.array(leaf)  # A copy: CPU devices would share the caller's.
    if leaf.ndim == 0 or len(leaf) % shards:
      raise ValueError(
        f"{len(leaf) if leaf.ndim else 'no'} rows do not divide over the "
        f"{shards} devices of this host's share of the mesh axis 'data'"
      )
    return jax.make_array_from_process_local_data(rows(mesh), leaf)

  return jax.tree.map(one, tree)


def local(tree: Tree) -> Tree:
  """This host's rows of global arrays, as NumPy: undoes `assemble`.

  An array that is whole everywhere (a scalar, a metric) comes back whole. The
  result owns its memory, so the device buffers may be donated afterwards.
  """

  def one(leaf):
    if not isinstance(leaf, jax.Array) or leaf.is_fully_replicated:
      return np.array(leaf)
    spec = PartitionSpec("data")
    mesh = leaf.sharding.mesh
    return np.array(
      multihost_utils.global_array_to_host_local_array(leaf, mesh, spec)
      if jax.process_count() > 1
      else leaf
    )

  return jax.tree.map(one, tree)


def replicate(mesh: Mesh, tree: Tree) -> Tree:
  """`tree` with a copy of every leaf on every device of the mesh.

  All hosts must bring the same values. A JAX array that is there already is
  returned as it is: donating it takes it from whoever else holds it.
  """
  sharding = whole(mesh)

  def one(leaf):
    if not isinstance(leaf, jax.Array):
      leaf = np.array(leaf)
    if jax.process_count() == 1:
      return jax.device_put(leaf, sharding)
    leaf = np.asarray(leaf)
    return jax.make_array_from_process_local_data(sharding, leaf, leaf.shape)

  return jax.tree.map(one, tree)
