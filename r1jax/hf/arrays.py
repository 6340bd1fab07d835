"""Arrays of our parameters that read released tensors when they are sliced."""

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

JOB = 1 << 21  # Elements that a thread reads at once.
MOST_THREADS = 8
THREADS = min(MOST_THREADS, os.cpu_count() or 1)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class LazyArray:
  """An array of our parameters that is read when it is sliced.

  Slices are NumPy arrays.
  """

  def __init__(
    self,
    tensors: NamedTensors,
    shape: tuple[int, ...],
    dtype: np.dtype,
    places: dict[tuple[int, ...], list[Piece]],
  ):
    """Describes the array; nothing is read yet.

    Args:
      tensors: the tensors of the checkpoint.
      shape: of the array.
      dtype: of the slices; tensors of another dtype are cast.
      places: the pieces of the array, by their layer and expert.
    """
    self.shape = shape
    self.dtype = dtype
    self._tensors = tensors
    self._places = places
    self._depth = len(next(iter(places), ()))

  def __getitem__(self, index) -> np.ndarray:
    """The part at `index`: integers, and slices without a step."""
    index = index if isinstance(index, tuple) else (index,)
    # `read` keeps all dimensions; those indexed by an integer have size 1.
    kept = (slice(None) if isinstance(i, slice) else 0 for i in index)
    return self.read(boxed(index, self.shape))[(*kept, ...)]

  def read(
    self, box: Box, advance: Callable[[int], None] = lambda size: None
  ) -> np.ndarray:
    """The part in `box`; `advance` is called with the size of each copy."""
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
    """Copies to make: a piece, the part of it, and its place in `target`."""
    # The leading dimensions are layer and expert; a piece covers the others.
    leads, inner = box[: self._depth], box[self._depth :]
    starts = [span.start for span in leads]
    for lead in itertools.product(*(range(s.start, s.stop) for s in leads)):
      within = target[tuple(i - s for i, s in zip(lead, starts, strict=True))]
      for piece in self._places.get(lead, ()):
        common = _common(piece.box, inner)
        if common is not None:
          for part in split(common, JOB, piece.axes[0][0]):
            place = within[_shifted(part, inner)]
            yield piece, _shifted(part, piece.box), place

  def _fill(self, piece: Piece, part: Box, target: np.ndarray) -> int:
    """Reads a part of a piece into `target`; returns its size in bytes."""
    source = arranged(self._tensors[piece.tensor].read, piece, part)
    transpose.copy(target, cast(source, self.dtype))
    return target.nbytes


def arranged(
  read: Callable[[Box], np.ndarray], piece: Piece, part: Box
) -> np.ndarray:
  """A part of a piece in our axes, as a view of what `read` returns.

  A dimension of the tensor may hold several of our axes. The tensor is read
  along the first of them from start to stop, and the view is sliced along the
  others.

  Args:
    read: returns the part of the tensor in a box.
    piece: the tensor, and its place in our array.
    part: a box within the piece.
  """
  shape, cuts, split, inner = sizes(piece.box), [], [], []
  for group, offset in zip(piece.axes, (0, piece.columns.start)):
    first, *others = group
    # Indices of the tensor per index of its first axis.
    step = math.prod(shape[axis] for axis in others)
    span = part[first]
    cuts.append(slice(offset + span.start * step, offset + span.stop * step))
    split += [span.stop - span.start, *(shape[axis] for axis in others)]
    inner += [slice(None), *(part[axis] for axis in others)]
  order = np.argsort(list(itertools.chain(*piece.axes)))
  return read(tuple(cuts)).reshape(split)[tuple(inner)].transpose(order)


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """`array` rounded to `dtype`; the same array if it has that dtype."""
  if array.dtype == BFLOAT16 and dtype == np.float32:
    # A bfloat16 is the upper half of a float32. Shifting bits is much faster
    # than `astype`.
    wide = array.view(np.uint16).astype(np.uint32)
    return np.left_shift(wide, 16, out=wide).view(np.float32)
  return array.astype(dtype, copy=False)


def _common(one: Box, other: Box) -> Box | None:
  """The intersection of two boxes; None if it is empty."""
  common = tuple(
    slice(max(a.start, b.start), min(a.stop, b.stop))
    for a, b in zip(one, other, strict=True)
  )
  return common if min(sizes(common)) > 0 else None


def _shifted(part: Box, whole: Box) -> Box:
  """`part` relative to the start of `whole`."""
  return tuple(
    slice(a.start - b.start, a.stop - b.start)
    for a, b in zip(part, whole, strict=True)
  )


def split(box: Box, most: int, axis: int = 0) -> Iterator[Box]:
  """`box` in parts of at most `most` elements, cut along `axis`.

  Where a single index of that axis has more, the axes after it are cut too.
  """
  span = box[axis]
  count = span.stop - span.start
  step = max(1, most * count // math.prod(sizes(box)))
  for start in range(span.start, span.stop, step):
    cut = slice(start, min(start + step, span.stop))
    part = (*box[:axis], cut, *box[axis + 1 :])
    if math.prod(sizes(part)) > most and axis + 1 < len(box):
      yield from split(part, most, axis + 1)
    else:
      yield part
