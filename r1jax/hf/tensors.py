"""The tensors of a released model by name, from safetensors files.

A source of weights is a mapping of released names to tensors whose shapes are
known at once and whose values are read slice by slice. `open_folder` makes it
from a directory of safetensors; a reader of another format makes the same.

    model-00001-of-00002.safetensors ...   the tensors
    model.safetensors.index.json           in which of the files each of them is
"""

import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SCALES = "_scale_inv"  # Ends the name of the scales of a float8 tensor.
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
DTYPES = {
  name: np.dtype(kind)
  for name, kind in {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": FLOAT8,
    "BOOL": np.bool_,
    **{f"I{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"u{bits // 8}" for bits in (8, 16, 32, 64)},
  }.items()
}
# The value of each of the 256 float8 numbers, by its bits.
FLOAT8_VALUES = np.arange(256, dtype=np.uint8).view(FLOAT8).astype(np.float32)


@runtime_checkable
class Tensor(Protocol):
  """One tensor of a source: `read` gives values of `dtype`."""

  file: pathlib.Path
  shape: tuple[int, ...]
  dtype: np.dtype

  def read(self, index: tuple[slice, ...]) -> np.ndarray:
    """The part at `index`: one slice per dimension, with start and stop."""


NamedTensors = Mapping[str, Tensor]


class Stored(NamedTuple):
  """A tensor as it lies in a file."""

  file: pathlib.Path
  shape: tuple[int, ...]
  dtype: np.dtype
  offset: int  # Bytes from the beginning of the file.

  @property
  def nbytes(self) -> int:
    """Bytes in the file."""
    return math.prod(self.shape) * self.dtype.itemsize

  def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
    """A view of the file.

    The map lives as long as the view, so that pages that were read leave the
    memory of the process with it.
    """
    if not self.nbytes:
      return np.empty(self.shape, self.dtype)[index]
    mapped = np.memmap(self.file, np.uint8, "r", self.offset, (self.nbytes,))
    return np.asarray(mapped).view(self.dtype).reshape(self.shape)[index]


class Scaled(NamedTuple):
  """A float8 matrix, each block of which has a scale; read in float32.

  As DeepSeek-V3's README_WEIGHTS.md has it: a weight is its block's scale times
  what is stored; blocks at the lower and at the right edge may be smaller.
  """

  stored: Stored
  scales: Stored
  block: tuple[int, int]  # Rows and columns.

  dtype = np.dtype(np.float32)

  @property
  def file(self) -> pathlib.Path:
    """Where the matrix is."""
    return self.stored.file

  @property
  def shape(self) -> tuple[int, ...]:
    """Rows and columns."""
    return self.stored.shape

  def read(self, index: tuple[slice, slice]) -> np.ndarray:
    """A part of the matrix, scaled."""
    (rows, columns), scales = index, self.scales.read()
    values = FLOAT8_VALUES[self.stored.read(index).view(np.uint8)]
    high, wide = self.block
    of_columns = np.arange(columns.start, columns.stop) // wide
    for row in range(rows.start // high, -(-rows.stop // high)):
      first = max(row * high, rows.start) - rows.start
      values[first : (row + 1) * high - rows.start] *= scales[row, of_columns]
    return values


def open_folder(
  directory: pathlib.Path, block: tuple[int, int] | None = None
) -> NamedTensors:
  """The tensors in `model.safetensors`, or in the files that the index lists.

  Args:
    directory: holds the files.
    block: rows and columns of a float8 matrix that share a scale.

  Raises ValueError for a file that is missing or broken, and for a float8
  tensor without the scales of its blocks.
  """
  index, found = _index(directory), {}
  for file in sorted({*index.values()}) or [directory / SINGLE]:
    for name, tensor in stored(file).items():
      if name in found:
        raise ValueError(
          f"tensor {name} is in {found[name].file.name} and in {file}"
        )
      found[name] = tensor
  for name, file in index.items():
    if name not in found or found[name].file != file:
      raise ValueError(
        f"tensor {name} is not in {file}, where {INDEX} says it is; download "
        "both again"
      )
  for name in [name for name in found if found[name].dtype == FLOAT8]:
    scales = found.pop(name + SCALES, None)
    found[name] = _scaled(name, found[name], scales, block)
  return found


def _index(directory: pathlib.Path) -> dict[str, pathlib.Path]:
  """The file of each tensor; nothing if there is but one file."""
  path = directory / INDEX
  if not path.is_file():
    if (directory / SINGLE).is_file():
      return {}
    raise ValueError(
      f"{directory} holds neither {SINGLE} nor {INDEX}; weights in other "
      "formats are not read"
    )
  try:
    files = dict(json.loads(path.read_bytes())["weight_map"])
  except (ValueError, KeyError, TypeError):
    raise ValueError(f"{path} has no weight_map; download it again") from None
  for name, file in files.items():
    if not isinstance(file, str) or pathlib.PurePath(file).name != file:
      raise ValueError(f"{path}: {file!r} of {name} is not a file name")
    if not (directory / file).is_file():
      raise ValueError(
        f"{directory / file} is missing; {INDEX} says that it holds {name}: "
        "download it"
      )
  return {name: directory / file for name, file in files.items()}


def stored(file: pathlib.Path) -> dict[str, Stored]:
  """The tensors of one file.

  The library checks the header against the file. Its own slices are not used:
  they are copies that are made one at a time, and it has no float8 for NumPy.
  Tensors follow each other without gaps, which gives their offsets.
  """
  found = {}
  try:
    with safe_open(file, "numpy") as opened, open(file, "rb") as stream:
      offset = 8 + int.from_bytes(stream.read(8), "little")
      for name in opened.offset_keys():
        tensor = opened.get_slice(name)
        kind, shape = tensor.get_dtype(), tuple(tensor.get_shape())
        if kind not in DTYPES:
          raise ValueError(
            f"tensor {name} in {file} is {kind}; known are {', '.join(DTYPES)}"
          )
        found[name] = Stored(file, shape, DTYPES[kind], offset)
        offset += found[name].nbytes
  except SafetensorError as error:
    raise ValueError(
      f"{file} is cut short or broken ({error}); download it again"
    ) from None
  return found


def _scaled(
  name: str, tensor: Stored, scales: Stored | None, block: tuple | None
) -> Scaled:
  """A float8 tensor with its scales; raises ValueError if they do not fit."""
  if block is None or len(tensor.shape) != 2:
    raise ValueError(
      f"tensor {name} in {tensor.file} is float8, but config.json has no "
      "quantization_config with quant_method fp8"
    )
  if scales is None:
    raise ValueError(
      f"tensor {name + SCALES} is missing from {tensor.file.parent}: without "
      f"it {name}, which is float8, cannot be read"
    )
  wanted = tuple(-(-n // b) for n, b in zip(tensor.shape, block, strict=True))
  if scales.shape != wanted or scales.dtype != np.float32:
    raise ValueError(
      f"tensor {name + SCALES} in {scales.file} is {scales.dtype}"
      f"{list(scales.shape)}, not float32{list(wanted)}"
    )
  return Scaled(tensor, scales, block)


class Plan(NamedTuple):
  """A tensor to be written."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def nbytes(self) -> int:
    """Bytes that it takes."""
    return math.prod(self.shape) * self.dtype.itemsize


def write(
  directory: pathlib.Path,
  plans: Sequence[Plan],
  make: Callable[[Plan], np.ndarray],
  *,
  file_bytes: int | float,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
  """Writes the tensors that `make` gives.

  A file holds at most `file_bytes`, unless a single tensor is larger; only one
  file is in memory at a time. Where there are several, an index is written
  beside them.
  """
  groups = list(_split(plans, file_bytes))
  total, done, index = sum(plan.nbytes for plan in plans), 0, {}
  for number, group in enumerate(groups, 1):
    name = f"model-{number:05}-of-{len(groups):05}.safetensors"
    name = name if len(groups) > 1 else SINGLE
    arrays = {}
    for plan in group:
      arrays[plan.name] = make(plan)
      done += plan.nbytes
      progress(done, total)
    save_file(arrays, directory / name, metadata={"format": "pt"})
    index |= {plan.name: name for plan in group}
  if len(groups) > 1:
    text = json.dumps(
      {"metadata": {"total_size": total}, "weight_map": index},
      indent=2,
      sort_keys=True,
    )
    (directory / INDEX).write_text(text + "\n")


def _split(plans: Sequence[Plan], limit: int | float) -> Iterator[list[Plan]]:
  group: list[Plan] = []
  size = 0
  for plan in plans:
    if group and size + plan.nbytes > limit:
      yield group
      group, size = [], 0
    group.append(plan)
    size += plan.nbytes
  yield group
