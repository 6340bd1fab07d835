"""Shards: numbered files of rows, each of which appears whole or not at all.

    FOLDER/000000.jsonl, FOLDER/000001.jsonl, ...     (or .parquet)

The same rows give the same bytes.
"""

import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

Path = str | os.PathLike
FORMATS = ("jsonl", "parquet")
# Folders in the workdir of a run that makes samples.
KEPT, DROPPED = "kept", "dropped"


def path_of(folder: Path, number: int, format: str) -> pathlib.Path:
  """The file of a shard."""
  return pathlib.Path(folder) / f"{number:06}.{format}"


def finished(folder: Path, format: str) -> int:
  """The number of shards, up to the first that is missing."""
  number = 0
  while path_of(folder, number, format).exists():
    number += 1
  return number


def write(
  folder: Path, number: int, rows: Sequence[Mapping[str, Any]], format: str
) -> None:
  """Writes a shard in place of an older one, if there is one.

  Whatever ends the process or the machine, the file is the old one or the new.

  Args:
    folder: of the shards; it is made.
    number: of the shard, from 0.
    rows: to write, with the same keys.
    format: "jsonl" or "parquet".

  Raises ValueError as `require` does.
  """
  require(format)
  data = _parquet(rows) if format == "parquet" else _jsonl(rows)
  file = path_of(folder, number, format)
  file.parent.mkdir(parents=True, exist_ok=True)
  draft = file.with_name(f".{file.name}.tmp")
  with open(draft, "wb") as stream:
    stream.write(data)
    stream.flush()
    os.fsync(stream.fileno())
  os.replace(draft, file)


def check(format: str) -> None:
  """Raises ValueError for a format that does not exist."""
  if format not in FORMATS:
    raise ValueError(f"format is {format!r}; there is {', '.join(FORMATS)}")


def require(format: str) -> None:
  """Raises ValueError for a format that cannot be written here."""
  check(format)
  if format == "parquet":
    _pyarrow()


def _jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
  lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
  return "".join(f"{line}\n" for line in lines).encode()


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
  pyarrow, parquet = _pyarrow()
  stream = io.BytesIO()
  parquet.write_table(pyarrow.Table.from_pylist([*map(dict, rows)]), stream)
  return stream.getvalue()


def _pyarrow():
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError:
    raise ValueError(
      "Parquet needs pyarrow, which is not installed; run: "
      "pip install 'r1jax[parquet]'"
    ) from None
  return pyarrow, pyarrow.parquet
