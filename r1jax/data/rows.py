"""Reads the rows of a file of JSON lines, a JSON array or Parquet."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r1jax.data import jsonl

SPACE = re.compile(r"\s*")

Row = dict[str, Any] | ValueError


def read(path: str | Path) -> Iterator[tuple[int, Row]]:
  """Yields (number, row), with a ValueError in place of an invalid row.

  The file's name gives its format: .parquet; .json, a JSON array if it begins
  with a bracket; JSON lines otherwise. A file whose name ends in .gz is
  decompressed. The number, from 1, is that of the row's first line or of
  Parquet's row.

  Raises FileNotFoundError at the call if the file does not exist. While it is
  read, raises ValueError, which names the file, if the rest cannot be read.
  """
  path = jsonl.existing_file(path)
  kind = Path(path.name.removesuffix(".gz")).suffix
  if kind == ".parquet":
    return _parquet(path)
  if kind == ".json" and _is_array(path):
    return _array(path)
  return jsonl.read_or_error(path)


def _is_array(path: Path) -> bool:
  return _read(path).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _read(path: Path) -> bytes:
  try:
    with jsonl.open_binary(path) as file:
      return file.read()
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise ValueError(f"{path}: not gzip: {error}") from None


def _array(path: Path) -> Iterator[tuple[int, Row]]:
  try:
    text = _read(path).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path}: not JSON: {error}") from None
  line, counted, position = 1, 0, text.index("[") + 1
  while True:
    position = SPACE.match(text, position).end()
    line, counted = line + text.count("\n", counted, position), position
    if text.startswith("]", position):
      break
    where = f"{path}:{line}"
    row, position = _element(text, position, where)
    yield line, jsonl.object_or_error(row, where)
    position = SPACE.match(text, position).end()
    if text.startswith(",", position):
      position += 1
    elif not text.startswith("]", position):
      line += text.count("\n", counted, position)
      raise ValueError(f"{path}:{line}: not JSON: a comma or ] is missing")


def _element(text: str, position: int, where: str) -> tuple[Any, int]:
  """Returns the value or error at a position of the array, and its end."""
  try:
    return jsonl.decode(text, position)
  except (json.JSONDecodeError, RecursionError) as error:
    raise ValueError(f"{where}: not JSON: {error}") from None
  except ValueError as error:  # Python can parse it, although it is not JSON.
    end = json.JSONDecoder().raw_decode(text, position)[1]
    return ValueError(f"{where}: not JSON: {error}"), end


def import_pyarrow(path: Path):
  """The module pyarrow; raises ValueError if it is not installed."""
  try:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet
  except ImportError:
    raise ValueError(
      f"{path}: Parquet needs pyarrow, which is not installed; run: "
      "pip install 'r1jax[parquet]'"
    ) from None
  return pyarrow


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
  pyarrow, number = import_pyarrow(path), 0
  with jsonl.open_binary(path) as file:
    try:
      for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
        for row in batch.to_pylist():
          number += 1
          yield number, row
    except (pyarrow.ArrowException, OSError, EOFError, zlib.error) as error:
      reason = " ".join(str(error).split())
      raise ValueError(f"{path}: not Parquet: {reason}") from None
