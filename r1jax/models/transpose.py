"""Copies between arrays whose dimensions lie in memory in different orders."""

import numpy as np
from numpy.lib.stride_tricks import as_strided

TILE = (4096, 512)  # Of the rows of the source and of the target.
WORD = np.dtype(np.uint64)
PADDING = 8  # Words between rows: else they compete for few lines of the cache.


def copy(target: np.ndarray, source: np.ndarray) -> None:
  """Makes `target` equal to `source`, bit for bit; the faster if transposed.

  NumPy walks in the order of the target, one number at a time, and with large
  strides each number that it reads costs a line of the cache. Here it walks
  tile by tile, and moves as many neighbours at once as there are in 8 bytes.

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
  order = (_densest(source), _densest(target))
  target = np.moveaxis(target, order, (-2, -1))
  source = np.moveaxis(source, order, (-2, -1))
  for outer in np.ndindex(target.shape[:-2]):
    _transpose(target[outer], source[outer])


def _transpose(target: np.ndarray, source: np.ndarray) -> None:
  """Copies a matrix whose columns are dense to one whose rows are."""
  rows, columns = target.shape
  many = WORD.itemsize // target.itemsize  # Neighbours that make a word.
  even = columns // many * many
  if target.strides[1] != target.itemsize or many == 1:
    even = 0
  words = target[:, :even].view(WORD)
  high, wide = min(TILE[0], rows), min(TILE[1], even) // many
  buffer = np.empty((wide, high + PADDING, many), target.dtype)
  for j in range(0, even // many, wide or 1):
    for i in range(0, rows, high):
      part = source[i : i + high, j * many : min((j + wide) * many, even)]
      packed = buffer[: part.shape[1] // many, : len(part)]
      for k in range(many):
        packed[:, :, k] = part[:, k::many].T
      words[i : i + high, j : j + wide] = packed.view(WORD)[:, :, 0].T
  target[:, even:] = source[:, even:]


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
