"""Fixtures that run programs in the sandboxes of the code reward."""

import contextlib
import os
import pathlib
import shutil
import time
import uuid

import pytest

from r1jax.rewards.code import bubblewrap, programs, sandbox
from r1jax.types import Completion, Example


def require(program):
  """Skips a test where a program is not installed, and fails it in CI."""
  if not shutil.which(program, path=bubblewrap.ENVIRONMENT["PATH"]):
    (pytest.fail if os.environ.get("CI") else pytest.skip)(
      f"{program} is not installed"
    )


@pytest.fixture
def needs():
  """needs(language): the test is skipped where its toolchain is missing."""
  return lambda language: require(sandbox.tool(language))


@pytest.fixture(scope="session")
def bwrap():
  """A test with it is skipped where bubblewrap is not installed.

  Where it is, the sandbox has to hold.
  """
  require("bwrap")
  sandbox.check("bwrap")


@pytest.fixture(params=["bwrap", "none"])
def kind(request):
  """Each kind of sandbox in turn."""
  if request.param == "bwrap":
    request.getfixturevalue("bwrap")
  return request.param


TESTS = "assert f(3) == 6"
CASES = [{"input": "x y\n", "output": "y x\n"}]
RIGHT = "def f(x): return 2 * x"
SWAPS = "a, b = input().split()\nprint(b, a)"


@pytest.fixture
def judge_hostile(bwrap, monkeypatch):
  """judge(program, tests, seconds, language) -> Verdict, in a sandbox.

  Afterwards the next program is graded normally, and no process is left.
  """

  def judge(program, tests=TESTS, seconds=5.0, language="python"):
    metadata = dict(tests=tests, language=language)
    example = Example("", "", "code", "", metadata)
    text = Completion(f"</think>\n```{language}\n{program}\n```")
    return programs.judge(example, text, seconds=seconds)

  mark = uuid.uuid4().hex
  monkeypatch.setitem(bubblewrap.ENVIRONMENT, "MARK", mark)
  judge.cases = CASES
  yield judge
  assert judge(RIGHT).score == 1.0
  assert judge(SWAPS, CASES).score == 1.0
  deadline = time.monotonic() + 5.0
  while left := _marked(mark):
    assert time.monotonic() < deadline, left
    time.sleep(0.02)


def _marked(mark):
  """The processes that have the mark in their environment."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    with contextlib.suppress(OSError):
      if mark.encode() in path.read_bytes():
        found.append(path.parent.name)
  return found
