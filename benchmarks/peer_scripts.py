"""Other frameworks' steps, each a script run by an interpreter of its own.

A script takes the sizes as flags, and its last line is a JSON object with
"times", seconds of each step, and "mean_length", tokens of a completion.
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
FOREIGN = "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"  # Ours, not theirs.


class Script(NamedTuple):
  """A peer's step, and what runs it."""

  python: pathlib.Path
  file: pathlib.Path


def find(
  bench_dir: str | os.PathLike | None, **pythons: str | os.PathLike | None
) -> dict[str, Script]:
  """The peers that can be run here, by name; says which cannot, and why.

  Args:
    bench_dir: holds NAME_grpo.py of each peer; None for the folder
      shared/bench beside the repository.
    **pythons: the interpreter of each peer; None for
      .NAME/bin/python in `bench_dir`.

  Raises ValueError if there is none.
  """
  folder, found = pathlib.Path(bench_dir or BENCH), {}
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
    found[name] = script
  if not found:
    raise ValueError(
      f"no peer can be run: {folder} should hold the script of each, "
      "--bench_dir, and each needs an interpreter, "
      + ", ".join(f"--{name}_python" for name in pythons)
    )
  return found


def run(
  script: Script, arguments: Mapping[str, int], *, timeout: float
) -> dict:
  """What the script found; {"error": why} if it did not end well."""
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
    # Where memory ends, it ends the peer.
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
