"""The demo's promises, and that no moment is a bad one to be killed."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from r1jax.runtime import checkpoint, metrics

ROOT = pathlib.Path(__file__).parents[1]
SMALL = {
  "num_steps": 8,
  "prompts_per_round": 6,
  "group_size": 4,
  "checkpoint_every": 2,
  "reference_every": 4,
  "evaluation.every": 4,
  "evaluation.problems": 4,
  "evaluation.samples": 2,
  "evaluation.problems_between": 2,
  "evaluation.samples_between": 2,
}
# It runs as a user runs it, not as other tests do.
ENVIRONMENT = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}


def command(workdir, overrides, variant=""):
  return [
    sys.executable,
    "-m",
    "r1jax",
    "train",
    f"--config=experiments/demo.py{variant}",
    f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in overrides.items()),
  ]


def run(workdir, overrides, variant="", timeout=1800):
  done = subprocess.run(
    command(workdir, overrides, variant),
    cwd=ROOT,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
    timeout=timeout,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads((workdir / "summary.json").read_text())


def rows_without_times(workdir):
  """By step: the base may be measured after a later round than the first."""
  rows = [
    {
      key: value
      for key, value in row.items()
      if key != "time" and not key.startswith("perf/")
    }
    for row in metrics.read(str(workdir))
  ]
  return sorted(rows, key=lambda row: (row["step"], "round" in row))


@pytest.mark.demo
def test_half_of_the_demo_learns(tmp_path):
  """The command of `make demo`, with fewer updates and a smaller exam."""
  half = {
    "num_steps": 44,
    "evaluation.every": 44,
    "evaluation.problems": 64,
    "evaluation.samples": 4,
  }
  summary = run(tmp_path, half)
  assert summary["zero_pass_at_1"] >= summary["base_pass_at_1"] + 0.15
  assert summary["zero_mean_length"] > summary["base_mean_length"]
  assert (tmp_path / "report.html").exists()


@pytest.mark.soak
def test_a_run_killed_again_and_again_is_the_straight_run(tmp_path):
  run(tmp_path / "straight", SMALL)
  rng = random.Random(0)
  killed = tmp_path / "killed"
  for _ in range(12):
    process = subprocess.Popen(
      command(killed, SMALL),
      cwd=ROOT,
      env=ENVIRONMENT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    time.sleep(rng.uniform(5, 40))
    process.send_signal(signal.SIGKILL)
    process.wait()
  run(killed, SMALL)
  assert rows_without_times(killed) == rows_without_times(tmp_path / "straight")
  ours, theirs = (
    checkpoint.load_params(str(tmp_path / name))
    for name in ("straight", "killed")
  )
  for name in ("moe", "dense"):
    for key, value in ours[name].items():
      np.testing.assert_array_equal(value, theirs[name][key])


@pytest.mark.soak
def test_three_seeds_learn_and_a_coin_does_not(tmp_path):
  for seed in range(3):
    summary = run(tmp_path / str(seed), {"seed": seed})
    tasks = summary["tasks"].values()
    solved = [
      t
      for t in tasks
      if t["base_pass_at_1"] <= 0.5 and t["zero_pass_at_1"] >= 0.8
    ]
    assert len(solved) >= 2
    assert all(t["zero_pass_at_1"] >= t["base_pass_at_1"] + 0.1 for t in tasks)
    assert summary["zero_mean_length"] >= 1.2 * summary["base_mean_length"]
    assert any(
      t["zero_pass_at_1"] >= t["base_best_style_pass_at_1"] + 0.05
      for t in tasks
    )
  coin = run(tmp_path / "coin", {}, ":random_reward")
  for task in coin["tasks"].values():
    error = np.hypot(
      task["base_pass_at_1_stderr"], task["zero_pass_at_1_stderr"]
    )
    assert task["zero_pass_at_1"] <= task["base_pass_at_1"] + 2 * error
