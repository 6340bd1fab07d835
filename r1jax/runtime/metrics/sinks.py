"""Sinks: destinations of metrics. To add one, add a function to SINKS.

A sink is a function of (workdir, step) that returns a `Sink`. `step` is that of
the restored checkpoint, or None for a new run.
"""

import difflib
import importlib.util
import json
import math
import numbers
import os
import pathlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from r1jax.runtime.metrics.rows import Rows

Row = Mapping[str, Any]


class Sink(NamedTuple):
  """An open sink."""

  write: Callable[[Row], None]  # A row has "step", "time" and the metrics.
  close: Callable[[], None]


def jsonl(workdir: pathlib.Path, step: int | None) -> Sink:
  """A sink for WORKDIR/metrics.jsonl; drops the rows after `step`."""
  rows = Rows(workdir / "metrics.jsonl", step)
  return Sink(lambda row: rows.add([row]), rows.close)


def tensorboard(workdir: pathlib.Path, step: int | None) -> Sink:
  """A sink for WORKDIR/tensorboard; hides the scalars after `step`."""
  from tensorboardX import SummaryWriter

  writer = SummaryWriter(
    str(workdir / "tensorboard"),
    purge_step=0 if step is None else step + 1,
    flush_secs=20,
  )

  def write(row: Row) -> None:
    for name, value in _scalars(row):
      writer.add_scalar(name, value, row["step"])

  return Sink(write, writer.close)


def wandb(workdir: pathlib.Path, step: int | None) -> Sink:
  """A sink for Weights & Biases; WORKDIR/wandb.json stores the id of the run.

  A run that resumes does not send the same rows twice. The environment sets the
  account and project (WANDB_API_KEY, WANDB_PROJECT, WANDB_MODE).
  """
  import wandb as library

  path, state = workdir / "wandb.json", {}
  if step is not None and path.exists():
    state = json.loads(path.read_text())
  state = {"id": secrets.token_hex(4), "sent": -1} | state
  sent = state["sent"]
  run = library.init(
    id=state["id"], name=workdir.name, dir=str(workdir), resume="allow"
  )
  run.define_metric("*", step_metric="step")

  def write(row: Row) -> None:
    if row["step"] <= sent:
      return
    run.log({"step": row["step"], **dict(_scalars(row))})
    state["sent"] = max(state["sent"], row["step"])
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(state))
    os.replace(draft, path)

  return Sink(write, run.finish)


def _scalars(row: Row) -> Iterator[tuple[str, float]]:
  """The metrics of a row that are finite numbers, not lists."""
  for name, value in row.items():
    if name in ("step", "time"):
      continue
    if isinstance(value, numbers.Real) and math.isfinite(value):
      yield name, value


SINKS: dict[str, Callable[[pathlib.Path, int | None], Sink]] = {
  "jsonl": jsonl,
  "tensorboard": tensorboard,
  "wandb": wandb,
}


def check_sinks(names: Iterable[str]) -> None:
  """Raises ValueError for a sink that does not exist, or is not installed."""
  for name in names:
    if name not in SINKS:
      close = difflib.get_close_matches(name, SINKS, 1)
      hint = f"did you mean {close[0]!r}?" if close else f"have {[*SINKS]}"
      raise ValueError(f"unknown metrics sink {name!r}; {hint}")
    if name == "wandb" and importlib.util.find_spec("wandb") is None:
      raise ValueError(
        "the metrics sink 'wandb' needs the package wandb: pip install wandb, "
        "or leave the sink out"
      )
