"""A checksum sees every change, and not how an array is laid out."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from r1jax.runtime.checksums import GOLDEN, checksums

DTYPES = (np.float32, ml_dtypes.bfloat16, np.int32, np.uint8, bool, np.float64)


def example(dtype, shape=(6, 4, 8)):
  values = np.random.default_rng(0).integers(-99, 99, shape)
  return (values > 0) if dtype is bool else values.astype(dtype)


def of(x):
  return checksums({"x": x})["x"]


def test_it_is_the_sum_of_its_equation():
  """The docstring's, one element after the other, in Python's integers."""

  def mix(x):
    x = ((x ^ x >> 16) * 0x7FEB352D) % 2**32
    x = ((x ^ x >> 15) * 0x846CA68B) % 2**32
    return x ^ x >> 16

  for x in (np.arange(70_000, dtype=np.float32), np.float32(3.5)):
    bits = np.atleast_1d(x).view(np.uint32).tolist()
    terms = (mix(b ^ i * GOLDEN % 2**32) for i, b in enumerate(bits))
    assert of(x) == sum(terms) % 2**32


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flipped_bit_shows(dtype):
  x = example(dtype, (3, 5))
  good = of(x)
  for position in range(x.nbytes):
    for bit in range(8 if dtype is not bool else 1):
      data = bytearray(x.tobytes())
      data[position] ^= 1 << bit
      assert of(np.frombuffer(data, dtype).reshape(x.shape)) != good


def test_moved_and_zeroed_parts_show():
  x = np.random.default_rng(0).normal(size=(256, 64)).astype(np.float32)
  zeroed, swapped, negated = x.copy(), x.copy(), x.copy()
  zeroed[16:32] = 0
  swapped[[3, 200]] = x[[200, 3]]
  negated[5:7] *= -1
  assert len({*map(of, (x, zeroed, swapped, negated, x.T.copy()))}) == 5


@pytest.mark.parametrize("dtype", DTYPES[:-1])
def test_devices_and_hosts_agree_on_any_mesh(dtype):
  x = example(dtype)
  devices = np.array(jax.devices()[:4])
  from r1jax.runtime.checksums import _on_devices

  for shape, axes in (
    ((4, 1), ("a",)),
    ((2, 2), ("a", None, "b")),
    ((2, 2), (None, ("b", "a"))),
    ((2, 2), ()),
  ):
    mesh = jax.sharding.Mesh(devices.reshape(shape), ("a", "b"))
    if x.shape[0] % shape[0]:
      axes = (None, "a")
    spec = jax.sharding.PartitionSpec(*axes)
    laid = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
    assert int(_on_devices(laid)) == of(x) == of(laid)
  assert int(_on_devices(jnp.asarray(x.reshape(-1)[5]))) == of(x.reshape(-1)[5])
