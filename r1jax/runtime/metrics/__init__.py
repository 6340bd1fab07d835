"""Metrics of a run: JSON lines in the workdir, and optional further sinks.

    WORKDIR/metrics.jsonl      {"step": 4, "time": 1.2, "reward/mean": 0.5, ...}
    WORKDIR/completions.jsonl  {"step": 4, "prompt": "...", "reward": 1.0, ...}
    WORKDIR/updates.jsonl      {"step": 3, "loss/total": 0.1, ...}, on demand

The step of a row is that of the train state when the row was written. A run
that resumes from step s drops the rows after s, so no step appears twice.
METRICS defines every name.
"""

import math
import os
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from r1jax.runtime.console import Console
from r1jax.runtime.metrics import rows
from r1jax.runtime.metrics.names import METRICS as METRICS
from r1jax.runtime.metrics.names import describe as describe
from r1jax.runtime.metrics.names import pattern_of as pattern_of
from r1jax.runtime.metrics.performance import machine as machine
from r1jax.runtime.metrics.performance import throughput as throughput
from r1jax.runtime.metrics.reduce import by_domain as by_domain
from r1jax.runtime.metrics.reduce import combine as combine
from r1jax.runtime.metrics.reduce import deviation as deviation
from r1jax.runtime.metrics.reduce import mean as mean
from r1jax.runtime.metrics.reduce import over_hosts as over_hosts
from r1jax.runtime.metrics.sinks import SINKS, check_sinks

Path = str | os.PathLike


class Writer:
  """Writes rows of metrics to `metrics.jsonl` and to sinks.

  Only the first process of a job writes.

  Args:
    workdir: of the run.
    step: of the restored checkpoint; None starts new files.
    sinks: names of further sinks; see `SINKS`.
    update_rows: whether `updates` writes to updates.jsonl.
    console: of the run; None makes one on standard output.
  """

  def __init__(
    self,
    workdir: Path,
    *,
    step: int | None = None,
    sinks: Iterable[str] = ("tensorboard",),
    update_rows: bool = False,
    console: Console | None = None,
  ):
    names = list(dict.fromkeys(["jsonl", *sinks]))
    check_sinks(names)
    self.workdir = workdir
    self._first = jax.process_index() == 0
    self._files: dict[str, rows.Rows] = {}
    self._sinks: list[Any] = []
    past = 0.0
    if self._first:
      folder = pathlib.Path(workdir)
      folder.mkdir(parents=True, exist_ok=True)
      self._files = {
        name: rows.Rows(folder / f"{name}.jsonl", step)
        for name in ("completions", "updates")
      }
      if not update_rows:
        del self._files["updates"]
      self._sinks = [SINKS[name](folder, step) for name in names]
      past = max((_time(row) for row in read(workdir)), default=0.0)
    self._began = time.monotonic() - past
    machine()  # Starts to count compilations.
    self.console = console or Console(quiet=not self._first)

  @property
  def seconds(self) -> float:
    """Seconds that the run has taken, including those before it resumed."""
    return time.monotonic() - self._began

  def write(self, step: int, /, **values) -> None:
    """Writes a row of numbers, or lists of them, from Python, NumPy or JAX."""
    if not self._first:
      return
    plain = _plain(values)
    row = {"step": int(step), "time": round(self.seconds, 3)} | plain
    for sink in self._sinks:
      sink.write(row)

  def updates(self, step: int, updates: Sequence[Mapping[str, Any]]) -> None:
    """Writes a row to `updates.jsonl` per update; the last has this `step`."""
    if "updates" in self._files:
      first = int(step) - len(updates) + 1
      self._files["updates"].add(
        {"step": first + i} | _plain(update) for i, update in enumerate(updates)
      )

  def completions(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows to `completions.jsonl`; each must have a "step"."""
    if self._first:
      self._files["completions"].add(rows)

  def close(self) -> None:
    """Closes files, sinks and console."""
    for closing in (*self._files.values(), *self._sinks, self.console):
      closing.close()

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *error) -> None:
    self.close()


def read(workdir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
  """The rows of a run so far; malformed lines are skipped."""
  path = pathlib.Path(workdir) / name
  return [row for row, _ in rows.lines(path)] if path.exists() else []


def _time(row: Mapping[str, Any]) -> float:
  """The "time" of a row, in seconds since the run began; 0 if it has none."""
  time = row.get("time")
  return time if isinstance(time, int | float) and math.isfinite(time) else 0.0


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
  """The values as Python numbers, copied from NumPy and from devices."""
  values = jax.device_get(dict(values))
  return {name: rows.plain(name, value) for name, value in values.items()}
