"""What tests of every kind share."""

import os
import pathlib
import subprocess
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # Golden numbers are the CPU's.
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def python():
  """Runs Python in the repository: `python("-m", "r1jax.main", ...)`."""

  def run(*arguments, env=None, timeout=120, cwd=ROOT):
    return subprocess.run(
      [sys.executable, *map(str, arguments)],
      cwd=cwd,
      env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=timeout,
      check=False,
    )

  return run
