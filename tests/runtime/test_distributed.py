"""Two processes agree on what they know, when to stop, and what failed."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from r1jax.runtime import checkpoint, distributed, rendezvous, service

ROOT = pathlib.Path(__file__).parents[2]

# A process of a job; what it does is appended.
JOINS = """
  import os, signal, sys, time
  import numpy as np
  from r1jax.parallel import sharding
  from r1jax.parallel.mesh import make_mesh
  from r1jax.runtime import checkpoint, distributed, interrupt

  address, count, own, workdir = sys.argv[1:]
  own = int(own)

  def main():
    with interrupt.guard(), distributed.job(address, int(count), own):
      import jax
      assert jax.process_count() == 2 and distributed.is_first() == (own == 0)
      work()

  def run():
    try:
      main()
    except interrupt.Interrupted as stop:
      sys.exit(128 + stop.signum)
    except BaseException as error:
      distributed.exit_process(3)
"""


def start(work, workdir):
  with socket.create_server(("127.0.0.1", 0)) as free:
    address = f"127.0.0.1:{free.getsockname()[1]}"
  env = os.environ | dict(
    PYTHONPATH=str(ROOT),
    JAX_PLATFORMS="cpu",
    JAX_NUM_CPU_DEVICES="2",
    JAX_COORDINATOR_BIND_ADDRESS=address,
  )
  code = textwrap.dedent(JOINS) + textwrap.dedent(work) + "\nrun()\n"
  return [
    subprocess.Popen(
      [sys.executable, "-c", code, address, "2", str(i), str(workdir)],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]


def finish(job):
  """(exit code, output, errors) of both."""
  try:
    outputs = [process.communicate(timeout=100) for process in job]
  finally:
    for process in job:
      process.kill()
  return [(p.returncode, *output) for p, output in zip(job, outputs)]


AGREES = """
  def work():
    third = np.array([np.nan, 0.1 + own, 1 / 3])
    both = distributed.all_gather(third)
    np.testing.assert_array_equal(both[:, 1:], [[0.1, 1 / 3], [1.1, 1 / 3]])
    assert np.isnan(both[:, 0]).all()
    assert distributed.all_gather(np.bool_(own)).tolist() == [False, True]
    assert distributed.from_first(lambda: {"own": own}) == {"own": 0}
    assert distributed.from_first(lambda: own) == 0

    # What lies split over both is whole on each, and in a checkpoint.
    mesh = make_mesh()
    assert sharding.row_hosts(mesh).tolist() == [0, 0, 1, 1]
    x = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    batch = sharding.rows_to_device(mesh, {"x": x})
    assert len(batch["x"].addressable_shards) == 2
    np.testing.assert_array_equal(sharding.to_host(batch)["x"], x)
    checkpoint.save(workdir, 1, batch)
    back = checkpoint.restore(workdir, batch)
    assert back["x"].sharding == batch["x"].sharding
    np.testing.assert_array_equal(sharding.to_host(back)["x"], x)

    # Told to stop, one stops both, at the same step.
    step = 0
    while True:
      distributed.raise_if_interrupted()
      step += 1
      print(step, flush=True)
      if own == 1 and step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
      assert step < 9
"""


def test_two_processes_agree(tmp_path):
  ended = finish(start(AGREES, tmp_path))
  for code, said, errors in ended:
    assert code == 128 + signal.SIGTERM, errors
    assert said.split()[-3:] == ["1", "2", "3"]
  # A job of another size reads what they wrote.
  x = np.arange(24.0, dtype=np.float32).reshape(8, 3)
  back = checkpoint.restore(tmp_path, {"x": np.zeros_like(x)})
  np.testing.assert_array_equal(back["x"], x)


TURNS = """
  distributed.HEARTBEAT_TIMEOUT, distributed.PERIOD = 6.0, 2.0

  def work():
    while True:
      distributed.raise_if_interrupted()
      print("turn", flush=True)
      time.sleep(0.1)
"""


@pytest.mark.cluster
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_dies_or_stands_still_is_named(tmp_path, signum, victim):
  job = start(TURNS, tmp_path)
  survivor = job[1 - victim]
  for process in job:
    assert "turn\n" in process.stdout, "it ended before its first turn"
  job[victim].send_signal(signum)
  try:
    _, errors = survivor.communicate(timeout=60)
  finally:
    for process in job:
      process.kill()
      process.communicate()
  assert survivor.returncode in (1, 3), errors
  last = errors.strip().splitlines()[-1]
  assert last.startswith(f"error: host {victim} ("), errors
  assert "stack trace" not in errors and "Traceback" not in errors
  if signum == signal.SIGSTOP:
    assert f"waiting for host {victim} (" in errors


@pytest.mark.cluster
def test_a_second_signal_ends_a_wait_for_a_host_that_stands_still(tmp_path):
  job = start(TURNS.replace("6.0", "600.0"), tmp_path)
  for process in job:
    assert "turn\n" in process.stdout, "it ended before its first turn"
  job[1].send_signal(signal.SIGSTOP)
  time.sleep(1)
  try:
    for _ in range(2):
      job[0].send_signal(signal.SIGINT)
      time.sleep(0.5)
    _, errors = job[0].communicate(timeout=20)
  finally:
    for process in job:
      process.kill()
      process.communicate()
  assert job[0].returncode == 128 + signal.SIGINT
  assert "the last one is lost" in errors


DIFFERS = """
  def work():
    distributed.require_equal({"config.seed": 3, "sizes": (1, 2)})
    distributed.require_equal({"config.lr": 0.1 + own})
    time.sleep(60)
"""


def test_hosts_that_differ_name_the_key(tmp_path):
  first, second = finish(start(DIFFERS, tmp_path))
  assert (first[0], second[0]) == (2, 3)  # 3 is that of this program.
  assert "the hosts differ in config.lr: it is 1.1 on host 1 (" in first[2]
  assert ") and 0.1 on host 0 (" in first[2]


def meeting(process, count, address, *, seconds=300.0):
  """What `rendezvous.meet` says in a thread; its end is None, or an error."""
  said, end = [], []

  def meet():
    try:
      rendezvous.meet(
        address, count, process, log=said.append, bind=address, seconds=seconds
      )
      end.append(None)
    except ValueError as error:
      end.append(str(error))
      end.append(distributed.exit_code(error))

  thread = threading.Thread(target=meet, daemon=True)
  thread.start()
  return thread, said, end


def free_address():
  with socket.create_server(("127.0.0.1", 0)) as free:
    return f"127.0.0.1:{free.getsockname()[1]}"


def test_all_meet_whoever_comes_first(monkeypatch):
  monkeypatch.setattr(rendezvous, "PERIOD", 0.2)
  address = free_address()
  late = meeting(2, 3, address)
  host, again = meeting(0, 3, address), None
  with socket.create_connection(until_open(address)) as stranger:
    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")  # It changes nothing.
    again = meeting(1, 3, address)
    for thread, _, end in (late, host, again):
      thread.join(30)
      assert end == [None]


def until_open(address):
  host, _, port = address.rpartition(":")
  while not service.is_listening(address):
    time.sleep(0.05)
  return host, int(port)


def test_who_does_not_come_is_named_to_all(monkeypatch):
  monkeypatch.setattr(rendezvous, "PERIOD", 0.2)
  address = free_address()
  several = [meeting(i, 4, address, seconds=2.0 + 9 * i) for i in (0, 2)]
  for thread, said, end in several:
    thread.join(30)
    assert end[0].startswith(
      f"hosts 1, 3 of 4 did not connect to {address} with"
    )
    assert end[1] == 1  # They may come next time.
    assert any(line.startswith("waiting for hosts 1, 3 of 4") for line in said)
  thread, said, end = meeting(1, 2, address, seconds=1.0)
  thread.join(30)
  assert "host 0 did not connect" in end[0] and "Connection refused" in end[0]
  assert end[1] == 1
  assert said[0].startswith(f"waiting for host 0 at {address}")


@pytest.mark.parametrize(
  ("process", "count", "problem"),
  [
    (1, 2, "process 1 was started with --num_processes=2, and process 0 with"),
    (2, 3, "two processes were started with --process_id=2"),
  ],
)
def test_what_cannot_be_one_job_is_told_to_all(process, count, problem):
  address = free_address()
  job = [meeting(0, 3, address)]
  until_open(address)
  job.append(meeting(2, 3, address))
  time.sleep(1.0)
  job.append(meeting(process, count, address))
  for thread, _, end in job:
    thread.join(30)
    assert end[0].startswith(problem) and end[1] == 2


def test_a_port_in_use_is_named():
  with socket.create_server(("127.0.0.1", 0)) as server:
    address = f"127.0.0.1:{server.getsockname()[1]}"
    thread, _, end = meeting(0, 2, address)
    thread.join(30)
  assert f"cannot listen at {address}: Address already in use" in end[0]


RAISES = """
  def work():
    if own == 1:
      raise ValueError("no such\\nfile")
    distributed.all_gather(np.zeros(3))
"""


@pytest.mark.parametrize(("kind", "code"), [("ValueError", 2), ("KeyError", 1)])
def test_what_one_raises_ends_both(tmp_path, kind, code):
  source = RAISES.replace("ValueError", kind)
  first, second = finish(start(source, tmp_path))
  assert second[0] == 3  # That of this program.
  assert first[0] == code
  last = first[2].strip().splitlines()[-1]
  assert last.startswith("error: host 1 (")
  assert f"): {kind}: " in last and "no such" in last


def test_alone_nothing_is_shared():
  value = np.float64(0.1)
  assert distributed.all_gather(value).tolist() == [0.1]
  assert distributed.from_first(lambda: (1, 2)) == (1, 2)
  distributed.raise_if_interrupted()
  with distributed.job():
    assert distributed.is_first()


@pytest.mark.parametrize(
  ("env", "several"),
  [
    ({}, False),
    ({"SLURM_NTASKS": "4"}, False),  # An allocation's shell.
    ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}, True),
    ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
    ({"KUBERNETES_SERVICE_HOST": "h", "JOB_COMPLETION_INDEX": "0"}, True),
    ({"KUBERNETES_SERVICE_HOST": "h"}, False),
  ],
)
def test_the_environment_says_whether_there_are_several(
  env, several, monkeypatch
):
  for name in os.environ:
    if name.startswith(("SLURM", "OMPI", "KUBERNETES", "JOB_")):
      monkeypatch.delenv(name)
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  assert service.is_multi_host() == several


def test_half_an_address_is_refused():
  with pytest.raises(
    ValueError, match="--num_processes also needs --coordinator_address"
  ):
    with distributed.job(num_processes=2):
      pass
