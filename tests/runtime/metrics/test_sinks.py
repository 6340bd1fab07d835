"""Every sink gets every row once."""

import importlib.util
import json
import math
import sys
import types

import pytest
from tensorboardX import proto

from r1jax.runtime import metrics
from r1jax.runtime.console import Console
from r1jax.runtime.metrics import sinks


@pytest.fixture
def writer(tmp_path):
  made = []

  def make(step=None, **kwargs):
    console = Console(quiet=True)
    made.append(metrics.Writer(tmp_path, step=step, console=console, **kwargs))
    return made[-1]

  yield make
  for each in made:
    each.close()


def events(folder):
  for path in sorted(folder.glob("events*")):
    data, at = path.read_bytes(), 0
    while at < len(data):  # Length, its checksum, an event, its checksum.
      size = int.from_bytes(data[at : at + 8], "little")
      yield proto.event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
      at += size + 16


def test_tensorboard_gets_the_numbers_and_no_lists(tmp_path, writer):
  w = writer(sinks=("tensorboard",))
  w.write(4, x=0.5, load=[1.0, 2.0], nan=math.nan)
  w.close()
  found = {
    value.tag: (event.step, value.simple_value)
    for event in events(tmp_path / "tensorboard")
    for value in event.summary.value
  }
  assert found == {"x": (4, 0.5)}


class Library(types.ModuleType):
  """The part of wandb that the sink uses."""

  def __init__(self):
    super().__init__("wandb")
    self.__spec__ = importlib.util.spec_from_loader("wandb", None)
    self.ids, self.rows = [], []
    self.finish = self.define_metric = lambda *a, **k: None

  def init(self, *, id, name, dir, resume):
    self.ids.append(id)
    return self

  def log(self, row):
    self.rows.append(row)


def test_wandb_gets_no_step_twice(tmp_path, writer, monkeypatch):
  library = Library()
  monkeypatch.setitem(sys.modules, "wandb", library)
  w = writer(sinks=("wandb",))
  w.write(2, x=0.5, load=[1.0])
  w.write(0, x=math.nan, base=1)  # Later, of an earlier step.
  w.write(4, x=0.25)
  w.close()
  w = writer(sinks=("wandb",), step=2)
  w.write(4, x=0.25)
  w.write(6, x=0.125)
  assert library.rows == [
    {"step": 2, "x": 0.5},
    {"step": 0, "base": 1},
    {"step": 4, "x": 0.25},
    {"step": 6, "x": 0.125},
  ]
  writer(sinks=("wandb",))  # Begins another run.
  assert library.ids[0] == library.ids[1] != library.ids[2]


def test_json_lines_are_always_written(tmp_path, writer):
  for names in ((), ("jsonl",), ("jsonl", "tensorboard")):
    w = writer(sinks=names)
    w.write(1, x=1)
    w.close()
    assert len(metrics.read(tmp_path)) == 1


def test_a_sink_that_cannot_be_had_is_named(writer, monkeypatch):
  with pytest.raises(ValueError, match="sink 'wnadb'; did you mean 'wandb'"):
    writer(sinks=("wnadb",))
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *rest: None if name == "wandb" else find(name, *rest),
  )
  with pytest.raises(ValueError, match="pip install wandb, or leave"):
    writer(sinks=("wandb",))


def test_another_sink_is_one_function(tmp_path, writer, monkeypatch):
  rows = []
  sink = lambda workdir, step: sinks.Sink(rows.append, lambda: None)
  monkeypatch.setitem(metrics.SINKS, "list", sink)
  writer(sinks=("list",)).write(3, x=1)
  assert [(row["step"], row["x"]) for row in rows] == [(3, 1)]
  assert json.loads((tmp_path / "metrics.jsonl").read_text()) == rows[0]
