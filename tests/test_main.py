"""What is wrong is said in one line; what was stopped goes on."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

LOOP = """
import json, os, pathlib, signal, time
from r1jax.runtime import checkpoint, interrupt

def optimizer(params, *, learning_rate, decay=0.0): ...
def sums(*, digits): ...
def words(*, letters=3): ...

SECTIONS = {"optimizer": optimizer, "dataset": {"sums": sums, "words": words}}
FIELDS = ("seed", "num_steps", "mode", "cpu_devices")

def check(config):
  if config.num_steps < 0:
    raise ValueError(f"num_steps is {config.num_steps}, but must be positive")

def train(config, workdir, *, profile=None, sinks=(), replay=None):
  print(json.dumps(config.to_dict()), flush=True)
  print("asked", profile, sinks, replay)
  if config.mode == "bug":
    raise RuntimeError("a bug")
  if config.mode == "input":
    raise ValueError("line one\\n line two")
  if config.mode == "file":
    open("/nowhere/data.jsonl")
  if config.mode == "full":
    raise OSError(28, "No space left on device")
  if config.mode == "cache":
    import jax
    print(jax.config.jax_compilation_cache_dir)
  if config.mode == "ok":
    from r1jax.runtime import metrics
    with metrics.Writer(workdir) as writer:
      writer.write(1, **{"loss/total": 0.5})
    (pathlib.Path(workdir) / "summary.json").write_text('{"rl_steps": 1}\\n')
  if config.mode == "stop":
    import numpy as np
    try:
      os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
    except interrupt.Interrupted:
      with interrupt.deferred():
        if "EARLY" not in os.environ:
          checkpoint.save(workdir, 7, {"x": np.ones(3)})
      raise
"""

CONFIG = """
from ml_collections import ConfigDict

def get_config(mode=""):
  c = ConfigDict()
  c.loop = "fake"
  c.cpu_devices = 1
  c.seed, c.num_steps, c.mode = 0, 3, mode
  c.optimizer = dict(learning_rate=0.1)
  c.dataset = dict(name="sums", digits=2)
  return c

def sweep():
  for seed in range(3):
    yield {"seed": seed, "optimizer.learning_rate": 0.5}
"""

DRIVER = """
from r1jax import config
from r1jax.tools import train
config.LOOPS["fake"] = "fake_loop"
train.run("python -m r1jax train")
"""


@pytest.fixture
def command(tmp_path, python):
  """Runs the command line on a loop that only exists here."""
  (tmp_path / "fake_loop.py").write_text(LOOP)
  (tmp_path / "c.py").write_text(CONFIG)
  (tmp_path / "broken.py").write_text("def get_config():\n  return undefined\n")

  def run(*arguments, **env):
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    return python(
      *("-c", DRIVER, *arguments), env={"PYTHONPATH": path, **env}, cwd=tmp_path
    )

  return run


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "--config is not set; set it to a file"),
    (["--workdir=w"], "--config is not set; set it to a file"),
    (["--config=c.py"], "--workdir is not set; set it to a folder"),
    (["--config=nope.py", "--workdir=w"], "no config file 'nope.py'"),
    (
      ["--config=c.py", "--wrokdir=w"],
      "unknown flag --wrokdir; did you mean --workdir?",
    ),
    (
      ["--config=c.py", "--config.optimiser.learning_rate=1"],
      "unknown config key 'optimiser'; did you mean 'optimizer'?",
    ),
    (
      ["--config=c.py", "--config.optimizer.learning_rat", "1"],
      "unknown config key 'optimizer.learning_rat'; "
      "did you mean 'optimizer.learning_rate'?",
    ),
    (["--config.seed=1", "--workdir=w"], "--config.seed needs --config=FILE"),
    (
      ["--config=c.py", "--config.seed=x", "--workdir=w"],
      "flag --config.seed=x: invalid literal for int() with base 10: 'x'",
    ),
    (
      ["--config=broken.py", "--workdir=w"],
      "broken.py:2: NameError: name 'undefined' is not defined",
    ),
    (["--config=c.py", "--workdir=w", "extra"], "unknown argument 'extra'"),
    (
      ["--config=c.py", "--workdir=w", "--sweep=3"],
      "--sweep=3, but c.py has 3 settings",
    ),
    (
      ["--config=c.py", "--workdir=w", "--config.num_steps=-1"],
      "num_steps is -1, but must be positive",
    ),
    (
      ["--config=c.py", "--workdir=w", "--config.loop=fkae"],
      "unknown loop 'fkae'; did you mean 'fake'?",
    ),
    (
      ["--config=c.py", "--workdir=w", "--config.dataset.name=sum"],
      "unknown dataset.name 'sum'; did you mean 'sums'?",
    ),
    *(
      (
        ["--config=c.py", "--workdir=w", f"--profile={window}"],
        f"--profile={window}: give FIRST:COUNT, such as 3:2",
      )
      for window in ("3", "x:1", "3:0", "-1:2", "1:2:3")
    ),
    (
      ["--config=c.py", "--workdir=w", "--update_rows"],
      "the loop 'fake' has no --update_rows",
    ),
    (
      ["--config=c.py", "--workdir=w", "--sinks=tensorbord"],
      "unknown metrics sink 'tensorbord'; did you mean 'tensorboard'?",
    ),
    (
      ["--config=c.py", "--workdir=w", "--replay=nowhere"],
      "--replay=nowhere: it has no rollouts; use the workdir of a run",
    ),
    (["--config=c.py:input", "--workdir=w"], "line one line two"),
    (["--config=c.py:file", "--workdir=w"], "no file '/nowhere/data.jsonl'"),
    (
      ["--config=c.py:full", "--workdir=w"],
      "w: No space left on device; free some space, then run the same command",
    ),
    (
      ["--config=c.py", "--workdir=c.py"],
      "cannot write to --workdir: c.py: File exists; a file is in its place",
    ),
    (
      ["--config=c.py", "--workdir=gs://b/run"],
      "--workdir=gs://b/run is a URL, and a workdir is a folder: it is locked "
      "and appended to; choose a folder that all hosts share, and keep the "
      "checkpoints in the bucket by --bucket=gs://b/run",
    ),
    (
      ["--config=c.py", "--workdir=w", "--bucket=c.py/bucket"],
      "cannot write to c.py/bucket: ",
    ),
    (
      ["--config=c.py", "--num_processes=2", "--process_id=2"]
      + ["--coordinator_address=localhost:1"],
      "--process_id is 2, but with --num_processes=2 it must be from 0 to 1",
    ),
  ],
  ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_line(command, arguments, message):
  done = command(*arguments)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith(f"error: {message}")


def test_debug_shows_the_trace(command):
  done = command("--config=c.py:input", "--workdir=w", "--debug")
  assert done.returncode == 2
  assert "Traceback" in done.stderr
  assert done.stderr.splitlines()[-1] == "error: line one line two"


def test_a_bug_shows_the_trace(command):
  done = command("--config=c.py:bug", "--workdir=w")
  assert done.returncode == 1
  assert "Traceback" in done.stderr
  assert "RuntimeError: a bug" in done.stderr


def test_overrides_go_over_the_sweep(command):
  done = command(
    *("--config=c.py", "--workdir=w", "--sweep=2"),
    *("--config.optimizer.learning_rate=0.25", "--config.mode", "ok"),
  )
  assert done.returncode == 0, done.stderr
  assert '"seed": 2' in done.stdout
  assert '"learning_rate": 0.25' in done.stdout
  assert '"mode": "ok"' in done.stdout


def test_what_is_asked_beside_the_config_reaches_the_loop(command, tmp_path):
  (tmp_path / "old" / "rollouts").mkdir(parents=True)
  done = command(
    "--config=c.py", "--workdir=w", "--profile=3:2", "--replay=old"
  )
  assert "asked Window(first=3, count=2) () old" in done.stdout
  done = command("--config=c.py", "--workdir=w", "--sinks=jsonl,tensorboard")
  assert "asked None ('jsonl', 'tensorboard') None" in done.stdout


def test_a_run_ends_with_its_report_and_its_summary(command, tmp_path):
  done = command("--config=c.py:ok", "--workdir=w")
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "w" / "report.html").exists()
  assert done.stdout.splitlines()[-1] == '{"rl_steps": 1}'


def test_programs_are_cached_between_starts(command, tmp_path):
  done = command("--config=c.py:cache", "--workdir=w", HOME=str(tmp_path))
  assert str(tmp_path / ".cache" / "r1jax" / "xla") in done.stdout
  done = command(
    *("--config=c.py:cache", "--workdir=w"),
    JAX_COMPILATION_CACHE_DIR=str(tmp_path / "elsewhere"),
  )
  assert str(tmp_path / "elsewhere") in done.stdout


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stopped_run_says_how_to_go_on(command, name, code):
  done = command("--config=c.py:stop", "--workdir=a b", SIGNAL=name)
  assert done.returncode == code
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("stopped at step 7; to resume, run the same command: ")
  assert last.endswith(
    "python -m r1jax train --config=c.py:stop '--workdir=a b'"
  )
  assert "Traceback" not in done.stderr


def test_a_run_stopped_early_says_so(command):
  done = command(
    "--config=c.py:stop", "--workdir=w", SIGNAL="SIGINT", EARLY="1"
  )
  assert done.returncode == 130
  assert "stopped before the first checkpoint" in done.stderr


def test_help_is_not_an_error_report():
  done = subprocess.run(
    [sys.executable, "-m", "r1jax", "train", "--help"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert "--workdir" in done.stdout
  assert "Traceback" not in done.stderr
