"""Checksums of arrays that do not depend on how the arrays are sharded.

Checkpoint formats protect their index but not the array data: a flipped bit on
a disk would be read as a different number. A checkpoint therefore records a
checksum of every array, which is verified on reading.

    checksum(x) = sum over i of mix(bits(x[i]) xor i * GOLDEN)  (mod 2^32)

where i is the row-major index of an element. Because it is a sum, it is the
same on any mesh and number of hosts, and the devices can compute it. `mix` is a
bijection, so every change of a single element is detected; any other change is
missed with probability 2^-32.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.runtime import distributed

GOLDEN = 0x9E3779B1  # Odd, so that no two indices below 2^32 share a product.
CHUNK = 1 << 16  # Elements that NumPy mixes at once, to stay in the CPU cache.


def checksums(leaves: Mapping[str, Any]) -> dict[str, int]:
  """The checksum of every array (NumPy or JAX), by name.

  All hosts of a job must call it with the same arrays.
  """
  sums = jax.device_get({name: _sum(leaf) for name, leaf in leaves.items()})
  shared = [name for name, leaf in leaves.items() if _is_shared(leaf)]
  if shared:
    local = np.array([sums[name] for name in shared], np.uint32)
    added = distributed.all_gather(local).sum(axis=0, dtype=np.uint32)
    sums |= zip(shared, added, strict=True)
  return {name: int(value) for name, value in sums.items()}


def _sum(leaf: Any) -> Any:
  """The sum over an array; over this host's parts of it if it is shared."""
  if not isinstance(leaf, jax.Array):
    return _sum_part(np.asarray(leaf), np.shape(leaf))
  if not _is_on_cpu(leaf):
    return _on_devices(leaf)
  # XLA for CPUs would store the mixed bits of all elements at once.
  parts = {str(shard.index): shard for shard in leaf.addressable_shards}
  if _is_shared(leaf):  # Each part is added by the host of its first copy.
    parts = {at: x for at, x in parts.items() if x.replica_id == 0}
  sums = [
    _sum_part(np.asarray(shard.data), leaf.shape, shard.index)
    for shard in parts.values()
  ]
  return np.sum(sums, dtype=np.uint32)


def _is_on_cpu(leaf: jax.Array) -> bool:
  return {device.platform for device in leaf.sharding.device_set} == {"cpu"}


def _is_shared(leaf: Any) -> bool:
  """Whether the CPUs of several hosts hold different parts of an array."""
  return (
    isinstance(leaf, jax.Array)
    and _is_on_cpu(leaf)
    and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
  )


def _sum_part(
  part: np.ndarray, shape: Sequence[int], place: Sequence[slice] = ()
) -> np.uint32:
  """The sum over a part of an array.

  Args:
    part: of the array.
    shape: of the array.
    place: of the part in the array; () if the part is the whole array.
  """
  part = np.ascontiguousarray(np.atleast_1d(part))
  bits = _bits(part)
  words = bits.shape[-1] // part.shape[-1]  # Of an element: 2 if it is wide.
  shape = [*(shape or (1,))]
  first = [span.start or 0 for span in place] or [0] * part.ndim
  shape[-1], first[-1] = words * shape[-1], words * first[-1]
  # The index in the array of the first word of each row of the part.
  starts = np.uint64(first[-1])
  for axis, size in enumerate(bits.shape[:-1]):
    along = np.arange(first[axis], first[axis] + size, dtype=np.uint64)
    starts = np.add.outer(starts, along * math.prod(shape[axis + 1 :]))
  rows, starts = bits.reshape(-1, bits.shape[-1]), np.reshape(starts, (-1, 1))
  columns = np.arange(rows.shape[1], dtype=np.uint64)
  total, some = np.uint32(0), max(1, CHUNK // len(columns))
  for row in range(0, len(rows), some):
    index = (starts[row : row + some] + columns) * np.uint64(GOLDEN)
    chunk = rows[row : row + some].astype(np.uint32)
    mixed = _mix(chunk ^ index.astype(np.uint32))
    total = np.add(total, mixed.sum(dtype=np.uint32), dtype=np.uint32)
  return total


@jax.jit
def _on_devices(array: jax.Array) -> jax.Array:
  array = jax.device_put(array, jax.memory.Space.Device)
  bits = _bits(jnp.atleast_1d(array)).astype(jnp.uint32)
  index, stride = jnp.uint32(0), 1
  for axis in reversed(range(bits.ndim)):
    along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    index = index + along * jnp.uint32(stride % 2**32)
    stride *= bits.shape[axis]
  return jnp.sum(_mix(bits ^ index * jnp.uint32(GOLDEN)), dtype=jnp.uint32)


def _bits(array: Any) -> Any:
  """The bits as unsigned integers of at most 32 bits; wider ones become two."""
  if array.dtype == bool:
    return array.astype(np.uint8)
  return array.view(np.dtype(f"uint{8 * min(array.dtype.itemsize, 4)}"))


def _mix(x: Any) -> Any:
  """A bijection of uint32 with good avalanche (C. Wellons, lowbias32)."""
  u = np.uint32
  x = (x ^ (x >> u(16))) * u(0x7FEB352D)
  x = (x ^ (x >> u(15))) * u(0x846CA68B)
  return x ^ (x >> u(16))
