"""The leaves of a tree by dotted name, as a checkpoint keeps them."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def name(path) -> str:
  """The dotted name of a path of keys."""
  return jax.tree_util.keystr(path, simple=True, separator=".")


def named(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by dotted path.

  None and empty states vanish; so do arrays of no elements, which Orbax
  refuses. The tree that they are restored into brings them back.
  """
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {name(path): leaf for path, leaf in leaves if np.size(leaf)}


def size(tree: Any) -> int:
  """Bytes of all leaves, on all hosts."""
  return sum(
    int(np.size(leaf)) * np.dtype(leaf.dtype).itemsize
    for leaf in named(tree).values()
  )


def abstract(leaf):
  """What a reader must know of a leaf: shape, dtype, and sharding if any."""
  if isinstance(leaf, jax.Array):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return leaf
  return np.asarray(leaf)


def place(value, leaf):
  """A restored value as `leaf` is: on its devices, or as NumPy."""
  on_device = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
  if value is None:
    value = np.zeros(leaf.shape, leaf.dtype)
    return jax.device_put(value, leaf.sharding) if on_device else value
  return value if on_device else np.asarray(value)


def difference(
  found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> str | None:
  """The first difference in words, or None."""
  for leaf in sorted(found.keys() | wanted.keys()):
    was = _describe(found[leaf]) if leaf in found else "nothing"
    now = _describe(wanted[leaf]) if leaf in wanted else "nothing"
    if was != now:
      return (
        f"{leaf}: checkpoint has {was}, this config wants {now}; use another "
        "--workdir"
      )
  return None


def _describe(leaf) -> str:
  if not hasattr(leaf, "dtype"):
    leaf = np.asarray(leaf)
  return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Leaves by dotted name as nested dicts."""
  tree: dict = {}
  for name, leaf in leaves.items():
    *parents, last = name.split(".")
    functools.reduce(lambda d, k: d.setdefault(k, {}), parents, tree)[last] = (
      leaf
    )
  return tree
