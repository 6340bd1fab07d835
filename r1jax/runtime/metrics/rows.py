"""JSON lines files whose rows have a step and can be truncated by it.

Malformed lines are skipped with a warning. An incomplete last line, which a
crash leaves, is skipped silently.
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
  """A file to which rows are appended and flushed.

  Opening it drops the rows after `step`, or all rows if `step` is None. The
  file is created with its first row.
  """

  def __init__(self, path: pathlib.Path, step: int | None):
    truncate(path, step)
    self._path, self._file = path, None

  def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows; NaN and infinities become null.

    Raises FileNotFoundError if the file was removed or replaced since, because
    later rows would be lost.
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
      on_disk = os.stat(self._path)
    except OSError:
      return False
    return os.path.samestat(on_disk, os.fstat(self._file.fileno()))

  def close(self) -> None:
    """Closes the file if it is open."""
    if self._file is not None:
      self._file.close()
      self._file = None


def lines(path: pathlib.Path) -> Iterator[tuple[dict[str, Any], bytes]]:
  """The rows of a file, each with the bytes of its line."""
  with open(path, "rb") as file:
    for number, line in enumerate(file, 1):
      if not line.endswith(b"\n"):
        return
      if (row := _row(line)) is None:
        logging.warning("%s:%d: not a row of a run; skipped", path, number)
      else:
        yield row, line


def _row(line: bytes) -> dict[str, Any] | None:
  """The row in a line; None unless it is an object with an integer step."""
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):
    return None
  step = row.get("step") if isinstance(row, dict) else None
  is_step = isinstance(step, int) and not isinstance(step, bool)
  return row if is_step else None


def truncate(path: pathlib.Path, step: int | None) -> None:
  """Drops the rows after `step`; None drops all."""
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
  """`value` as a Python number or nested list, with float32 in short form.

  Raises TypeError, with the metric's `name`, for anything that is not numeric.
  """
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
  """`value` with NaN and infinities replaced by None, since JSON lacks them."""
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, list | tuple):
    return [finite(item) for item in value]
  if isinstance(value, Mapping):
    return {k: finite(v) for k, v in value.items()}
  if isinstance(value, np.ndarray | np.generic):
    return finite(plain("", value))
  return value
