"""The leaves of a tree by dotted name, as checkpoints store them."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def name(path) -> str:
  """The dotted name of a key path."""
  return jax.tree_util.keystr(path, simple=True, separator=".")


def named(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by dotted name.

  None, empty states and arrays without elements (which Orbax rejects) are left
  out. Restoring takes them from the tree that is restored into.
  """
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {name(path): leaf for path, leaf in leaves if np.size(leaf)}


def size(tree: Any) -> int:
  """The number of bytes of all leaves, over all hosts."""
  return sum(
    int(np.size(leaf)) * _dtype(leaf).itemsize for leaf in named(tree).values()
  )


def abstract(leaf):
  """A leaf as Orbax's restore needs it: shape, dtype, and sharding if any."""
  if isinstance(leaf, jax.Array):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return leaf
  return np.asarray(leaf)


def restore_like(value, leaf):
  """A restored value in the form of `leaf`: on its devices, or as NumPy.

  `value` is None for arrays without elements, which are not saved.
  """
  on_device = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
  if value is None:
    value = np.zeros(leaf.shape, leaf.dtype)
    return jax.device_put(value, leaf.sharding) if on_device else value
  return value if on_device else np.asarray(value)


def difference(
  actual: Mapping[str, Any], expected: Mapping[str, Any]
) -> str | None:
  """A description of the first leaf that differs, or None if none does."""
  for leaf in sorted(actual.keys() | expected.keys()):
    was = _describe(actual[leaf]) if leaf in actual else "nothing"
    now = _describe(expected[leaf]) if leaf in expected else "nothing"
    if was != now:
      return (
        f"{leaf}: checkpoint has {was}, this config needs {now}; use another "
        "--workdir"
      )
  return None


def _describe(leaf) -> str:
  return f"{_dtype(leaf).name}{list(np.shape(leaf))}"


def _dtype(leaf) -> np.dtype:
  if hasattr(leaf, "dtype"):
    return np.dtype(leaf.dtype)
  return np.asarray(leaf).dtype  # A Python number.


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts of leaves that are given by dotted name."""
  tree: dict = {}
  for name, leaf in leaves.items():
    *parents, last = name.split(".")
    functools.reduce(lambda d, k: d.setdefault(k, {}), parents, tree)[last] = (
      leaf
    )
  return tree
