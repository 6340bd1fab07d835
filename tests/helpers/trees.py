"""Comparison of trees of arrays."""

import jax
import numpy as np


def assert_same(one, other):
  """Asserts that two trees are equal bit for bit."""
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
