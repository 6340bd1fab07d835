"""Reads JSON lines; errors name the file and the line."""

import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

SURROGATE = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def read(
  path: str | Path, *, surrogates: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (line number from 1, object) for each line that is not blank.

  A file whose name ends in .gz is decompressed. With `surrogates`, strings may
  hold halves of surrogate pairs, as a record of what a policy wrote may.

  Raises FileNotFoundError at the call if the file does not exist. While it is
  read, raises ValueError with "path:line" for a line that is not a JSON object
  in UTF-8.
  """
  return _strict(_lines(existing_file(path), surrogates))


def read_or_error(
  path: str | Path,
) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
  """Yields what `read` does, but a ValueError in place of an invalid line."""
  return _lines(existing_file(path))


def _strict(rows) -> Iterator[tuple[int, dict[str, Any]]]:
  for number, row in rows:
    if isinstance(row, ValueError):
      raise row
    yield number, row


def existing_file(path: str | Path) -> Path:
  """Returns the path; raises FileNotFoundError if the file does not exist."""
  path = Path(path)
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: no such file (the working directory is {Path.cwd()}); give the "
      "path of a file of JSON lines"
    )
  return path


def open_binary(path: Path) -> io.BufferedIOBase:
  """Opens a file for reading, and decompresses it if its name ends in .gz."""
  return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _lines(
  path: Path, surrogates: bool = False
) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
  number = 0
  with open_binary(path) as lines:
    try:
      for number, line in enumerate(lines, 1):
        if line.strip():
          try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            row, _ = decode(text.strip(), whole=True, surrogates=surrogates)
          except (ValueError, RecursionError) as error:
            row = ValueError(f"{path}:{number}: not JSON: {error}")
          yield number, object_or_error(row, f"{path}:{number}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise ValueError(f"{path}:{number + 1}: not gzip: {error}") from None


def decode(
  text: str, start: int = 0, *, whole: bool = False, surrogates: bool = False
):
  """Returns the JSON value at index `start` of a text, and its end's index.

  With `whole`, nothing may follow the value. Raises ValueError for invalid
  JSON, also where Python's `json` accepts it: NaN, Infinity, numbers beyond
  float64, and, unless `surrogates` allows them, halves of surrogate pairs.
  """
  value, end = DECODER.raw_decode(text, start)
  if whole and end != len(text):
    raise json.JSONDecodeError("Extra data", text, end)
  if not surrogates and SURROGATE.search(text, start, end):
    try:
      json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
      half = ord(error.object[error.start])
      raise ValueError(f"\\u{half:04x} alone is not a character") from None
  return value, end


def _refuse(name: str) -> None:
  raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
  value = float(digits)
  return value if math.isfinite(value) else _refuse(f"{digits:.40}")


DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def object_or_error(row: Any, where: str) -> dict[str, Any] | ValueError:
  """Returns the row if it is a JSON object, else an error with `where`."""
  if isinstance(row, dict | ValueError):
    return row
  kind = type(row).__name__
  return ValueError(f"{where}: must be a JSON object, got a {kind}")


def text(row: Mapping[str, Any], *names: str, where: str) -> str:
  """Returns the text of the first of the named fields that the row has.

  A number is returned in digits. Raises ValueError, which begins with `where`
  ("path:line"), if the row has none of the fields, or if the field is not text.
  """
  for name in names:
    if name not in row:
      continue
    value = row[name]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
      value = number_text(value)
    if not isinstance(value, str) or not value.strip():
      raise ValueError(f"{where}: {name!r} must be text, got {value!r:.80}")
    return value
  fields = " or ".join(map(repr, names))
  raise ValueError(f"{where}: no field {fields}; it has {[*row]}")


def number_text(value: int | float | Decimal) -> str:
  """Returns a number in digits, without an exponent: 1e-07 as 0.0000001."""
  return format(Decimal(str(value)), "f")
