"""Faults that a whole run meets; what it goes on with is what it would be."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

import job
import pytest

from r1jax.runtime import checkpoint

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def begin(command, tmp_path_factory):
  """`begin(processes, workdir, *flags)`: the processes of a job."""
  name = "JAX_COMPILATION_CACHE_DIR"
  cache = os.environ.get(name) or str(tmp_path_factory.mktemp("xla"))
  started = []

  def begin(processes, workdir, *flags, **env):
    env = {name: cache, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"} | env
    flags = [f"--workdir={workdir}", *flags]
    started.extend(job.start([*command, *flags], processes, 1, **env))
    return started[-processes:]

  yield begin
  for process in started:
    process.kill()
    with process:  # Closes its pipes, and waits.
      pass


@pytest.fixture(scope="module")
def straight(begin, tmp_path_factory):
  """The workdir of one process that nothing happened to."""
  workdir = tmp_path_factory.mktemp("straight")
  job.succeeded(job.finish(begin(1, workdir)))
  return workdir


def assert_equal(workdir, straight):
  assert job.rows(workdir) == job.rows(straight)
  job.assert_same_params(workdir, straight)


def last_line(errors):
  return errors.strip().splitlines()[-1]


def wait_for(sign, seconds=90):
  """Waits until `sign()`; what takes longer has failed."""
  end = time.monotonic() + seconds
  while not sign():
    assert time.monotonic() < end, "it did not come"
    time.sleep(0.1)


def has_rows(workdir, count):
  file = pathlib.Path(workdir) / "metrics.jsonl"
  return lambda: file.exists() and file.read_bytes().count(b"\n") >= count


def test_a_reader_that_leaves_stops_nothing(begin, straight, tmp_path):
  (process,) = begin(1, tmp_path)
  process.stdout.close()
  assert process.wait(timeout=150) == 0, process.stderr.read()
  assert_equal(tmp_path, straight)


@pytest.mark.usefixtures("without_nohup")
@pytest.mark.parametrize(
  "signum",
  [signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)],
)
def test_a_stopped_run_goes_on_exactly(begin, straight, tmp_path, signum):
  (process,) = begin(1, tmp_path)
  wait_for(has_rows(tmp_path, 1))
  process.send_signal(signum)
  ((code, _, errors),) = job.finish([process])
  assert code == 128 + signum, errors
  step = checkpoint.latest_step(tmp_path)
  assert f"stopped at step {step}; " in errors
  job.succeeded(job.finish(begin(1, tmp_path)))
  assert_equal(tmp_path, straight)


@pytest.mark.soak
@pytest.mark.parametrize("moment", range(20))
def test_what_is_said_of_a_stop_is_true(begin, straight, tmp_path, moment):
  (process,) = begin(1, tmp_path)
  wait_for(has_rows(tmp_path, 1))
  time.sleep(0.15 * moment)
  process.send_signal(signal.SIGTERM)
  ((code, _, errors),) = job.finish([process])
  assert code in (0, 128 + signal.SIGTERM), errors
  if code:
    assert f"at step {checkpoint.latest_step(tmp_path)}; " in errors
  assert "Traceback" not in errors
  job.succeeded(job.finish(begin(1, tmp_path)))
  assert_equal(tmp_path, straight)


@pytest.fixture
def small_disk(tmp_path):
  """`small_disk(kilobytes)`: a folder on a disk of this size."""
  folder = tmp_path / "disk"
  folder.mkdir()

  def mount(kilobytes):
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
      pytest.skip("only root can mount a disk")
    return folder

  yield mount
  subprocess.run(["umount", str(folder)], capture_output=True)


def test_a_disk_too_small_is_refused_at_the_start(begin, small_disk):
  ((code, _, errors),) = job.finish(begin(1, small_disk(64) / "run"))
  assert code == 2
  assert last_line(errors).startswith("error: ") and "free" in last_line(errors)
  assert "Traceback" not in errors


def test_a_disk_that_fills_up_costs_no_finished_step(
  begin, straight, small_disk, tmp_path
):
  disk = small_disk(4096)
  (process,) = begin(1, disk / "run")
  wait_for(has_rows(disk / "run", 1))
  with open(disk / "filler", "wb") as file, pytest.raises(OSError):
    while True:
      os.write(file.fileno(), bytes(4096))
  ((code, _, errors),) = job.finish([process])
  assert code == 2, errors
  assert "No space left on device" in last_line(errors)
  assert "free some space" in last_line(errors)
  assert len(errors.splitlines()) < 5, errors
  (disk / "filler").unlink()
  shutil.copytree(disk / "run", tmp_path / "run")
  job.succeeded(job.finish(begin(1, tmp_path / "run")))
  assert_equal(tmp_path / "run", straight)


def test_a_removed_workdir_ends_the_run(begin, tmp_path):
  (process,) = begin(1, tmp_path / "run", "--config.num_steps=200")
  wait_for(has_rows(tmp_path / "run", 1))
  (tmp_path / "run").rename(tmp_path / "gone")
  ((code, _, errors),) = job.finish([process])
  assert code == 2, errors
  assert "removed or replaced while the run was writing" in last_line(errors)
  assert "Traceback" not in errors


def test_other_data_under_the_same_name_are_refused(begin, straight, tmp_path):
  shutil.copytree(straight, tmp_path / "run")
  flags = ["--config.num_steps=5"]
  ended = job.finish(begin(1, tmp_path / "run", *flags, LETTER="z"))
  assert ended[0][0] == 2
  assert "the dataset has changed" in last_line(ended[0][2])
  flags.append("--accept_other_data")
  ended = job.finish(begin(1, tmp_path / "run", *flags, LETTER="z"))
  job.succeeded(ended)
  assert "the dataset has changed" in ended[0][2]


# Several job.


def each(processes):
  """Exit codes, and the last line of errors, of the processes of a job."""
  ended = job.finish(processes)
  for _, _, errors in ended:
    assert "Traceback" not in errors and "stack trace" not in errors, errors
  return [code for code, _, _ in ended], [last_line(e) for _, _, e in ended]


@pytest.mark.parametrize(
  ("flag", "env", "named"),
  [
    ("--config.optimizer.learning_rate=0.5", {}, "config.optimizer.learning_"),
    ("--config.seed=9", {}, "config.seed: it is 9 on host 1"),
    ("--config.num_steps=8", {}, "config.num_steps"),
    ("--dump", {}, "--dump"),
    ("--debug", {"LETTER": "z"}, "dataset"),
  ],
)
def test_hosts_that_differ_are_told_in_what(begin, tmp_path, flag, env, named):
  address = {}
  first = begin(2, tmp_path)
  first[1].kill()  # Another takes its place.
  second = subprocess.Popen(
    [*first[1].args, *([flag] if flag != "--debug" else [])],
    env=job.environment(1, **env),
    cwd=job.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  began = time.monotonic()
  codes, lines = each([first[0], second])
  assert codes == [2, 2]  # Wrong input, on whichever host it is found.
  assert time.monotonic() - began < 90
  for line in lines:
    assert line.startswith("error: ") and named in line, address


def alone(command, process, count, port, workdir, **env):
  """One process of a job whose others are not started."""
  address = f"127.0.0.1:{port}"
  flags = [f"--coordinator_address={address}", f"--num_processes={count}"]
  return subprocess.Popen(
    [*command, *flags, f"--process_id={process}", f"--workdir={workdir}"],
    env=job.environment(1, JAX_COORDINATOR_BIND_ADDRESS=address, **env),
    cwd=job.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def free_port():
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


@pytest.mark.parametrize("process", [0, 1])
def test_who_is_awaited_is_named_and_ctrl_c_ends_it(command, tmp_path, process):
  with alone(command, process, 2, free_port(), tmp_path) as waiting:
    line = waiting.stderr.readline()
    waiting.send_signal(signal.SIGINT)
    _, rest = waiting.communicate(timeout=20)
  assert line.startswith(f"waiting for host {1 - process} ")
  assert "5 of 300 s" in line
  assert waiting.returncode == 130
  assert "Traceback" not in rest


def test_a_port_in_use_is_one_line(command, tmp_path):
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
    codes, (line,) = each([alone(command, 0, 2, port, tmp_path)])
  assert codes == [2]
  assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in line
  assert "choose another --coordinator_address" in line
