"""Our arrays, read from released tensors when and where they are sliced."""

import itertools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

from r1jax.hf import transpose
from r1jax.hf.layout import Box, Piece, boxed, sizes
from r1jax.hf.tensors import NamedTensors

JOB = 1 << 23  # Numbers that a thread reads at once.
THREADS = min(8, os.cpu_count() or 1)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class LazyArray:
  """One of our arrays: it has a shape and a dtype, and slices are NumPy's."""

  def __init__(
    self,
    tensors: NamedTensors,
    shape: tuple[int, ...],
    dtype: np.dtype,
    places: dict[tuple[int, ...], list[Piece]],
  ):
    """Reads nothing yet.

    Args:
      tensors: the checkpoint.
      shape: of the array.
      dtype: of the slices, whatever that of the tensors.
      places: the pieces of the array by layer and expert.
    """
    self.shape = shape
    self.dtype = dtype
    self._tensors = tensors
    self._places = places
    self._depth = len(next(iter(places), ()))

  def __getitem__(self, index) -> np.ndarray:
    """The part at `index`, made of integers and of slices without step."""
    index = index if isinstance(index, tuple) else (index,)
    kept = (slice(None) if isinstance(i, slice) else 0 for i in index)
    return self.read(boxed(index, self.shape))[(*kept, ...)]

  def read(
    self, box: Box, advance: Callable[[int], None] = lambda size: None
  ) -> np.ndarray:
    """What lies in `box`; `advance` is told of bytes that are in place."""
    target = np.empty(sizes(box), self.dtype)
    jobs = list(self._jobs(box, target))
    fill = lambda job: self._fill(*job)
    with ThreadPoolExecutor(THREADS) as pool:
      for size in (pool.map if len(jobs) > 1 else map)(fill, jobs):
        advance(size)
    return target

  def _jobs(
    self, box: Box, target: np.ndarray
  ) -> Iterator[tuple[Piece, Box, np.ndarray]]:
    """Pieces that lie in `box`, the part of each, and where it belongs."""
    leads, inner = box[: self._depth], box[self._depth :]
    starts = [span.start for span in leads]
    for lead in itertools.product(*(range(s.start, s.stop) for s in leads)):
      within = target[tuple(i - s for i, s in zip(lead, starts, strict=True))]
      for piece in self._places.get(lead, ()):
        common = _common(piece.box, inner)
        if common is not None:
          for part in _split(common, piece.axes[0][0]):
            place = within[_shifted(part, inner)]
            yield piece, _shifted(part, piece.box), place

  def _fill(self, piece: Piece, part: Box, target: np.ndarray) -> int:
    """Reads a part of a piece to its place; the number of bytes."""
    source = arranged(self._tensors[piece.tensor].read, piece, part)
    transpose.copy(target, cast(source, self.dtype))
    return target.nbytes


def arranged(
  read: Callable[[Box], np.ndarray], piece: Piece, part: Box
) -> np.ndarray:
  """A part of a piece, with our axes, as a view of what is read of its tensor.

  The tensor is cut along the first of our axes that each of its dimensions
  holds; the other axes are cut in the view.
  """
  own, cuts, split, inner = sizes(piece.box), [], [], []
  for group, offset in zip(piece.axes, (0, piece.columns.start)):
    first, *others = group
    step = math.prod(own[axis] for axis in others)
    span = part[first]
    cuts.append(slice(offset + span.start * step, offset + span.stop * step))
    split += [span.stop - span.start, *(own[axis] for axis in others)]
    inner += [slice(None), *(part[axis] for axis in others)]
  order = np.argsort(list(itertools.chain(*piece.axes)))
  return read(tuple(cuts)).reshape(split)[tuple(inner)].transpose(order)


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """`array` in `dtype`, rounded to the nearest; itself where it has it."""
  if array.dtype == BFLOAT16 and dtype == np.float32:
    wide = array.view(np.uint16).astype(np.uint32)  # Much the fastest way.
    return np.left_shift(wide, 16, out=wide).view(np.float32)
  return array.astype(dtype, copy=False)


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


def _split(box: Box, axis: int) -> Iterator[Box]:
  """Boxes of about JOB numbers each, cut along `axis`."""
  span = box[axis]
  per_step = math.prod(sizes(box)) // (span.stop - span.start)
  step = max(1, JOB // per_step)
  for start in range(span.start, span.stop, step):
    part = slice(start, min(start + step, span.stop))
    yield (*box[:axis], part, *box[axis + 1 :])
