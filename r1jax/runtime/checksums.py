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

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

GOLDEN = 0x9E3779B1  # Odd, so that no two indices below 2^32 share a product.
CHUNK = 1 << 16  # Elements that NumPy mixes at once, to stay in the CPU cache.


def checksums(leaves: Mapping[str, Any]) -> dict[str, int]:
  """The checksum of every array (NumPy or JAX), by name.

  All hosts of a job must call it with the same arrays.
  """
  sums = {name: _checksum(leaf) for name, leaf in leaves.items()}
  return {name: int(value) for name, value in jax.device_get(sums).items()}


def _checksum(leaf: Any) -> Any:
  if isinstance(leaf, jax.Array) and not _is_on_this_cpu(leaf):
    return _on_devices(leaf)
  return _on_host(np.asarray(leaf))


def _is_on_this_cpu(leaf: jax.Array) -> bool:
  """Whether all of the array lies in the memory of this host's CPU devices."""
  platforms = {device.platform for device in leaf.sharding.device_set}
  return leaf.is_fully_addressable and platforms == {"cpu"}


def _on_host(array: np.ndarray) -> np.uint32:
  bits = _bits(np.ascontiguousarray(array).reshape(-1))
  total = np.uint32(0)
  for first in range(0, bits.size, CHUNK):
    chunk = bits[first : first + CHUNK].astype(np.uint32)
    index = np.arange(first, first + chunk.size, dtype=np.uint64)
    mixed = _mix(chunk ^ (index * GOLDEN).astype(np.uint32))
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
