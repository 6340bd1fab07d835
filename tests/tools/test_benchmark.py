"""The form of all benchmarks, and the scripts of peers."""

import json
import pathlib
import sys
import time

import pytest

from benchmarks import peer_scripts

ANSWER = dict(times=[2.0, 4.0], mean_length=128.0)


@pytest.fixture
def script(tmp_path):
  """A peer whose script is `text`."""

  def write(text, name="trl"):
    file = tmp_path / f"{name}_grpo.py"
    file.write_text(text)
    return peer_scripts.Script(pathlib.Path(sys.executable), file)

  return write


def test_every_argument_of_a_benchmark_is_a_flag(python):
  code = """
from benchmarks import command
def rows(*, count: int = 3, share: float = 0.5, peers: bool = False,
         folder: str | None = None):
  "Counts."
  return dict(count=count, share=share, peers=peers, folder=folder)
command.run(rows)
"""
  done = python("-c", code, "--count=4", "--peers", "--folder=here")
  last = json.loads(done.stdout.splitlines()[-1])
  assert last == dict(count=4, share=0.5, peers=True, folder="here")


@pytest.mark.parametrize(
  "flag, message",
  [("--prompt=0", "prompt"), ("--promt=1", "did you mean --prompt")],
)
def test_wrong_input_is_one_line_and_exit_code_2(python, flag, message):
  done = python("-m", "benchmarks.grpo", flag)
  assert done.returncode == 2 and not done.stdout
  assert message in done.stderr and done.stderr.count("\n") == 1


def test_a_peer_answers_with_its_last_line(script):
  peer = script(
    "import json, sys\n"
    "print('compiling')\n"
    f"print(json.dumps({ANSWER} | dict(argv=sys.argv[1:])))\n"
  )
  answer = peer_scripts.run(peer, dict(group_size=8), timeout=60.0)
  assert answer == ANSWER | dict(argv=["--group-size", "8"])


@pytest.mark.parametrize(
  "text, error",
  [
    ("raise SystemExit('no memory')", "exit code 1: no memory"),
    ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL"),
    ("print('done')", "no JSON in its last line: done"),
    ("", "no JSON in its last line: nothing"),
  ],
)
def test_a_peer_that_fails_says_why(script, text, error):
  assert peer_scripts.run(script(text), {}, timeout=60.0) == {"error": error}


def test_a_peer_that_takes_too_long_is_ended(script):
  start = time.monotonic()
  answer = peer_scripts.run(
    script("import time; time.sleep(99)"), {}, timeout=1.0
  )
  assert answer == {"error": "took longer than 1 s"}
  assert time.monotonic() - start < 60


def test_peers_that_are_absent_are_named(script, tmp_path, capsys):
  peer = script(f"print({json.dumps(ANSWER)!r})")
  found = peer_scripts.find(tmp_path, trl=sys.executable, tunix=None)
  assert list(found) == ["trl"] and found["trl"].file == peer.file
  assert "tunix is left out" in capsys.readouterr().err
  with pytest.raises(ValueError, match="no peer can be run.*--trl_python"):
    peer_scripts.find(tmp_path, trl=None, tunix=None)
