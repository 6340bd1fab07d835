"""Files of one JSON object per line, and errors that name file and line."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def read(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (line number from 1, object) for each line that is not blank.

  A file whose name ends in .gz is read through gzip.

  Raises FileNotFoundError at once if there is no such file, and ValueError with
  "path:line" on reaching a line that is no JSON object in UTF-8.
  """
  path = Path(path)
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: no such file (looked from {Path.cwd()}); give the path of a "
      "JSON-lines file"
    )
  return _rows(path)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
  number = 0
  with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
    try:
      for number, line in enumerate(lines, 1):
        if line.strip():
          yield number, _object(line, path, number)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise ValueError(f"{path}:{number + 1}: not gzip: {error}") from None


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
  try:
    row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path}:{number}: not JSON: {error}") from None
  if not isinstance(row, dict):
    kind = type(row).__name__
    raise ValueError(f"{path}:{number}: want a JSON object, got a {kind}")
  return row


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
      value = str(value)
    if not isinstance(value, str) or not value.strip():
      raise ValueError(f"{where}: {name!r} must be text, got {value!r:.80}")
    return value
  wanted = " or ".join(map(repr, names))
  raise ValueError(f"{where}: no field {wanted}; it has {[*row]}")
