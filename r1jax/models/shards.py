"""Files of tensors (safetensors), several to a model, read and written.

A file is the length of its header (8 bytes), the header (JSON: dtype, shape and
offsets of each tensor), and the tensors. An index names the file of each.
"""

import hashlib
import json
import math
import mmap
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SCALES = "_scale_inv"  # Ends the name of the scales of a float8 tensor.
FLOAT8 = np.arange(256, dtype=np.uint8).view(DTYPES["F8_E4M3"])
FLOAT8_VALUES = FLOAT8.astype(np.float32)  # By their bits.


class Stored(NamedTuple):
  """One tensor, and where it is."""

  file: pathlib.Path
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int  # In the file.

  @property
  def size(self) -> int:
    """Bytes."""
    return math.prod(self.shape) * self.dtype.itemsize


class Reader:
  """The tensors of a directory, mapped into memory."""

  def __init__(
    self, directory: pathlib.Path, block: tuple[int, int] | None = None
  ):
    """Opens every shard.

    Args:
      directory: holds `model.safetensors`, or shards and their index.
      block: rows and columns of a float8 matrix that share a scale.

    Raises ValueError for a shard that is missing or was cut short.
    """
    self.directory = directory
    self.block = block
    self.tensors: dict[str, Stored] = {}
    self._maps: dict[pathlib.Path, mmap.mmap] = {}
    index = _index(directory)
    for file in sorted({*index.values()}) if index else [directory / SINGLE]:
      with open(file, "rb") as stream:
        found = _header(file, stream)
        if file.stat().st_size:
          self._maps[file] = mmap.mmap(
            stream.fileno(), 0, access=mmap.ACCESS_READ
          )
      for name in found:
        if name in self.tensors:
          raise ValueError(
            f"tensor {name} is in {self.tensors[name].file.name} and in {file}"
          )
      self.tensors |= found
    for name, file in index.items():
      if name not in self.tensors or self.tensors[name].file != file:
        raise ValueError(
          f"tensor {name} is not in {file}, where {INDEX} says it is; download "
          "both again"
        )

  def view(self, name: str) -> np.ndarray:
    """A tensor as it is stored; reading it reads the file."""
    stored = self.tensors[name]
    flat = np.frombuffer(
      self._maps[stored.file],
      stored.dtype,
      math.prod(stored.shape),
      stored.start,
    )
    return flat.reshape(stored.shape)

  def rows(self, name: str, rows: slice, columns: slice) -> np.ndarray:
    """A part of a matrix; what is float8 comes scaled, in float32."""
    view = self.view(name)[rows, columns]
    if view.dtype != DTYPES["F8_E4M3"]:
      return view
    scales, block = self.scales(name), self.block
    of_columns = np.arange(columns.start, columns.stop) // block[1]
    values = FLOAT8_VALUES[view.view(np.uint8)]
    for row in range(rows.start // block[0], -(-rows.stop // block[0])):
      first = max(row * block[0], rows.start) - rows.start
      last = (row + 1) * block[0] - rows.start
      values[first:last] *= scales[row, of_columns]
    return values

  def scales(self, name: str) -> np.ndarray:
    """By what the blocks of a float8 matrix are multiplied.

    Raises ValueError if they are missing, or too many or few.
    """
    stored, other = self.tensors[name], self.tensors.get(name + SCALES)
    if self.block is None or len(stored.shape) != 2:
      raise ValueError(
        f"tensor {name} in {stored.file} is float8, but config.json has no "
        "quantization_config with quant_method fp8"
      )
    if other is None:
      raise ValueError(
        f"tensor {name + SCALES} is missing from {self.directory}: without it "
        f"{name}, which is float8, cannot be read"
      )
    wanted = tuple(
      -(-n // b) for n, b in zip(stored.shape, self.block, strict=True)
    )
    if other.shape != wanted or other.dtype != np.float32:
      raise ValueError(
        f"tensor {name + SCALES} in {other.file} is {other.dtype}"
        f"{list(other.shape)}, not float32{list(wanted)}"
      )
    return self.view(name + SCALES)

  def release(self, name: str, rows: slice) -> None:
    """Says that some rows were read, so that they take no more memory."""
    stored = self.tensors[name]
    row = math.prod(stored.shape[1:]) * stored.dtype.itemsize
    page = mmap.PAGESIZE
    first = (stored.start + rows.start * row) // page * page
    last = stored.start + rows.stop * row
    if hasattr(mmap, "MADV_DONTNEED") and last > first:
      self._maps[stored.file].madvise(mmap.MADV_DONTNEED, first, last - first)


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
    if pathlib.PurePath(file).name != file:
      raise ValueError(f"{path}: {file!r} of {name} is no file name")
    if not (directory / file).is_file():
      raise ValueError(
        f"{directory / file} is missing; {INDEX} says that it holds {name}: "
        "download it"
      )
  return {name: directory / file for name, file in files.items()}


def _header(file: pathlib.Path, stream) -> dict[str, Stored]:
  """What a file's header says, and that the file is as long as it says."""
  size = file.stat().st_size
  length = int.from_bytes(stream.read(8), "little")
  if size < 8 or length > size - 8:
    raise ValueError(
      f"{file} is cut short or no safetensors: download it again"
    )
  try:
    entries = json.loads(stream.read(length))
    entries.pop("__metadata__", None)
    found = {
      name: _entry(file, name, entry, 8 + length)
      for name, entry in entries.items()
    }
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{file} has a broken header ({error}); download it again"
    ) from None
  end = max((t.start + t.size for t in found.values()), default=8 + length)
  if size != end:
    raise ValueError(
      f"{file} is {size:,} bytes long, its header says {end:,}; download it "
      "again"
    )
  return found


def _entry(file: pathlib.Path, name: str, entry, begin: int) -> Stored:
  """One tensor of a header; the tensors' bytes begin at `begin`."""
  kind, (start, stop) = entry["dtype"], entry["data_offsets"]
  shape = tuple(entry["shape"])
  if kind not in DTYPES:
    raise ValueError(f"{name} is {kind}; known are {', '.join(DTYPES)}")
  if any(type(n) is not int or n < 0 for n in (*shape, start, stop)):
    raise ValueError(f"{name} has no shape or no place")
  stored = Stored(file, DTYPES[kind], shape, begin + start)
  if stored.size != stop - start:
    raise ValueError(f"{name} does not fill its place")
  return stored


class Plan(NamedTuple):
  """A tensor to be written."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def size(self) -> int:
    """Bytes."""
    return math.prod(self.shape) * self.dtype.itemsize


def write(
  directory: pathlib.Path,
  plans: Sequence[Plan],
  make: Callable[[Plan], np.ndarray],
  *,
  shard_bytes: int | float,
  hashed: bool = False,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, str]:
  """Each file written, and its SHA-256 if `hashed`; `make` gives the tensors.

  A shard holds at most `shard_bytes`, unless a single tensor is larger. Where
  there are several, an index is written beside them.
  """
  shards = list(_split(plans, shard_bytes))
  total, done, digests, files = sum(p.size for p in plans), 0, {}, {}
  for number, shard in enumerate(shards, 1):
    name = f"model-{number:05}-of-{len(shards):05}.safetensors"
    name = name if len(shards) > 1 else SINGLE
    files |= {plan.name: name for plan in shard}
    digest = hashlib.sha256()
    with open(directory / name, "wb") as stream:
      for part in _parts(shard, make):
        stream.write(part)
        if hashed:
          digest.update(part)
        done += len(part)
        progress(min(done, total), total)
    digests[name] = digest.hexdigest() if hashed else ""
  if len(shards) > 1:
    index = {"metadata": {"total_size": total}, "weight_map": files}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (directory / INDEX).write_text(text)
  return digests


def _split(plans: Sequence[Plan], limit: int | float) -> Iterator[list[Plan]]:
  shard: list[Plan] = []
  size = 0
  for plan in plans:
    if shard and size + plan.size > limit:
      yield shard
      shard, size = [], 0
    shard.append(plan)
    size += plan.size
  yield shard


def _parts(
  shard: Sequence[Plan], make: Callable[[Plan], np.ndarray]
) -> Iterable[memoryview | bytes]:
  """The bytes of a file; wider dtypes come first, so that all are aligned."""
  header: dict = {"__metadata__": {"format": "pt"}}
  shard, start = sorted(shard, key=lambda plan: -plan.dtype.itemsize), 0
  for plan in shard:
    header[plan.name] = {
      "dtype": NAMES[plan.dtype],
      "shape": plan.shape,
      "data_offsets": (start, start + plan.size),
    }
    start += plan.size
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  yield len(text).to_bytes(8, "little") + text
  for plan in shard:
    array = make(plan)
    yield memoryview(array.reshape(-1).view(np.uint8))
