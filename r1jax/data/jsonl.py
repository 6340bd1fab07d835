"""Files of one JSON object per line, and errors that name file and line."""

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


def read(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (line number from 1, object) for each line that is not blank.

  A file whose name ends in .gz is read through gzip.

  Raises FileNotFoundError at once if there is no such file, and ValueError with
  "path:line" on reaching a line that is no JSON object in UTF-8.
  """
  return _strict(each(path))


def each(
  path: str | Path,
) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
  """As `read`, with the error in the place of a line that is no JSON object."""
  return _lines(existing(path))


def _strict(rows) -> Iterator[tuple[int, dict[str, Any]]]:
  for number, row in rows:
    if isinstance(row, ValueError):
      raise row
    yield number, row


def existing(path: str | Path) -> Path:
  """The path; raises FileNotFoundError if there is no such file."""
  path = Path(path)
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: no such file (looked from {Path.cwd()}); give the path of a "
      "file of JSON lines"
    )
  return path


def unzipped(path: Path) -> io.BufferedIOBase:
  """The file, opened to be read; one that ends in .gz through gzip."""
  return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
  number = 0
  with unzipped(path) as lines:
    try:
      for number, line in enumerate(lines, 1):
        if line.strip():
          try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            row, _ = decode(text.strip(), whole=True)
          except (ValueError, RecursionError) as error:
            row = ValueError(f"{path}:{number}: not JSON: {error}")
          yield number, an_object(row, f"{path}:{number}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise ValueError(f"{path}:{number + 1}: not gzip: {error}") from None


def decode(text: str, start: int = 0, *, whole: bool = False):
  """The JSON value at `start` of `text`, and where it ends.

  Raises ValueError for what Python's reader takes, though it is no JSON or no
  text: NaN, Infinity, numbers beyond float64, halves of surrogate pairs.
  """
  value, end = DECODER.raw_decode(text, start)
  if whole and end != len(text):
    raise json.JSONDecodeError("Extra data", text, end)
  if SURROGATE.search(text, start, end):
    try:
      json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
      half = ord(error.object[error.start])
      raise ValueError(f"\\u{half:04x} alone is no character") from None
  return value, end


def _refuse(name: str) -> None:
  raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
  value = float(digits)
  return value if math.isfinite(value) else _refuse(f"{digits:.40}")


DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def an_object(row: Any, where: str) -> dict[str, Any] | ValueError:
  """The row if it is a JSON object, or the error; `where` is "path:line"."""
  if isinstance(row, dict | ValueError):
    return row
  kind = type(row).__name__
  return ValueError(f"{where}: want a JSON object, got a {kind}")


def text(row: Mapping[str, Any], *names: str, where: str) -> str:
  """The string under the first of the names that the row has.

  A number is written out. Raises ValueError that begins with `where`, such as
  "path:line", if no name is there or what it holds is no text.
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
  wanted = " or ".join(map(repr, names))
  raise ValueError(f"{where}: no field {wanted}; it has {[*row]}")


def number_text(value: int | float | Decimal) -> str:
  """The number in digits, without an exponent: 1e-07 is 0.0000001."""
  return format(Decimal(str(value)), "f")
