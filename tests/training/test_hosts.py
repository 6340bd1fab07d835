"""Several processes are one run: they compute, fail, stop and resume as one."""

import os
import shutil
import signal
import time

import jax
import job
import numpy as np
import pytest

from r1jax import data
from r1jax.rollouts import records
from r1jax.runtime import checkpoint
from r1jax.types import Example

pytestmark = pytest.mark.cluster

# The second problem of each round is in the second shard's queue.
LETTERS = [Example("", "", "", str(i)) for i in range(40)]
IDS = [data.draw(LETTERS, 4, seed=3, step=i)[1].id for i in range(4)]


@pytest.fixture(scope="module")
def run(command, tmp_path_factory):
  """`run(processes, devices, workdir, *flags)`: a job, from start to end."""
  name = "JAX_COMPILATION_CACHE_DIR"
  cache = os.environ.get(name) or str(tmp_path_factory.mktemp("xla"))

  def run(processes, devices, workdir, *flags, **env):
    env = {name: cache, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"} | env
    flags = [f"--workdir={workdir}", *flags]
    return job.finish(job.start([*command, *flags], processes, devices, **env))

  return run


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory):
  """The workdir of two processes that nothing happened to; they dump."""
  workdir = tmp_path_factory.mktemp("straight")
  job.succeeded(run(2, 1, workdir, "--dump"))
  return workdir


def test_two_processes_are_one_bit_for_bit(run, tmp_path):
  alone, together = tmp_path / "alone", tmp_path / "together"
  job.succeeded(run(1, 2, alone, "--config.num_steps=2"))
  _, (_, said, _) = job.succeeded(run(2, 1, together, "--config.num_steps=2"))
  assert job.rows(together) == job.rows(alone)
  job.assert_same_params(together, alone)
  # The first host shows groups that it has graded: of two hosts, every second.
  shown, own = (
    (workdir / "completions.jsonl").read_text().splitlines()
    for workdir in (alone, together)
  )
  assert own == [row for row in shown if row in own]
  assert len(own) == len(shown) / 2
  assert "report" not in said, "only the first host reports"


def test_two_processes_replay_what_each_of_two_has_written(
  run, straight, tmp_path
):
  files = sorted(file.name for file in (straight / "rollouts").iterdir())
  assert files[:2] == [f"000000-0000{i}-of-00002.jsonl.gz" for i in range(2)]
  assert len(files) == 8
  flags = f"--replay={straight}", "--dump", "--config.num_steps=2"
  job.succeeded(run(2, 1, tmp_path, *flags))
  for number in range(2):
    one, same = (records.load(x, number) for x in (straight, tmp_path))
    assert one.written == same.written and len(one.written) == 16
    one, same = (
      next(row for row in job.rows(x) if row.get("round") == number + 1)
      for x in (straight, tmp_path)
    )
    moved = {name for name in one if one[name] != same[name]}
    assert moved <= {"gen/idle_frac"}  # It is not in a record.
    assert one["reflection/think"] > 0


@pytest.mark.soak
def test_four_processes_are_one_but_for_rounding(run, tmp_path):
  """A sum over four comes in another order."""
  alone, together = tmp_path / "alone", tmp_path / "together"
  flags = ["--config.num_steps=1", "--config.reference_every=1"]
  job.succeeded(run(1, 4, alone, *flags))
  job.succeeded(run(4, 1, together, *flags))
  first, same = (
    next(row for row in job.rows(workdir) if "loss/total" in row)
    for workdir in (alone, together)
  )
  assert first["reward/mean"] == same["reward/mean"]
  for name in ("loss/total", "optim/grad_norm", "entropy/mean"):
    np.testing.assert_allclose(first[name], same[name], rtol=1e-5, atol=1e-7)
  one, other = map(checkpoint.load_params, (alone, together))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    *(one, other),
  )


def test_a_killed_process_brings_the_others_down_by_name(
  run, straight, tmp_path
):
  """And restarts go on: the same number exactly; another one, with other rows
  and slots, nearly."""
  killed, died = tmp_path / "killed", tmp_path / "died"
  ended = run(2, 1, killed, FAIL=f"kill:1:{IDS[3]}", DIED=str(died))
  assert time.time() - died.stat().st_mtime < 60
  assert ended[1][0] == -signal.SIGKILL
  code, _, errors = ended[0]
  assert code == 1
  last = errors.strip().splitlines()[-1]
  assert last.startswith("error: host 1 (") and "no heartbeat" in last
  assert checkpoint.latest_step(killed) == 2
  elsewhere = tmp_path / "elsewhere"
  shutil.copytree(killed, elsewhere)
  job.succeeded(run(2, 1, killed))
  assert job.rows(killed) == job.rows(straight)
  job.assert_same_params(killed, straight)
  flags = "rows.widths=(64,)", "sampling.num_slots=4"
  ((_, _, warned),) = job.succeeded(
    run(1, 4, elsewhere, *(f"--config.{flag}" for flag in flags))
  )
  for change in ("hosts was 2, is 1", "devices was 2, is 4", "rows.widths was"):
    assert change in warned
  (one,), (same,) = (
    [row for row in job.rows(workdir) if row["step"] == 3]
    for workdir in (elsewhere, straight)
  )
  for name in ("loss/total", "entropy/mean", "optim/grad_norm", "reward/mean"):
    np.testing.assert_allclose(one[name], same[name], rtol=1e-5, atol=1e-7)


@pytest.mark.soak
@pytest.mark.parametrize(
  "moment", ["sampling:3", "scoring:3", "grading:3", "learning:3", "saving:2"]
)
def test_a_run_killed_in_any_phase_goes_on_exactly(
  run, straight, tmp_path, moment
):
  """While the first checkpoint is written, or the second."""
  ((code, _, _),) = run(1, 2, tmp_path, FAIL=f"kill:0:{moment}")
  assert code == -signal.SIGKILL
  job.succeeded(run(1, 2, tmp_path))
  assert job.rows(tmp_path) == job.rows(straight)
  job.assert_same_params(tmp_path, straight)


def test_what_one_host_raises_all_report(run, tmp_path):
  ended = run(2, 1, tmp_path / "run", FAIL=f"leave:1:{IDS[2]}")
  assert [code != 0 for code, _, _ in ended] == [True, True]
  assert "error: host 1 (" in ended[0][2]
  assert "a host that gives up" in ended[0][2]


def test_a_signal_to_one_stops_all_at_the_same_step(run, straight, tmp_path):
  stopped = tmp_path / "stopped"
  ended = run(2, 1, stopped, FAIL=f"term:1:{IDS[2]}")
  assert [code for code, _, _ in ended] == [143, 143], ended[0][2]
  assert "stopped at step" in ended[0][2]
  assert checkpoint.latest_step(stopped) == 3
  job.succeeded(run(2, 1, stopped))
  assert job.rows(stopped) == job.rows(straight)
  job.assert_same_params(stopped, straight)
