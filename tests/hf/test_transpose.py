"""Tiled copies, against NumPy."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.hf import transpose


@settings(deadline=None)
@given(
  st.permutations(range(4)),
  st.permutations(range(4)),
  st.tuples(*[st.sampled_from([1, 2, 3, 65, 130])] * 4).filter(
    lambda shape: np.prod(shape) < 100_000
  ),
)
def test_every_order_is_copied_to_every_order(one, other, shape):
  rng = np.random.default_rng(0)
  wide = [n + 1 for n in shape]  # So that neither of them is contiguous.
  part = tuple(slice(n) for n in shape)
  place = lambda order: np.argsort(order)
  source = rng.normal(size=[wide[i] for i in one]).transpose(place(one))[part]
  target = np.zeros([wide[i] for i in other]).transpose(place(other))
  transpose.copy(target[part], source)
  np.testing.assert_array_equal(target[part], source)
  assert np.count_nonzero(target) == source.size  # And nothing beside it.


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_bits_are_copied_as_they_are(dtype):
  kind = f"u{np.dtype(dtype).itemsize}"
  bits = np.resize(np.arange(1 << 16, dtype=kind), (600, 1100))  # Also NaNs.
  target = np.empty((1100, 600), dtype)
  transpose.copy(target, bits.view(dtype).T)
  np.testing.assert_array_equal(target.view(kind), bits.T)


def test_nothing_is_copied_to_nothing():
  transpose.copy(np.zeros((3, 0, 2)), np.zeros((2, 0, 3)).T)
  transpose.copy(one := np.zeros(()), np.ones(()))
  assert one == 1


def test_shapes_and_dtypes_must_agree():
  with pytest.raises(ValueError, match="cannot copy"):
    transpose.copy(np.zeros((2, 3)), np.zeros((3, 2)))
  with pytest.raises(ValueError, match="float32"):
    transpose.copy(np.zeros(3), np.zeros(3, np.float32))
