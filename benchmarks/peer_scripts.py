"""GRPO steps of other frameworks: scripts that run in their own interpreters.

A script takes the sizes as flags. Its last line of output is a JSON object with
"times" (seconds of each step) and "mean_length" (tokens of a completion).
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import NamedTuple

BENCH = pathlib.Path(__file__).parents[3] / "shared" / "bench"
# Variables of our environment that a peer must not inherit.
FOREIGN = "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"


class Script(NamedTuple):
  """The script of a peer, and its interpreter."""

  python: pathlib.Path
  file: pathlib.Path


def find(
  bench_dir: str | os.PathLike | None, **pythons: str | os.PathLike | None
) -> dict[str, Script]:
  """The peers that can run here, by name; prints why others cannot.

  Args:
    bench_dir: folder with the script NAME_grpo.py of each peer; None means
      shared/bench beside the repository.
    **pythons: the interpreter of each peer; None means .NAME/bin/python in
      `bench_dir`.

  Raises ValueError if no peer can run.
  """
  folder, scripts = pathlib.Path(bench_dir or BENCH), {}
  for name, python in pythons.items():
    script = Script(
      pathlib.Path(python or folder / f".{name}" / "bin" / "python"),
      folder / f"{name}_grpo.py",
    )
    absent = [path for path in script if not path.is_file()]
    if absent:
      flag = "bench_dir" if script.file in absent else f"{name}_python"
      print(
        f"{name} is left out: there is no {absent[-1]}; see --{flag}",
        file=sys.stderr,
      )
      continue
    scripts[name] = script
  if not scripts:
    raise ValueError(
      f"no peer can be run: {folder} (--bench_dir) must hold their scripts, "
      "and each needs an interpreter, "
      + ", ".join(f"--{name}_python" for name in pythons)
    )
  return scripts


def run(
  script: Script, arguments: Mapping[str, int], *, timeout: float
) -> dict:
  """The result of the script, or {"error": reason} if it failed."""
  command = [script.python.absolute(), script.file.absolute()]
  for name, value in arguments.items():
    command += [f"--{name.replace('_', '-')}", str(value)]
  environment = {k: v for k, v in os.environ.items() if k not in FOREIGN}
  with tempfile.TemporaryDirectory() as folder:
    process = subprocess.Popen(
      command,
      cwd=folder,
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    # If memory runs out, the kernel kills the peer, not this process.
    with contextlib.suppress(OSError):
      path = pathlib.Path(f"/proc/{process.pid}/oom_score_adj")
      path.write_text("1000")
    try:
      out, log = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
      return {"error": f"took longer than {timeout:g} s"}
    finally:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
  if process.returncode < 0:
    return {"error": f"ended by {signal.Signals(-process.returncode).name}"}
  last = lambda text: (text.strip().splitlines() or ["nothing"])[-1]
  if process.returncode:
    return {"error": f"exit code {process.returncode}: {last(log)}"}
  try:
    return json.loads(last(out))
  except json.JSONDecodeError:
    return {"error": f"no JSON in its last line: {last(out)}"}
