"""The rounds that were asked for are traced, and no others."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from r1jax.runtime import profiler
from r1jax.runtime.profiler import Profiler, Window


@pytest.fixture
def traces(monkeypatch):
  """What was started, begun and stopped, in order."""
  events = []

  class Annotation:
    def __init__(self, name, step_num):
      self.name = f"{name} {step_num}"

    def __enter__(self):
      events.append(self.name)

    def __exit__(self, *error):
      events.append(f"end {self.name}")

  monkeypatch.setattr(
    jax.profiler, "start_trace", lambda folder: events.append("start")
  )
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
  monkeypatch.setattr(jax.profiler, "StepTraceAnnotation", Annotation)
  return events


def test_a_window_is_parsed():
  assert profiler.parse("3:2") == Window(3, 2)
  assert profiler.parse("0:1") == Window(0, 1)
  for text in (
    "",
    ":",
    "3",
    "3:",
    ":2",
    "3:0",
    "-1:2",
    "3:2:1",
    "a:b",
    "1.5:1",
  ):
    with pytest.raises(ValueError, match="give FIRST:COUNT"):
      profiler.parse(text)


def run(rounds, window, tmp_path, **kwargs):
  said = []
  with Profiler(str(tmp_path), window, log=said.append, **kwargs) as traced:
    for round in rounds:
      traced.begin(round)
  return said


def test_rounds_are_counted_from_the_beginning_of_the_run(traces, tmp_path):
  (said,) = run(range(6), Window(2, 2), tmp_path)
  assert traces == [
    "start", "round 2", "end round 2", "round 3", "end round 3", "stop",
  ]  # fmt: skip
  assert said.startswith(f"the trace of 2 rounds is in {tmp_path}/profile")
  traces.clear()
  (said,) = run(range(3, 6), Window(2, 2), tmp_path)  # Resumed in between.
  assert traces == ["start", "round 3", "end round 3", "stop"]
  assert said.startswith("the trace of 1 round is")


def test_a_run_that_stops_within_the_window_keeps_its_trace(traces, tmp_path):
  said = []
  with pytest.raises(KeyboardInterrupt):
    with Profiler(str(tmp_path), Window(0, 9), log=said.append) as traced:
      traced.begin(0)
      raise KeyboardInterrupt
  assert traces == ["start", "round 0", "end round 0", "stop"]
  assert len(said) == 1


def test_nothing_to_trace_is_said_once(traces, tmp_path):
  assert run(range(5, 9), Window(2, 2), tmp_path) == [
    "nothing is traced for --profile=2:2: the run resumed at round 5"
  ]
  assert run(range(4), Window(7, 1), tmp_path, unit="step") == [
    "nothing is traced for --profile=7:1: the run ended before step 7"
  ]
  assert run(range(4), None, tmp_path) == []
  assert traces == []


def test_the_phases_have_their_names_in_the_trace(tmp_path):
  said = []
  with Profiler(str(tmp_path), Window(1, 1), log=said.append) as traced:
    for round in range(3):
      traced.begin(round)
      with jax.profiler.TraceAnnotation("sampling"):
        jnp.arange(round + 3).block_until_ready()
  (file,) = (tmp_path / "profile").rglob("*.trace.json.gz")
  events = json.load(gzip.open(file))["traceEvents"]
  steps = [e for e in events if e.get("name") == "round"]
  assert [e["args"]["step_num"] for e in steps] == ["1"]
  assert sum(e.get("name") == "sampling" for e in events) == 1
  assert str(tmp_path / "profile") in said[0]
