"""Faster right programs earn more; what cannot be measured earns nothing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax import rewards
from r1jax.rewards.code import programs, speed
from r1jax.rewards.code.sandbox import Limits
from r1jax.text import DOES_NOT_APPLY, Completion, Example

CASES = [{"input": "4000000\n", "output": "7999998000000\n"}]
FAST = "n = int(input())\nprint(n * (n - 1) // 2)"
SLOW = "n = int(input())\ns = 0\nfor i in range(n): s += i\nprint(s)"
# The work is done by a process for which the program does not wait.
FORKS = """
import os
read, write = os.pipe()
n = int(input())
if not os.fork():
  s = 0
  for i in range(n): s += i
  os.write(write, str(s).encode())
  os._exit(0)
print(os.read(read, 99).decode())
"""
THREADS = """
import threading
n = int(input())
thread = threading.Thread(target=lambda: print(n * (n - 1) // 2))
thread.start()
thread.join()
"""


def example(tests, language="python"):
  metadata = dict(tests=tests, language=language)
  return Example("", "", "code", "toy:1", metadata)


def program(source, language="python"):
  return Completion(f"<think>t</think>\n```{language}\n{source}\n```")


def seconds(source, tests, kind, alone=True):
  limits = Limits(seconds=20.0, alone=alone)
  result = programs.test(example(tests), program(source), kind, limits)
  assert result.verdict.score == 1.0, result.verdict.feedback
  return result.cpu_seconds


def test_cpu_time_is_that_of_all_tests(kind):
  assert seconds(FAST, CASES, kind) < 0.3 * seconds(SLOW, CASES, kind)
  sleeps = "import time\nn = int(input())\ntime.sleep(0.5)\n" + FAST[17:]
  assert seconds(sleeps, CASES, kind) < 0.3 * seconds(SLOW, CASES, kind)
  assert seconds(SLOW, CASES * 4, kind) > 2 * seconds(SLOW, CASES, kind)


def test_cpu_time_of_functions_is_that_of_their_process(kind):
  tests = "assert f(4000000) == 7999998000000"
  slow = "def f(n):\n  s = 0\n  for i in range(n): s += i\n  return s"
  fast = "def f(n): return n * (n - 1) // 2"
  assert seconds(fast, tests, kind) < 0.3 * seconds(slow, tests, kind)
  # The tests' own work is no fault of the program.
  heavy = "assert sum(range(6_000_000)) > 0\n" + tests
  assert seconds(fast, heavy, kind) < 0.3 * seconds(slow, tests, kind)


def test_a_program_that_hides_its_work_earns_nothing(bwrap):
  for source in (FORKS, THREADS):
    assert seconds(source, CASES, "bwrap", alone=False) >= 0.0  # It is right.
  values = speed.group(
    example(CASES),
    [*map(program, (FAST, SLOW, FORKS, THREADS, "print(7)", "x ="))],
    seconds=20.0,
    floor=0.03,
  )
  assert values[0] == 1.0 and 0 < values[1] <= 0.5
  assert values[2:] == [0.0] * 4


def test_programs_are_built_before_they_are_alone(kind, needs):
  needs("cpp")
  source = "#include <iostream>\nint main() { long n; std::cin >> n; "
  source += "std::cout << n * (n - 1) / 2; }"
  values = speed.group(
    example(CASES, "cpp"), [program(source, "cpp")], seconds=20.0, sandbox=kind
  )
  assert values == [1.0]


def test_node_may_have_its_threads(kind, needs):
  needs("javascript")
  source = "const n = +require('fs').readFileSync(0);"
  source += "console.log(n * (n - 1) / 2);"
  values = speed.group(
    example(CASES, "javascript"),
    [program(source, "javascript")],
    seconds=20.0,
    sandbox=kind,
  )
  assert values == [1.0]


TIMES = st.lists(st.none() | st.floats(0.0, 1e3), max_size=8)


@given(TIMES, st.floats(1.01, 10.0), st.floats(0.001, 1.0))
def test_rewards_follow_their_equation(times, factor, floor):
  result = speed.rewards(times, factor=factor, floor=floor)
  right = [max(t, floor) for t in times if t is not None]
  for time, value in zip(times, result, strict=True):
    if time is None:
      assert value == 0.0
      continue
    assert 0 < value <= 1.0
    # n factors slower, and not n + 1 (up to rounding).
    n = -math.log(value, factor)
    ratio = max(time, floor) / min(right)
    assert abs(n - round(n)) < 1e-6
    assert factor**n <= ratio * (1 + 1e-9) < factor ** (n + 1) * (1 + 1e-6)


def test_noise_changes_no_reward():
  assert speed.rewards([0.50, 0.55, 0.9], factor=2.0, floor=0.1) == [1.0] * 3
  assert speed.rewards([0.001, 0.09], factor=2.0, floor=0.1) == [1.0] * 2
  assert speed.rewards([None, None], factor=2.0, floor=0.1) == [0.0] * 2
  assert speed.rewards([], factor=2.0, floor=0.1) == []


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (dict(factor=1.0), "factor must be above 1, got 1.0"),
    (dict(floor=0.0), "floor must be 0 to seconds 4.0, got 0.0"),
    (dict(floor=5.0), "floor must be 0 to seconds 4.0, got 5.0"),
    (dict(sandbox="jail"), "sandbox must be one of"),
  ],
)
def test_arguments_that_are_none_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    rewards.check(speed=dict(weight=0.1, **arguments))


def test_it_applies_to_programs_only():
  other = Example("1 + 1 =", "2", "math")
  assert speed.group(other, [Completion("2")] * 2) == [DOES_NOT_APPLY] * 2
