"""The scripts of launch/ say what they would run, and it is one command."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = ["--config=experiments/demo.py", "--workdir=/data/it's a run"]
ARGUMENTS = {
  "tpu.sh": ["pod", "us-east5-a"],
  "gke.sh": ["r1", "image", "tpu-v5p-slice", "4x4x4", "16", "4"],
  "slurm.sh": ["gpu", "4", "8"],
  "mpi.sh": ["4"],
}
BESIDE = os.pathsep.join([os.path.dirname(sys.executable), os.defpath])
SHELLCHECK = shutil.which("shellcheck", path=BESIDE)
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


def run(script, *arguments):
  return subprocess.run(
    [ROOT / "launch" / script, *arguments],
    capture_output=True,
    text=True,
    env={k: v for k, v in os.environ.items() if k != "PYTHON"},
  )


def test_there_is_a_case_for_every_script():
  assert {path.name for path in SCRIPTS} == ARGUMENTS.keys()


@pytest.mark.parametrize("script", sorted(ARGUMENTS))
def test_a_dry_run_shows_the_one_command(script):
  done = run(script, "--dry-run", *ARGUMENTS[script], *FLAGS)
  assert done.returncode == 0, done.stderr
  shown = done.stdout
  if script == "gke.sh":  # JSON's quotes are YAML's.
    (line,) = (x for x in shown.splitlines() if "command:" in x)
    words = json.loads(line.partition(":")[2])
  else:
    (line,) = (x for x in shown.splitlines() if re.search(r"r1jax\\? train", x))
    if script == "tpu.sh":
      line = shlex.split(line)[-1].removeprefix("--command=")
    words = shlex.split(line.partition(" ||")[0])
  at = words.index("-m")
  assert words[at - 1].endswith("python")
  assert words[at:] == ["-m", "r1jax", "train", *FLAGS]


@pytest.mark.parametrize("script", sorted(ARGUMENTS))
def test_too_few_arguments_show_how_to_call(script):
  done = run(script)
  assert done.returncode == 2
  assert f"launch/{script}" in done.stderr
  assert "set -euo" not in done.stderr


@pytest.mark.skipif(not SHELLCHECK, reason="no shellcheck")
def test_shellcheck_finds_nothing():
  done = subprocess.run(
    [SHELLCHECK, *SCRIPTS, ROOT / ".ci" / "run"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout
