"""All stages of R1 run in order, whenever they are killed."""

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


COMMAND = (
  *(sys.executable, "-m", "r1jax", "train", "--workdir=r1"),
  "--config=experiments/r1/pipeline.py:smoke",
)


def folder(path):
  """A folder in which the command runs: paths of two of them are the same."""
  path.mkdir()
  (path / "experiments").symlink_to(ROOT / "experiments")
  return path


def finish(place):
  done = subprocess.run(
    COMMAND,
    cwd=place,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
    timeout=1800,
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  return done.stdout


def kill_after(place, reached, signal_number=signal.SIGKILL):
  """Starts the pipeline, and sends it a signal once `reached()`."""
  process = subprocess.Popen(
    COMMAND,
    cwd=place,
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


def outputs(place):
  """The checksum of all that every stage made, by stage and name."""
  workdir = place / "r1"
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
  place = folder(tmp_path / "killed")
  kill_after(place, (place / "r1" / "reasoning_rl" / "checkpoints").exists)
  before = artefacts.read(place / "r1" / "zero")
  text = finish(place)
  assert "zero: finished" in text and "reasoning_rl: resumes" in text
  assert artefacts.read(place / "r1" / "zero") == before
  made = outputs(place)
  assert all(made.values()), made
  again = finish(place)
  assert again.count(": finished") == len(made)


@pytest.mark.soak
def test_ten_kills_end_in_the_artefacts_of_a_straight_run(tmp_path):
  straight = folder(tmp_path / "straight")
  killed = folder(tmp_path / "killed")
  finish(straight)
  rng = random.Random(0)
  for i in range(10):
    end = time.monotonic() + rng.uniform(10, 90)
    kill_after(
      killed,
      lambda end=end: time.monotonic() > end,
      (signal.SIGKILL, signal.SIGTERM)[i % 2],
    )
  finish(killed)
  assert outputs(killed) == outputs(straight)
