"""The tensors of a released model by name, in safetensors files.

`NamedTensors` maps released names to tensors. Their shapes are known at once,
and their values are read slice by slice. `open_folder` returns one for a
directory of safetensors files. A reader of another format would do the same.

    model-00001-of-00002.safetensors ...   the tensors
    model.safetensors.index.json           the file of each tensor
"""

import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SCALES = "_scale_inv"  # Suffix of the name of a float8 tensor's scales.
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
# The values of the 256 float8 numbers, indexed by their bits.
FLOAT8_VALUES = np.arange(256, dtype=np.uint8).view(FLOAT8).astype(np.float32)


@runtime_checkable
class Tensor(Protocol):
  """One tensor of a checkpoint."""

  file: pathlib.Path
  shape: tuple[int, ...]
  dtype: np.dtype  # Of the values that `read` returns.

  def read(self, index: tuple[slice, ...]) -> np.ndarray:
    """The part at `index`: a slice with start and stop for each dimension."""


NamedTensors = Mapping[str, Tensor]


class Stored(NamedTuple):
  """A tensor that is stored in a file in its own dtype."""

  file: pathlib.Path
  shape: tuple[int, ...]
  dtype: np.dtype
  offset: int  # Bytes from the beginning of the file.

  @property
  def nbytes(self) -> int:
    """Size in the file, in bytes."""
    return math.prod(self.shape) * self.dtype.itemsize

  def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
    """A memory-mapped view of the part at `index`.

    The file is mapped for each call. The map is released with the view, and so
    are the pages that were read.
    """
    if not self.nbytes:
      return np.empty(self.shape, self.dtype)[index]
    mapped = np.memmap(self.file, np.uint8, "r", self.offset, (self.nbytes,))
    return np.asarray(mapped).view(self.dtype).reshape(self.shape)[index]


class Scaled(NamedTuple):
  """A float8 matrix with one scale per block, read in float32.

  A weight is the stored value times the scale of its block. Blocks at the last
  rows and columns may be smaller. The format is described in
  README_WEIGHTS.md of DeepSeek-V3.
  """

  stored: Stored
  scales: Stored
  block: tuple[int, int]  # Rows and columns of a block.

  dtype = np.dtype(np.float32)

  @property
  def file(self) -> pathlib.Path:
    """The file of the matrix."""
    return self.stored.file

  @property
  def shape(self) -> tuple[int, ...]:
    """Rows and columns of the matrix."""
    return self.stored.shape

  def read(self, index: tuple[slice, slice]) -> np.ndarray:
    """The part at `index`, multiplied by the scales."""
    (rows, columns), scales = index, self.scales.read()
    values = FLOAT8_VALUES[self.stored.read(index).view(np.uint8)]
    height, width = self.block
    block_columns = np.arange(columns.start, columns.stop) // width
    # For each row of blocks that overlaps `rows`.
    for row in range(rows.start // height, -(-rows.stop // height)):
      first = max(row * height, rows.start) - rows.start
      last = (row + 1) * height - rows.start
      values[first:last] *= scales[row, block_columns]
    return values


def open_folder(
  directory: pathlib.Path, block: tuple[int, int] | None = None
) -> NamedTensors:
  """The tensors in `model.safetensors`, or in the files that the index lists.

  Args:
    directory: the directory of the files.
    block: rows and columns of the blocks of a float8 matrix that share a scale;
      None if there is no float8.

  Raises ValueError for a file that is missing or damaged, and for a float8
  tensor without scales.
  """
  index, tensors = _index(directory), {}
  for file in sorted({*index.values()}) or [directory / SINGLE]:
    for name, tensor in stored(file).items():
      if name in tensors:
        raise ValueError(
          f"tensor {name} is in {tensors[name].file.name} and in {file}"
        )
      tensors[name] = tensor
  for name, file in index.items():
    if name not in tensors or tensors[name].file != file:
      raise ValueError(
        f"tensor {name} is not in {file}, where {INDEX} says it is; download "
        "both again"
      )
  for name in [name for name in tensors if tensors[name].dtype == FLOAT8]:
    scales = tensors.pop(name + SCALES, None)
    tensors[name] = _scaled(name, tensors[name], scales, block)
  return tensors


def _index(directory: pathlib.Path) -> dict[str, pathlib.Path]:
  """The file of each tensor; an empty dict if there is only one file."""
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

  The safetensors library checks the header, but does not read the values: it
  copies slices one at a time and does not support float8 in NumPy. Offsets
  follow from the order of the tensors, as the format allows no gaps.
  """
  tensors = {}
  try:
    with safe_open(file, "numpy") as opened, open(file, "rb") as stream:
      # The file begins with the size of the header, in 8 bytes.
      offset = 8 + int.from_bytes(stream.read(8), "little")
      for name in opened.offset_keys():
        tensor = opened.get_slice(name)
        kind, shape = tensor.get_dtype(), tuple(tensor.get_shape())
        if kind not in DTYPES:
          raise ValueError(
            f"tensor {name} in {file} is {kind}; known are {', '.join(DTYPES)}"
          )
        tensors[name] = Stored(file, shape, DTYPES[kind], offset)
        offset += tensors[name].nbytes
  except SafetensorError as error:
    raise ValueError(
      f"{file} is cut short or broken ({error}); download it again"
    ) from None
  return tensors


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
  expected = tuple(-(-n // b) for n, b in zip(tensor.shape, block, strict=True))
  if scales.shape != expected or scales.dtype != np.float32:
    raise ValueError(
      f"tensor {name + SCALES} in {scales.file} is {scales.dtype}"
      f"{list(scales.shape)}, not float32{list(expected)}"
    )
  return Scaled(tensor, scales, block)


def write(
  directory: pathlib.Path,
  tensors: Mapping[str, jax.ShapeDtypeStruct],
  make: Callable[[str], np.ndarray],
  *,
  file_bytes: int | float,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
  """Writes tensors to one or more files, and an index if there are several.

  Args:
    directory: where to write.
    tensors: shape and dtype of each tensor, in the order to write.
    make: returns the values of a tensor by its name.
    file_bytes: the most that one file holds, unless a single tensor is larger.
      One tensor is in memory at a time.
    progress: called with the number of bytes written, and the total.
  """
  nbytes = {name: t.size * t.dtype.itemsize for name, t in tensors.items()}
  files, size = [[]], 0
  for name in tensors:
    if files[-1] and size + nbytes[name] > file_bytes:
      files.append([])
      size = 0
    files[-1].append(name)
    size += nbytes[name]
  done, total, index = 0, sum(nbytes.values()), {}
  for number, names in enumerate(files, 1):
    file = f"model-{number:05}-of-{len(files):05}.safetensors"
    file = file if len(files) > 1 else SINGLE
    with open(directory / file, "wb") as stream:
      offsets = _write_header(stream, {name: tensors[name] for name in names})
      for name in names:
        stream.seek(offsets[name])
        stream.write(make(name).reshape(-1).view(np.uint8))
        done += nbytes[name]
        progress(done, total)
    index |= dict.fromkeys(names, file)
  if len(files) > 1:
    content = {"metadata": {"total_size": total}, "weight_map": index}
    text = json.dumps(content, indent=2, sort_keys=True)
    (directory / INDEX).write_text(text + "\n")


def _write_header(
  stream: BinaryIO, tensors: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, int]:
  """Writes the header of a file; returns the offset of each tensor in it.

  The safetensors library writes a file only from tensors that are all in
  memory. Like the library, this puts wider dtypes first, so that every tensor
  is aligned.
  """
  kinds = {dtype: kind for kind, dtype in DTYPES.items()}
  header: dict = {"__metadata__": {"format": "pt"}}
  offsets, offset = {}, 0
  for name in sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize):
    dtype, shape = tensors[name].dtype, tensors[name].shape
    offsets[name] = offset
    offset += math.prod(shape) * dtype.itemsize
    header[name] = {
      "dtype": kinds[dtype],
      "shape": shape,
      "data_offsets": [offsets[name], offset],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  start = stream.write(len(text).to_bytes(8, "little")) + stream.write(text)
  return {name: start + offset for name, offset in offsets.items()}
