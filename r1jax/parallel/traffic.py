"""What it costs to bring weights from one mesh to another."""

import collections
import math
from typing import Any

import jax


def received(tree: Any, cast: Any, shardings: Any) -> int:
  """The bytes that a device gets from others, at most, for a tree to move.

  Args:
    tree: arrays, where they lie.
    cast: their shapes, and the dtypes in which they move.
    shardings: where they are to lie.
  """
  received = collections.Counter()

  def count(leaf, made, sharding):
    box = lambda index: [
      range(*part.indices(size)) for part, size in zip(index, leaf.shape)
    ]
    numbers = lambda spans: math.prod(map(len, spans))
    old = leaf.sharding.devices_indices_map(leaf.shape)
    for device, index in sharding.devices_indices_map(leaf.shape).items():
      new, has = box(index), box(old[device]) if device in old else None
      both = [
        range(max(a.start, b.start), min(a.stop, b.stop))
        for a, b in zip(new, has or [range(0)] * len(new))
      ]
      received[device] += made.dtype.itemsize * (numbers(new) - numbers(both))

  jax.tree.map(count, tree, cast, shardings)
  return max(received.values())
