"""Rows of a file: JSON lines, a JSON array or Parquet, zipped or not."""

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
  """Yields (number, row), or the error in the place of a row that is none.

  What a file holds is told by its name: .parquet; .json, which is an array of
  objects if it begins with a bracket; all else is JSON lines. The number is
  that of the line on which a row begins, or of Parquet's row, from 1.

  Raises FileNotFoundError at once, and ValueError that names the file if it
  cannot be read on.
  """
  path = jsonl.existing(path)
  kind = Path(path.name.removesuffix(".gz")).suffix
  if kind == ".parquet":
    return _parquet(path)
  if kind == ".json" and _is_array(path):
    return _array(path)
  return jsonl.each(path)


def _is_array(path: Path) -> bool:
  return _read(path).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _read(path: Path) -> bytes:
  try:
    with jsonl.unzipped(path) as file:
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
    yield line, jsonl.an_object(row, where)
    position = SPACE.match(text, position).end()
    if text.startswith(",", position):
      position += 1
    elif not text.startswith("]", position):
      line += text.count("\n", counted, position)
      raise ValueError(f"{path}:{line}: not JSON: a comma or ] is missing")


def _element(text: str, position: int, where: str) -> tuple[Any, int]:
  """The value at a position of the array, or its error, and where it ends."""
  try:
    return jsonl.decode(text, position)
  except (json.JSONDecodeError, RecursionError) as error:
    raise ValueError(f"{where}: not JSON: {error}") from None
  except ValueError as error:  # No JSON, and yet Python knows where it ends.
    end = json.JSONDecoder().raw_decode(text, position)[1]
    return ValueError(f"{where}: not JSON: {error}"), end


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError:
    raise ValueError(
      f"{path}: pyarrow reads Parquet, and it is not installed; "
      "pip install 'r1jax[parquet]'"
    ) from None
  number = 0
  with jsonl.unzipped(path) as file:
    try:
      for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
        for row in batch.to_pylist():
          number += 1
          yield number, row
    except (pyarrow.ArrowException, OSError, EOFError, zlib.error) as error:
      reason = " ".join(str(error).split())
      raise ValueError(f"{path}: not Parquet: {reason}") from None
