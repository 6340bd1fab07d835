"""Copies between arrays whose dimensions lie in memory in different orders."""

import itertools

import numpy as np
from numpy.lib.stride_tricks import as_strided

TILE = 64  # Both sides of it stay in the first cache, whatever the strides.


def copy(target: np.ndarray, source: np.ndarray) -> None:
  """Makes `target` equal to `source`, bit for bit, a tile at a time.

  NumPy by itself walks in the order of the target, and with large strides each
  number it reads from a transposed source costs a line of the cache.

  Raises ValueError unless both have the same shape and dtype.
  """
  if target.shape != source.shape or target.dtype != source.dtype:
    raise ValueError(
      f"cannot copy {source.dtype}{list(source.shape)} to "
      f"{target.dtype}{list(target.shape)}"
    )
  bits = np.dtype(f"u{target.dtype.itemsize}")  # NumPy's own are the fastest.
  target, source = _merged(target.view(bits), source.view(bits))
  if target.ndim < 2 or _densest(target) == _densest(source):
    target[...] = source
    return
  order = (_densest(target), _densest(source))
  target = np.moveaxis(target, order, (-2, -1))
  source = np.moveaxis(source, order, (-2, -1))
  rows, columns = target.shape[-2:]
  for outer in np.ndindex(target.shape[:-2]):
    to, of = target[outer], source[outer]
    tiles = itertools.product(range(0, rows, TILE), range(0, columns, TILE))
    for i, j in tiles:
      tile = slice(i, i + TILE), slice(j, j + TILE)
      to[tile] = of[tile]


def _densest(array: np.ndarray) -> int:
  """The dimension whose neighbours lie closest."""
  return int(np.argmin(np.abs(array.strides)))


def _merged(one: np.ndarray, other: np.ndarray):
  """Views of both with the fewest dimensions that describe them."""
  merged: list[tuple[int, int, int]] = []
  for n, *steps in zip(one.shape, one.strides, other.strides, strict=True):
    if n == 1:
      continue
    if merged and merged[-1][1:] == (n * steps[0], n * steps[1]):
      n *= merged.pop()[0]
    merged.append((n, *steps))
  shape = [n for n, _, _ in merged]
  return (
    as_strided(one, shape, [step for _, step, _ in merged]),
    as_strided(other, shape, [step for _, _, step in merged], writeable=False),
  )
