"""All stages of R1 run in order, whenever they are killed."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from r1jax.training import artefacts, pipeline

ROOT = pathlib.Path(__file__).parents[1]
BASE = ROOT / "r1jax" / "base_r1"
# It runs as a user runs it, not as other tests do.
ENVIRONMENT = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}

pytestmark = pytest.mark.skipif(
  not BASE.exists(), reason="no r1jax/base_r1; `make r1-base` makes it"
)


def command(workdir):
  config = "--config=experiments/r1/pipeline.py:smoke"
  return [
    *(sys.executable, "-m", "r1jax", "train", config),
    f"--workdir={workdir}",
  ]


def finish(workdir):
  done = subprocess.run(
    command(workdir),
    cwd=ROOT,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
    timeout=1800,
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  return done.stdout


def kill_after(workdir, reached, signal_number=signal.SIGKILL):
  """Starts the pipeline, and sends it a signal once `reached()`."""
  process = subprocess.Popen(
    command(workdir),
    cwd=ROOT,
    env=ENVIRONMENT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  deadline = time.monotonic() + 900
  while not reached() and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.1)
  process.send_signal(signal_number)
  process.wait(timeout=120)


def outputs(workdir):
  """The checksum of all that every stage made, by stage and name."""
  return {
    stage: {
      name: output["sha256"]
      for name, output in artefacts.read(workdir / stage)["outputs"].items()
    }
    for stage in pipeline.stage_names(workdir)
  }


@pytest.mark.demo
def test_a_pipeline_that_is_killed_goes_on_where_it_was(tmp_path):
  """In the middle of its reasoning RL."""
  checkpoints = tmp_path / "r1" / "reasoning_rl" / "checkpoints"
  kill_after(tmp_path / "r1", checkpoints.exists)
  before = json.loads((tmp_path / "r1/zero/artefact.json").read_text())
  text = finish(tmp_path / "r1")
  assert "zero: finished" in text and "reasoning_rl: resumes" in text
  assert json.loads((tmp_path / "r1/zero/artefact.json").read_text()) == before
  made = outputs(tmp_path / "r1")
  assert all(made.values()), made
  again = finish(tmp_path / "r1")
  assert again.count(": finished") == len(made)


@pytest.mark.soak
def test_ten_kills_end_in_the_artefacts_of_a_straight_run(tmp_path):
  finish(tmp_path / "straight")
  rng = random.Random(0)
  for i in range(10):
    end = time.monotonic() + rng.uniform(10, 90)
    kill_after(
      tmp_path / "killed",
      lambda end=end: time.monotonic() > end,
      (signal.SIGKILL, signal.SIGTERM)[i % 2],
    )
  finish(tmp_path / "killed")
  assert outputs(tmp_path / "killed") == outputs(tmp_path / "straight")
