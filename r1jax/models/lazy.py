"""Our arrays, read from released tensors when and where they are sliced."""

import itertools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

from r1jax.models import transpose
from r1jax.models.layout import Box, Piece, sizes
from r1jax.models.shards import Reader

Index = tuple[int | slice, ...]
JOB = 1 << 23  # Numbers that a thread reads at once.
THREADS = min(8, os.cpu_count() or 1)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Lazy:
  """One of our arrays: it has a shape and a dtype, and slices are NumPy's."""

  def __init__(
    self,
    reader: Reader,
    shape: tuple[int, ...],
    dtype: np.dtype,
    places: dict[tuple[int, ...], list[Piece]],
  ):
    """Reads nothing yet.

    Args:
      reader: where the tensors are.
      shape: of the array.
      dtype: of the slices, whatever that of the tensors.
      places: its pieces by layer and expert.
    """
    self.shape = shape
    self.dtype = dtype
    self._reader = reader
    self._places = places
    self._depth = len(next(iter(places), ()))

  def __getitem__(self, index: Index) -> np.ndarray:
    """A slice, of whole numbers and of slices of step 1."""
    return self.read(index)

  def read(
    self, index: Index = (), advance: Callable[[int], None] = lambda size: None
  ) -> np.ndarray:
    """The slice at `index`; `advance` is told of bytes that are in place."""
    box = boxed(index, self.shape)
    target = np.empty(sizes(box), self.dtype)
    jobs = list(self._jobs(box, target))
    fill = lambda job: self._fill(*job)
    with ThreadPoolExecutor(THREADS) as pool:
      for size in (pool.map if len(jobs) > 1 else map)(fill, jobs):
        advance(size)
    kept = (slice(None) if isinstance(i, slice) else 0 for i in index)
    return target[(*kept, ...)]

  def _jobs(
    self, box: Box, target: np.ndarray
  ) -> Iterator[tuple[Piece, Box, np.ndarray]]:
    """What lies in `box`: pieces, the part of each, and where it belongs."""
    leads, inner = box[: self._depth], box[self._depth :]
    starts = [span.start for span in leads]
    for lead in itertools.product(*(range(s.start, s.stop) for s in leads)):
      within = target[tuple(i - s for i, s in zip(lead, starts, strict=True))]
      for piece in self._places.get(lead, ()):
        common = _common(piece.box, inner)
        if common is not None:
          for part in _split(common, piece.inputs):
            yield piece, part, within[_shifted(part, inner)]

  def _fill(self, piece: Piece, part: Box, target: np.ndarray) -> int:
    """Reads a part of a piece to its place; the number of bytes."""
    place = _shifted(part, piece.box)
    if len(piece.shape) == 1:
      source = self._reader.view(piece.tensor).reshape(piece.sizes)[place]
      transpose.copy(target, cast(source, self.dtype))
    else:
      rows, columns = _ranges(piece, place)
      source = self._reader.rows(piece.tensor, rows, columns)
      transpose.copy(target, cast(_arranged(source, piece, place), self.dtype))
      self._reader.release(piece.tensor, rows)
    return target.nbytes


def _ranges(piece: Piece, place: Box) -> tuple[slice, slice]:
  """Rows and columns of a released matrix that hold a place in its box.

  They are cut at the first of the dimensions of ours that each of them holds.
  """
  if piece.inputs == 0:  # The embedding is [V, D] on both sides.
    return place[0], place[1]
  ins, outs = piece.sizes[: piece.inputs], piece.sizes[piece.inputs :]
  rows = _scaled(place[piece.inputs], math.prod(outs[1:]))
  offset = piece.columns.start or 0
  return rows, _scaled(place[0], math.prod(ins[1:]), offset)


def _arranged(source: np.ndarray, piece: Piece, place: Box) -> np.ndarray:
  """What `_ranges` cut out of a matrix, as a view with our dimensions."""
  if piece.inputs == 0:
    return source
  cut = piece.inputs
  ins, outs = piece.sizes[:cut], piece.sizes[cut:]
  (columns, *inner), (rows, *inmost) = place[:cut], place[cut:]
  source = source.reshape(
    rows.stop - rows.start, *outs[1:], columns.stop - columns.start, *ins[1:]
  )
  source = source[(slice(None), *inmost, slice(None), *inner)]
  order = [*range(len(outs), source.ndim), *range(len(outs))]
  return source.transpose(order)


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """`array` in `dtype`, rounded to the nearest; itself where it has it."""
  if array.dtype == BFLOAT16 and dtype == np.float32:
    wide = array.view(np.uint16).astype(np.uint32)  # Much the fastest way.
    return np.left_shift(wide, 16, out=wide).view(np.float32)
  return array.astype(dtype, copy=False)


def boxed(index: Index, shape: tuple[int, ...]) -> Box:
  """`index` as one slice per dimension, each from a start to a stop."""
  box = []
  for axis, n in enumerate(shape):
    at = index[axis] if axis < len(index) else slice(None)
    span = range(n)[at if isinstance(at, slice) else slice(at, at + 1)]
    if span.step != 1:
      raise ValueError(f"{at} has a step; only whole slices can be read")
    box.append(slice(span.start, max(span.start, span.stop)))
  return tuple(box)


def _common(one: Box, other: Box) -> Box | None:
  """What lies in both boxes, or None."""
  common = tuple(
    slice(max(a.start, b.start), min(a.stop, b.stop))
    for a, b in zip(one, other, strict=True)
  )
  return common if min(sizes(common)) > 0 else None


def _shifted(part: Box, whole: Box) -> Box:
  """`part` as counted from where `whole` begins."""
  return tuple(
    slice(a.start - b.start, a.stop - b.start)
    for a, b in zip(part, whole, strict=True)
  )


def _scaled(span: slice, size: int, offset: int = 0) -> slice:
  """The rows of a matrix that `span` is, where each of it takes `size`."""
  return slice(offset + span.start * size, offset + span.stop * size)


def _split(box: Box, axis: int) -> Iterator[Box]:
  """Boxes of about JOB numbers each, cut along `axis`."""
  span = box[axis]
  per_step = math.prod(sizes(box)) // (span.stop - span.start)
  step = max(1, JOB // per_step)
  for start in range(span.start, span.stop, step):
    part = slice(start, min(start + step, span.stop))
    yield (*box[:axis], part, *box[axis + 1 :])
