"""Random access to the rows of files that are larger than memory.

A path is a file, or a folder whose files are read in the order of their names:

    .jsonl         JSON lines; the offsets of the lines are in memory
    .parquet       copied to an Arrow file in the temporary folder ($TMPDIR),
                   because reading one row of Parquet decodes a group of rows
    .array_record  one JSON object a record (also .arrayrecord)

Memory does not grow with the length of the rows: 12 bytes a row for JSON lines.
"""

import array
import bisect
import hashlib
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from r1jax.data import jsonl, rows

BLOCK_ROWS = 64  # Of a block of an Arrow file, which is read as a whole.


class Row(NamedTuple):
  """A row, and its place "path:number", with numbers from 1."""

  fields: Mapping[str, Any]
  where: str


class Shard(Protocol):
  """The rows of one file."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Row: ...


class Shards(Sequence[Row]):
  """The rows of a file, or of all files of a folder.

  Raises FileNotFoundError if the path does not exist, and ValueError if it
  holds no rows, or if a file cannot be read. Access to a row raises ValueError,
  which begins with the row's place, if it is not a JSON object.
  """

  def __init__(self, path: str | Path):
    self.files = _files(Path(path))
    self._shards = [FORMATS[file.suffix](file) for file in self.files]
    self._ends = [*itertools.accumulate(map(len, self._shards))]
    if not self._ends[-1]:
      raise ValueError(f"{path}: no rows in it")

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> Row:
    if not -len(self) <= index < len(self):
      raise IndexError(f"index {index} of {len(self)} rows")
    index %= len(self)
    shard, index = _locate(self._ends, index)
    return self._shards[shard][index]

  def checksum(self) -> str:
    """A checksum of the bytes of all files, for which they are read."""
    whole = hashlib.sha256()
    for file in self.files:
      with file.open("rb") as content:
        whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()


def _files(path: Path) -> list[Path]:
  """The files of a path; raises an error if there are none."""
  known = ", ".join(FORMATS)
  if path.is_dir():
    files = sorted(p for p in path.iterdir() if p.suffix in FORMATS)
    if not files:
      raise ValueError(f"{path}: no file in this folder ends in {known}")
    return files
  jsonl.existing_file(path)
  if path.suffix not in FORMATS:
    raise ValueError(
      f"{path}: rows are read in random order from files that end in {known}; "
      "convert it, or decompress it"
    )
  return [path]


class Lines:
  """The lines of a file of JSON lines that are not blank."""

  def __init__(self, path: Path):
    self._path, offset = path, 0
    # The offset and the number of each row's line; at last, the file's size.
    self._offsets, self._numbers = array.array("q"), array.array("i")
    with path.open("rb") as file:
      for number, line in enumerate(file, 1):
        if not line.isspace():
          self._offsets.append(offset)
          self._numbers.append(number)
        offset += len(line)
    self._offsets.append(offset)

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, index: int) -> Row:
    where = f"{self._path}:{self._numbers[index]}"
    start, end = self._offsets[index : index + 2]
    with self._path.open("rb") as file:
      file.seek(start)
      return _decode(file.read(end - start), where)


class Records:
  """The records of an ArrayRecord file, each a JSON object."""

  def __init__(self, path: Path):
    import grain  # The import takes a second.

    self._path = path
    try:
      self._source = grain.sources.ArrayRecordDataSource([str(path)])
      self._count = len(self._source)
    except (RuntimeError, ValueError, OSError) as error:
      raise ValueError(f"{path}: not ArrayRecord: {error}") from None

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> Row:
    where = f"{self._path}:{index + 1}"
    return _decode(self._source[index], where)


class Parquet:
  """The rows of a Parquet file, copied to an Arrow file that is mapped."""

  def __init__(self, path: Path):
    pyarrow = rows.import_pyarrow(path)
    self._path = path
    with tempfile.NamedTemporaryFile(suffix=".arrow") as copy:
      try:
        with (
          pyarrow.parquet.ParquetFile(path) as source,
          pyarrow.ipc.new_file(copy.name, source.schema_arrow) as writer,
        ):
          for batch in source.iter_batches(batch_size=BLOCK_ROWS):
            writer.write_batch(batch)
      except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not Parquet: {reason}") from None
      # The mapping keeps the file's content when its name is gone.
      self._blocks = pyarrow.ipc.open_file(pyarrow.memory_map(copy.name))
    sizes = (
      self._blocks.get_batch(i).num_rows
      for i in range(self._blocks.num_record_batches)
    )
    self._ends = [*itertools.accumulate(sizes)]

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, index: int) -> Row:
    number, start = _locate(self._ends, index)
    block = self._blocks.get_batch(number)
    (fields,) = block.slice(start, 1).to_pylist()
    return Row(fields, f"{self._path}:{index + 1}")


FORMATS: dict[str, Callable[[Path], Shard]] = {
  ".jsonl": Lines,
  ".parquet": Parquet,
  ".array_record": Records,
  ".arrayrecord": Records,
}


def _locate(ends: Sequence[int], index: int) -> tuple[int, int]:
  """The part that holds an index, and the index in it; `ends` are of parts."""
  part = bisect.bisect_right(ends, index)
  return part, index - (ends[part - 1] if part else 0)


def _decode(data: bytes, where: str) -> Row:
  """The JSON object in UTF-8; raises ValueError if there is none."""
  try:
    text = data.decode("utf-8-sig").strip()
    row, _ = jsonl.decode(text, whole=True)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{where}: not JSON: {error}") from None
  row = jsonl.object_or_error(row, where)
  if isinstance(row, ValueError):
    raise row
  return Row(row, where)
