"""A checksum of an array that does not depend on where its parts are.

Checkpoint formats protect their own index, not the numbers in it: a flipped bit
on a disk is read as another number. So a checkpoint records a checksum of every
array, and a reader compares.

    checksum(x) = sum over i of mix(bits(x[i]) xor i * GOLDEN)  (mod 2^32)

for i the index of an element in row-major order. The sum makes it the same on
any mesh and any number of hosts, and lets the devices compute it. `mix` is one
to one, so every change of a single element shows; of other changes one in 2^32
does not.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

GOLDEN = 0x9E3779B1  # Odd, so that no two indices below 2^32 share a product.
CHUNK = 1 << 16  # Elements that NumPy mixes at once: they stay in the cache.


def checksums(leaves: Mapping[str, Any]) -> dict[str, int]:
  """The checksum of every array, NumPy's or JAX's.

  All hosts of a job must call it with the same arrays.
  """
  sums = {name: _checksum(leaf) for name, leaf in leaves.items()}
  return {name: int(value) for name, value in jax.device_get(sums).items()}


def _checksum(leaf: Any) -> Any:
  if isinstance(leaf, jax.Array) and not _is_near(leaf):
    return _on_devices(leaf)
  return _on_host(np.asarray(leaf))


def _is_near(leaf: jax.Array) -> bool:
  """Whether this host can read it as fast as the devices can."""
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
  """Unsigned integers of at most 32 bits; wider elements become two."""
  if array.dtype == bool:
    return array.astype(np.uint8)
  return array.view(np.dtype(f"uint{8 * min(array.dtype.itemsize, 4)}"))


def _mix(x: Any) -> Any:
  """A bijection of uint32 that spreads every bit (C. Wellons, lowbias32)."""
  u = np.uint32
  x = (x ^ (x >> u(16))) * u(0x7FEB352D)
  x = (x ^ (x >> u(15))) * u(0x846CA68B)
  return x ^ (x >> u(16))
