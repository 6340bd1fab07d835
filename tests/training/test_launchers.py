"""SLURM and Open MPI start the same command, and JAX finds its way."""

import os
import pathlib
import shutil
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
AuthInfo=socket={folder}/munge.socket
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
  flags = [f"--workdir={workdir}", "--config.num_steps=1"]
  flags.append("--config.reference_every=1")
  job.succeeded(job.finish(job.start([*command, *flags], 2, 1)))
  return job.rows(workdir)


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


def test_slurm_starts_the_run(slurm, command, straight, tmp_path):
  flags = [f"--workdir={tmp_path}", "--config.num_steps=1"]
  flags.append("--config.reference_every=1")
  done = subprocess.run(
    ["srun", "--nodes=2", "--ntasks-per-node=1", "--label", *command, *flags],
    env=environment() | {k: slurm[k] for k in ("SLURM_CONF", "PATH")},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=160,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert job.rows(tmp_path) == straight


def test_open_mpi_starts_the_run(command, straight, tmp_path):
  if not shutil.which("mpirun"):
    pytest.skip("no mpirun here")
  (tmp_path / "bin").mkdir()
  python = tmp_path / "bin" / "python"  # As `r1jax train`, on the toy.
  python.write_text(
    f'#!/bin/sh\nshift 3\nexec {command[0]} {command[1]} "$@"\n'
  )
  python.chmod(0o755)
  root = "--allow-run-as-root" if os.geteuid() == 0 else ""
  done = subprocess.run(
    [
      *(ROOT / "launch" / "mpi.sh", "2", *command[2:]),
      f"--workdir={tmp_path / 'run'}",
      "--config.num_steps=1",
      "--config.reference_every=1",
    ],
    env=environment()
    | {"PYTHON": str(python), "MPIRUN_FLAGS": f"--oversubscribe {root}"},
    capture_output=True,
    text=True,
    timeout=160,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert job.rows(tmp_path / "run") == straight
