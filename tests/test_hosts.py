"""Two processes agree on what they know, when to stop, and what failed."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from r1jax import checkpoint, hosts

ROOT = pathlib.Path(__file__).parent.parent

# A process of a job; what it does is appended.
JOINS = """
  import os, signal, sys, time
  import numpy as np
  from r1jax import checkpoint, hosts, interrupt, sharding

  address, count, own, workdir = sys.argv[1:]
  own = int(own)

  def main():
    with interrupt.guard(), hosts.job(address, int(count), own):
      import jax
      assert jax.process_count() == 2 and hosts.is_first() == (own == 0)
      work()

  def run():
    try:
      main()
    except interrupt.Interrupted as stop:
      sys.exit(128 + stop.signum)
    except BaseException as error:
      hosts.leave(3)
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
    both = hosts.all_gather(third)
    np.testing.assert_array_equal(both[:, 1:], [[0.1, 1 / 3], [1.1, 1 / 3]])
    assert np.isnan(both[:, 0]).all()
    assert hosts.all_gather(np.bool_(own)).tolist() == [False, True]
    assert hosts.from_first(lambda: {"own": own}) == {"own": 0}
    assert hosts.from_first(lambda: own) == 0

    # What lies split over both is whole on each, and in a checkpoint.
    mesh = sharding.make_mesh()
    assert sharding.row_hosts(mesh).tolist() == [0, 0, 1, 1]
    x = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    batch = sharding.assemble(mesh, {"x": x})
    assert len(batch["x"].addressable_shards) == 2
    np.testing.assert_array_equal(sharding.local(batch)["x"], x)
    checkpoint.save(workdir, 1, batch)
    back = checkpoint.restore(workdir, batch)
    assert back["x"].sharding == batch["x"].sharding
    np.testing.assert_array_equal(sharding.local(back)["x"], x)

    # Told to stop, one stops both, at the same step.
    step = 0
    while True:
      hosts.stop_if_told()
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


RAISES = """
  def work():
    if own == 1:
      raise ValueError("no such\\nfile")
    hosts.all_gather(np.zeros(3))
"""


def test_what_one_raises_ends_both(tmp_path):
  first, second = finish(start(RAISES, tmp_path))
  assert second[0] == 3
  assert first[0] == 1
  last = first[2].strip().splitlines()[-1]
  assert last.startswith("error: host 1 (")
  assert last.endswith("): ValueError: no such file")


def test_alone_nothing_is_shared():
  value = np.float64(0.1)
  assert hosts.all_gather(value).tolist() == [0.1]
  assert hosts.from_first(lambda: (1, 2)) == (1, 2)
  hosts.stop_if_told()
  with hosts.job():
    assert hosts.is_first()


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
  assert hosts.expected() == several


def test_half_an_address_is_refused():
  with pytest.raises(
    ValueError, match="--num_processes needs --coordinator_address beside it"
  ):
    with hosts.job(num_processes=2):
      pass
