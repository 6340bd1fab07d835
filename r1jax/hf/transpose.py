"""Fast copies between arrays with different memory orders."""

import numpy as np
from numpy.lib.stride_tricks import as_strided

TILE = (256, 512)  # Rows and columns of the source that are copied at once.
LINE = 64  # Size of a cache line, in bytes.


def copy(target: np.ndarray, source: np.ndarray) -> None:
  """Copies `source` to `target`, bit for bit; transposed copies are tiled.

  NumPy iterates in the order of the target. If the source is transposed, every
  element that it reads is in another cache line. If, in addition, the rows of
  the source are a power of 2 bytes apart, these lines map to few cache sets and
  are evicted before their other elements are read. Therefore each tile is first
  copied to a buffer whose rows are one cache line longer than a power of 2.

  Raises ValueError unless both have the same shape and dtype.
  """
  if target.shape != source.shape or target.dtype != source.dtype:
    raise ValueError(
      f"cannot copy {source.dtype}{list(source.shape)} to "
      f"{target.dtype}{list(target.shape)}"
    )
  # Copied as unsigned integers: NumPy is slower for dtypes such as bfloat16.
  bits = np.dtype(f"u{target.dtype.itemsize}")
  target, source = _merged(target.view(bits), source.view(bits))
  if target.ndim < 2 or _densest(target) == _densest(source):
    target[...] = source
    return
  # Last the densest dimension of the source, before it that of the target.
  order = (_densest(target), _densest(source))
  target = np.moveaxis(target, order, (-2, -1))
  source = np.moveaxis(source, order, (-2, -1))
  height, width = TILE
  buffer = np.empty((height, width + LINE // bits.itemsize), bits)
  for outer in np.ndindex(target.shape[:-2]):
    for i in range(0, target.shape[-2], height):
      for j in range(0, target.shape[-1], width):
        tile = (*outer, slice(i, i + height), slice(j, j + width))
        part = source[tile]
        staged = buffer[: part.shape[0], : part.shape[1]]
        staged[...] = part
        target[tile] = staged


def _densest(array: np.ndarray) -> int:
  """The dimension with the smallest stride."""
  return int(np.argmin(np.abs(array.strides)))


def _merged(one: np.ndarray, other: np.ndarray):
  """Views of both arrays with as many dimensions merged as possible.

  Two neighbouring dimensions can be merged if they are contiguous in both.
  """
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
