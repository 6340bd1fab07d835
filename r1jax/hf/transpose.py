"""Copies between arrays whose dimensions lie in memory in different orders."""

import numpy as np
from numpy.lib.stride_tricks import as_strided

TILE = (256, 512)  # Rows and columns of the source that are moved at once.
LINE = 64  # Bytes of a line of the cache.


def copy(target: np.ndarray, source: np.ndarray) -> None:
  """Makes `target` equal to `source`, bit for bit; the faster if transposed.

  NumPy walks in the order of the target, and each number that it reads lies in
  another line of the cache. Where the rows of the source are a round number of
  bytes long, these lines compete for a few places in it, and are gone before
  their neighbours are wanted. So a tile at a time goes through a buffer whose
  rows are a line longer than a round number.

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
  high, wide = TILE
  buffer = np.empty((high, wide + LINE // bits.itemsize), bits)
  for outer in np.ndindex(target.shape[:-2]):
    for i in range(0, target.shape[-2], high):
      for j in range(0, target.shape[-1], wide):
        tile = (*outer, slice(i, i + high), slice(j, j + wide))
        part = source[tile]
        staged = buffer[: part.shape[0], : part.shape[1]]
        staged[...] = part
        target[tile] = staged


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
