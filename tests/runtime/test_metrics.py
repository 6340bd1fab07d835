"""Every number is written once, as JSON that anyone can read."""

import io
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.runtime import metrics
from r1jax.runtime.console import Console, duration


@pytest.fixture
def writer(tmp_path):
  made = []

  def make(step=None, **kwargs):
    kwargs = {"sinks": (), "console": Console(quiet=True)} | kwargs
    made.append(metrics.Writer(tmp_path, step=step, **kwargs))
    return made[-1]

  yield make
  for each in made:
    each.close()


def lines(tmp_path, name="metrics.jsonl"):
  return [json.loads(x) for x in (tmp_path / name).read_text().splitlines()]


def test_numbers_of_every_kind(tmp_path, writer):
  writer().write(
    3,
    python=1.5,
    count=12_345_678_901,
    flag=True,
    numpy=np.float32(0.1),
    double=np.float64(0.1),
    integer=np.int32(7),
    device=jnp.float32(0.3),
    half=jnp.bfloat16(1.5),
    nan=float("nan"),
    inf=jnp.float32(-math.inf),
    load=jnp.array([0.25, 0.75]),
    ragged=[1.0, np.float32(0.1), math.inf],
    **{"reward/mean": 0.5},
  )
  (row,) = lines(tmp_path)
  assert row.pop("time") >= 0
  assert row == {
    "step": 3,
    "python": 1.5,
    "count": 12_345_678_901,
    "flag": True,
    "numpy": 0.1,
    "double": 0.1,
    "integer": 7,
    "device": 0.3,
    "half": 1.5,
    "nan": None,
    "inf": None,
    "load": [0.25, 0.75],
    "ragged": [1.0, 0.1, None],
    "reward/mean": 0.5,
  }


@pytest.mark.parametrize("value", ["text", None, {}, np.array(["a"]), object()])
def test_what_is_no_number_is_refused(writer, value):
  with pytest.raises(TypeError, match="metric 'x' is"):
    writer().write(0, x=value)


def test_a_row_is_there_as_soon_as_it_is_written(tmp_path, writer):
  w = writer()
  for step in range(3):
    w.write(step, x=step)
    assert len(lines(tmp_path)) == step + 1


def test_resuming_drops_the_rows_beyond_the_checkpoint(tmp_path, writer):
  first = writer()
  for step in (0, 5, 10, 15):
    first.write(step, x=step)
    first.completions([{"step": step, "completion": "é\n\u2028\ud800"}] * 2)
  first.close()
  second = writer(step=10)
  assert [row["step"] for row in lines(tmp_path)] == [0, 5, 10]
  assert len(lines(tmp_path, "completions.jsonl")) == 6
  second.write(15, x=-15)
  assert [row["x"] for row in lines(tmp_path)] == [0, 5, 10, -15]
  second.close()
  writer(step=0).close()  # A checkpoint of step 0 keeps what came before it,
  assert [row["step"] for row in lines(tmp_path)] == [0]
  writer(step=None)  # and no checkpoint keeps nothing.
  assert lines(tmp_path) == []


@pytest.mark.parametrize("tail", ['{"step": 1, "ti', '{"step": 1}', "\x00\x00"])
def test_a_line_cut_short_is_dropped(tmp_path, writer, tail):
  w = writer()
  w.write(0, x=1)
  w.close()
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text() + tail)
  assert [row["x"] for row in metrics.read(tmp_path) if "x" in row] == [1]
  writer(step=9).write(2, x=2)
  steps = [row["step"] for row in lines(tmp_path)]
  assert steps in ([0, 2], [0, 1, 2])


def test_time_goes_on_where_it_stopped(tmp_path, writer):
  w = writer()
  w.write(1, x=0)
  w.close()
  path = tmp_path / "metrics.jsonl"
  path.write_text(json.dumps(lines(tmp_path)[0] | {"time": 1000.0}) + "\n")
  w = writer(step=1)
  w.write(2, x=0)
  assert 1000 <= w.seconds < 1100
  assert 1000 <= lines(tmp_path)[1]["time"] < 1100


def test_reading_a_run_that_has_not_begun(tmp_path):
  assert metrics.read(tmp_path) == []


def test_a_row_for_every_update_on_demand(tmp_path, writer):
  updates = [{"loss/total": np.float32(0.1)}, {"loss/total": jnp.float32(2)}]
  writer().updates(2, updates)
  assert not (tmp_path / "updates.jsonl").exists()
  first = writer(update_rows=True)
  first.updates(2, updates)
  first.updates(4, updates)
  assert lines(tmp_path, "updates.jsonl") == [
    {"step": step, "loss/total": loss}
    for step, loss in zip((1, 2, 3, 4), (0.1, 2, 0.1, 2))
  ]
  first.close()
  second = writer(step=2, update_rows=True)
  second.updates(4, updates)
  steps = [row["step"] for row in lines(tmp_path, "updates.jsonl")]
  assert steps == [1, 2, 3, 4]  # No step twice.
  second.close()
  writer(step=2)  # Nor any beyond the step, whoever asks for them now.
  assert len(lines(tmp_path, "updates.jsonl")) == 2


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_plain_lines_come_slowly():
  file = io.StringIO()
  console = Console(file=file)
  for done in range(1, 101):
    console.progress(done, 100, reward=done / 100, tokens_per_second=4321.5)
  console.progress(100, 100)  # As of bytes, counted in megabytes.
  printed = file.getvalue().splitlines()
  assert printed[0] == "round 1/100  reward 0.01  4,322 tokens/s"
  assert printed[-1] == "round 100/100  0:00 left  reward 1  4,322 tokens/s"
  assert len(printed) == 2


def test_time_left_is_that_of_the_rounds_to_come(monkeypatch):
  now = 1000.0  # Compiling took a thousand seconds.
  monkeypatch.setattr("time.monotonic", lambda: now)
  file = io.StringIO()
  console = Console(file=file)
  console.progress(21, 40)
  for done in (22, 23, 24):
    now += 10
    console.progress(done, 40)
  assert file.getvalue().splitlines() == [
    "round 21/40",
    "round 22/40  3:00 left",
    "round 23/40  2:50 left",
    "round 24/40  2:40 left",
  ]


def test_durations():
  assert [duration(s) for s in (0.4, 59.6, 754.0, 3723.0)] == [
    "0:00", "1:00", "12:34", "1:02:03",
  ]  # fmt: skip


def test_compiling_is_shown_as_such():
  file = io.StringIO()
  with Console(file=file).compiling("sampler"):
    pass
  assert file.getvalue() == "compiling the sampler ... 0.0 s\n"
  file = Terminal()
  console = Console(file=file)
  with pytest.raises(KeyError), console.compiling("sampler"):
    raise KeyError
  console.close()
  assert "compiling the sampler ... stopped" in file.getvalue()


HOSTILE = "[bold]x[/] [/nope] \x1b[2J\x07 </think> 你好 \ud800" + "z" * 9000


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_completions_are_shown_as_they_are(kind, monkeypatch):
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "100")
  file = kind()
  console = Console(file=file)
  console.progress(1, 9, reward=0.5)
  console.show_completion(
    "prompt [red]", HOSTILE, {"accuracy": 1.0, "format": 0.0}
  )
  console.note("[link]note[/link] \x1b[1m")
  console.phase("[sampling]")
  console.close()
  printed = file.getvalue()
  for text in (
    "prompt [red]",
    "[bold]x[/] [/nope]",
    "</think> 你好",
    "[link]note",
  ):
    assert text in printed
  assert "accuracy 1" in printed
  assert "\x1b[2J" not in printed
  assert "\x07" not in printed
  assert "\ud800" not in printed
  assert printed.count("z") < 3000


def test_a_quiet_console_is_quiet():
  file = io.StringIO()
  console = Console(file=file, quiet=True)
  console.progress(1, 2)
  console.note("x")
  console.phase("y")
  console.show_completion("p", "c", {"accuracy": 1.0})
  with console.compiling("z"):
    pass
  assert file.getvalue() == ""


def test_a_terminal_without_unicode(tmp_path):
  with open(tmp_path / "out", "w", encoding="ascii") as file:
    Console(file=file).show_completion("你", "好", {})
  assert "?" in (tmp_path / "out").read_text()
