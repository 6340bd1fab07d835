"""SLURM and Open MPI start the same command, stop it, and go on with it."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

import job
import pytest

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.cluster

# Two nodes, which are this machine; nobody else hears them.
SLURM = """
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
ReturnToService=2
CommunicationParameters=NoInAddrAny
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmctldParameters=enable_configless
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


SHOW = ("scontrol", "--oneliner", "show", "job")
SHORT = tuple(  # It saves when it is stopped and at its end.
  f"--config.{name}"
  for name in ("num_steps=12", "reference_every=1", "checkpoint_every=100")
)


def saved_steps(workdir):
  return sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*"))


def free_ports(count):
  held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
  ports = [server.getsockname()[1] for server in held]
  for server in held:
    server.close()
  return ports


@pytest.fixture(scope="module")
def straight(command, tmp_path_factory):
  """The rows of the run as two processes that nobody launched."""
  workdir = tmp_path_factory.mktemp("straight")
  flags = [f"--workdir={workdir}", *SHORT]
  job.succeeded(job.finish(job.start([*command, *flags], 2, 1)))
  return job.rows(workdir)


def wrapper(command, folder):
  """A program that runs the toy for `-m r1jax train`, and its flags."""
  python = folder / "python"
  python.write_text(
    f'#!/bin/sh\nshift 3\nexec {command[0]} {command[1]} "$@"\n'
  )
  python.chmod(0o755)
  return str(python), command[2:]


def wait_for_rows(workdir, count, seconds=180):
  """Waits until a run has written so many rows of metrics."""
  file, end = workdir / "metrics.jsonl", time.monotonic() + seconds
  while not file.exists() or file.read_bytes().count(b"\n") < count:
    assert time.monotonic() < end, "there are too few rows"
    time.sleep(0.1)


def environment(devices=1):
  """Where the first process listens; all else the launcher must tell."""
  (port,) = free_ports(1)
  address = f"127.0.0.1:{port}"
  return job.environment(
    devices,
    JAX_COORDINATOR_ADDRESS=address,
    JAX_COORDINATOR_BIND_ADDRESS=address,
  )


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
  """A SLURM of two nodes; gives the path of its configuration."""
  needed = ("munged", "slurmctld", "slurmd", "srun")
  path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
  missing = [name for name in needed if not shutil.which(name, path=path)]
  if missing or os.geteuid():
    pytest.skip(f"no {missing[0]} here" if missing else "SLURM needs root")
  folder = pathlib.Path(tmp_path_factory.mktemp("slurm"))
  for name in ("state", "spool.n1", "spool.n2"):
    (folder / name).mkdir()
  host, file = socket.gethostname(), folder / "slurm.conf"
  file.write_text(SLURM.format(folder=folder, host=host, ports=free_ports(3)))
  key = folder / "munge.key"
  key.write_bytes(os.urandom(1024))
  key.chmod(0o400)
  env = os.environ | {"SLURM_CONF": str(file), "PATH": path}
  munge = [f"--key-file={key}", f"--socket={folder}/munge.socket"]
  munge += [f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log"]
  munge += [f"--seed-file={folder}/munge.seed", "--force", "--foreground"]
  daemons = [["munged", *munge], ["slurmctld", "-D", "-c"]]
  daemons += [["slurmd", "-D", "-N", node] for node in ("n1", "n2")]
  started = []
  try:
    for daemon in daemons:
      with open(folder / f"{daemon[0]}.{len(started)}.out", "w") as out:
        started.append(
          subprocess.Popen(daemon, env=env, stdout=out, stderr=out)
        )
      time.sleep(1)
    for _ in range(30):
      nodes = subprocess.run(
        ["sinfo", "-h", "-N", "-o", "%T"],
        env=env,
        capture_output=True,
        text=True,
      )
      if nodes.stdout.split() == ["idle", "idle"]:
        break
      time.sleep(1)
    else:
      logs = [p.read_text()[-500:] for p in folder.glob("*.out")]
      pytest.fail(f"SLURM does not come up: {nodes} {logs}")
    yield env
  finally:
    for daemon in reversed(started):
      daemon.terminate()
    for daemon in started:
      daemon.wait(timeout=30)


def test_slurm_starts_the_run_and_requeues_it(
  slurm, command, straight, tmp_path
):
  python, flags = wrapper(command, tmp_path)
  env = environment() | {k: slurm[k] for k in ("SLURM_CONF", "PATH")}
  env |= dict(PYTHON=python, SBATCH_FLAGS=f"--output={tmp_path}/out --time=9")
  env["GRACE"] = "60"  # Less than that time limit.
  workdir, launcher = tmp_path / "run", ROOT / "launch" / "slurm.sh"

  def call(*arguments):
    done = subprocess.run(arguments, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

  submitted = call(launcher, "cpu", "2", *flags, f"--workdir={workdir}", *SHORT)
  number = submitted.split()[-1]
  try:
    wait_for_rows(workdir, 1)
    call("scancel", "--signal=TERM", number)  # As before its time limit.
    while "JobState=COMPLETED" not in (shown := call(*SHOW, number)):
      assert not re.search("JobState=(FAILED|CANCELLED)", shown), shown
      time.sleep(0.5)
  finally:
    output = (tmp_path / "out").read_text()
    print(output)
    subprocess.run(["scancel", number], env=env)
  assert "Restarts=1 " in shown
  stopped, ended = saved_steps(workdir)
  assert stopped < ended == 12
  assert job.rows(workdir) == straight


def test_open_mpi_starts_the_run_and_stops_it(command, straight, tmp_path):
  if not shutil.which("mpirun"):
    pytest.skip("no mpirun here")
  python, flags = wrapper(command, tmp_path)
  root = "--allow-run-as-root" if os.geteuid() == 0 else ""
  env = {"PYTHON": python, "MPIRUN_FLAGS": f"--oversubscribe {root}"}

  def start():
    return subprocess.Popen(
      [
        *(ROOT / "launch" / "mpi.sh", "2", *flags),
        *(f"--workdir={tmp_path / 'run'}", *SHORT),
      ],
      env=environment() | env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  with start() as running:
    wait_for_rows(tmp_path / "run", 1)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
  assert running.returncode == 128 + signal.SIGTERM, errors[-3000:]
  (stopped,) = saved_steps(tmp_path / "run")
  assert stopped < 12
  with start() as running:
    _, errors = running.communicate(timeout=160)
  assert running.returncode == 0, errors[-3000:]
  assert job.rows(tmp_path / "run") == straight
