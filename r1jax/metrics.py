"""The numbers of a run: one JSON object per line, always, and TensorBoard.

    WORKDIR/metrics.jsonl      {"step": 4, "time": 1.2, "reward/mean": 0.5, ...}
    WORKDIR/completions.jsonl  {"step": 4, "prompt": "...", "reward": 1.0, ...}

A row's step is that of the train state when it was written. A run that resumes
from step s drops the rows beyond s, so no step is ever there twice. What each
name means is in METRICS.
"""

import json
import math
import numbers
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from r1jax.console import Console

Path = str | os.PathLike


class TensorBoard:
  """Scalars for TensorBoard, in WORKDIR/tensorboard; lists are skipped."""

  def __init__(self, workdir: Path, step: int | None):
    from tensorboardX import SummaryWriter

    self._writer = SummaryWriter(
      str(pathlib.Path(workdir) / "tensorboard"),
      purge_step=0 if step is None else step + 1,
    )

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds the finite numbers of a row."""
    for name, value in values.items():
      if isinstance(value, numbers.Real) and math.isfinite(value):
        self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    """Writes what is left."""
    self._writer.close()


SINKS: dict[str, Callable] = {"tensorboard": TensorBoard}


class Writer:
  """Writes rows to `metrics.jsonl`, to sinks, and shows them on a console.

  `step` is that of the restored checkpoint; None starts the files over. Only
  the first process of a job writes.
  """

  def __init__(
    self,
    workdir: Path,
    *,
    step: int | None = None,
    sinks: Iterable[str] = ("tensorboard",),
    console: Console | None = None,
  ):
    self._folder = pathlib.Path(workdir)
    self._first = jax.process_index() == 0
    self._files: dict[str, Any] = {}
    self._sinks: list[Any] = []
    past = 0.0
    if self._first:
      self._folder.mkdir(parents=True, exist_ok=True)
      for name in ("metrics.jsonl", "completions.jsonl"):
        _truncate(self._folder / name, step)
      past = max((row["time"] for row in read(workdir)), default=0.0)
      self._sinks = [SINKS[name](workdir, step) for name in sinks]
    self._began = time.monotonic() - past
    self.console = console or Console(quiet=not self._first)

  @property
  def seconds(self) -> float:
    """Seconds since the run began, those of earlier sessions included."""
    return time.monotonic() - self._began

  def write(self, step: int, /, **values) -> None:
    """Adds a row: numbers, or lists of them, from Python, NumPy or JAX."""
    if not self._first:
      return
    plain = {k: _plain(k, v) for k, v in jax.device_get(values).items()}
    row = {"step": int(step), "time": round(self.seconds, 3)} | plain
    self._append("metrics.jsonl", [row])
    for sink in self._sinks:
      sink.write(int(step), plain)

  def completions(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows to `completions.jsonl`; each must say its `step`."""
    if self._first:
      self._append("completions.jsonl", rows)

  def close(self) -> None:
    """Closes files, sinks and console."""
    for closing in (*self._files.values(), *self._sinks, self.console):
      closing.close()
    self._files, self._sinks = {}, []

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    if name not in self._files:
      self._files[name] = open(self._folder / name, "a", encoding="utf-8")
    for row in rows:
      row = {k: _finite(v) for k, v in row.items()}
      self._files[name].write(json.dumps(row, ensure_ascii=False) + "\n")
    self._files[name].flush()


def read(workdir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
  """The rows of a run so far; a last line cut short by a crash is left out."""
  path = pathlib.Path(workdir) / name
  return [row for row, _ in _lines(path)] if path.exists() else []


def _lines(path: pathlib.Path) -> Iterator[tuple[dict[str, Any], bytes]]:
  """Whole rows of a file, with their bytes, up to the first broken line."""
  with open(path, "rb") as file:
    for line in file:
      try:
        yield json.loads(line), line
      except ValueError:
        return
      if not line.endswith(b"\n"):
        return


def _truncate(path: pathlib.Path, step: int | None) -> None:
  """Drops the rows beyond `step`; None drops all."""
  if not path.exists():
    return
  draft = path.with_suffix(".tmp")
  with open(draft, "wb") as file:
    if step is not None:
      for row, line in _lines(path):
        if row["step"] <= step:
          file.write(line)
  os.replace(draft, path)


def _plain(name: str, value: Any) -> Any:
  """A number or (nested) list of numbers; float32 keeps its short form."""
  if isinstance(value, np.ndarray | np.generic):
    if value.dtype.kind not in "biuf" and value.dtype.name != "bfloat16":
      raise TypeError(f"metric {name!r} is an array of {value.dtype}")
    if value.ndim:
      return [_plain(name, item) for item in value]
    if value.dtype.itemsize < 8 and value.dtype.kind not in "biu":
      return float(str(np.float32(value)))
    return value.item()
  if isinstance(value, list | tuple):
    return [_plain(name, item) for item in value]
  if not isinstance(value, numbers.Real):
    raise TypeError(f"metric {name!r} is {type(value).__name__}: {value!r}")
  return value


def _finite(value: Any) -> Any:
  """JSON has no NaN and no infinity: they become null."""
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, list | tuple):
    return [_finite(item) for item in value]
  if isinstance(value, Mapping):
    return {k: _finite(v) for k, v in value.items()}
  if isinstance(value, np.ndarray | np.generic):
    return _finite(_plain("", value))
  return value
