"""Files of JSON rows, each with its step, that a run can go back in.

A line that is no such row, whoever wrote it, is left out with a warning; what
follows it counts. A last line that a crash cut short is left out in silence.
"""

import errno
import json
import math
import numbers
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging


class Rows:
  """A file to which rows are added, each whole on the disk at once.

  Opening it drops the rows beyond `step`, and with None all of them; the file
  appears with its first row.
  """

  def __init__(self, path: pathlib.Path, step: int | None):
    truncate(path, step)
    self._path, self._file = path, None

  def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows; what JSON has no number for becomes null.

    Raises FileNotFoundError if the file is not where it was: nothing that is
    written from then on would be found.
    """
    if self._file is None:
      self._file = open(self._path, "a", encoding="utf-8")
    elif not self._is_in_place():
      raise FileNotFoundError(
        errno.ENOENT,
        "removed or replaced while the run was writing to it; run the command "
        "again, with another --workdir if this one is no longer wanted",
        str(self._path),
      )
    for row in rows:
      row = {name: finite(value) for name, value in row.items()}
      self._file.write(json.dumps(row) + "\n")
    self._file.flush()

  def _is_in_place(self) -> bool:
    try:
      there = os.stat(self._path)
    except OSError:
      return False
    return os.path.samestat(there, os.fstat(self._file.fileno()))

  def close(self) -> None:
    """Closes the file, if any row was added."""
    if self._file is not None:
      self._file.close()
      self._file = None


def lines(path: pathlib.Path) -> Iterator[tuple[dict[str, Any], bytes]]:
  """The rows of a file, with their bytes."""
  with open(path, "rb") as file:
    for number, line in enumerate(file, 1):
      if not line.endswith(b"\n"):
        return
      if (row := _row(line)) is None:
        logging.warning("%s:%d: no row of a run; left out", path, number)
      else:
        yield row, line


def _row(line: bytes) -> dict[str, Any] | None:
  """What the line holds, if that is an object with a step."""
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):
    return None
  step = row.get("step") if isinstance(row, dict) else None
  is_step = isinstance(step, int) and not isinstance(step, bool)
  return row if is_step else None


def truncate(path: pathlib.Path, step: int | None) -> None:
  """Drops the rows beyond `step`; None drops all."""
  if not path.exists():
    return
  draft = path.with_suffix(".tmp")
  with open(draft, "wb") as file:
    if step is not None:
      for row, line in lines(path):
        if row["step"] <= step:
          file.write(line)
  os.replace(draft, path)


def plain(name: str, value: Any) -> Any:
  """A number or (nested) list of numbers; float32 keeps its short form."""
  if isinstance(value, np.ndarray | np.generic):
    if value.dtype.kind not in "biuf" and value.dtype.name != "bfloat16":
      raise TypeError(f"metric {name!r} is an array of {value.dtype}")
    if value.ndim:
      return [plain(name, item) for item in value]
    if value.dtype.itemsize < 8 and value.dtype.kind not in "biu":
      return float(str(np.float32(value)))
    return value.item()
  if isinstance(value, list | tuple):
    return [plain(name, item) for item in value]
  if not isinstance(value, numbers.Real):
    raise TypeError(f"metric {name!r} is {type(value).__name__}: {value!r}")
  return value


def finite(value: Any) -> Any:
  """JSON has no NaN and no infinity: they become null."""
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, list | tuple):
    return [finite(item) for item in value]
  if isinstance(value, Mapping):
    return {k: finite(v) for k, v in value.items()}
  if isinstance(value, np.ndarray | np.generic):
    return finite(plain("", value))
  return value
