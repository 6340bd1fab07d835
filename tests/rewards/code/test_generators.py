"""Generated tests are valid, and tell wrong submissions from right ones."""

import pytest

from r1jax.rewards.code import generators, programs
from r1jax.rewards.code.generators import choose, make_tests, outputs
from r1jax.rewards.code.sandbox import Limits
from r1jax.types import Completion, Example

# The largest of n numbers.
RIGHT = "input()\nprint(max(map(int, input().split())))"
ALSO_RIGHT = "n = int(input())\nprint(sorted(map(int, input().split()))[-1])"
FIRST = "input()\nprint(input().split()[0])"  # Wrong, unless it is sorted so.
AT_LEAST_0 = "input()\nprint(max([0, *map(int, input().split())]))"
CRASHES = "input()\nprint(max(map(int, input().split())) // 0)"
SLOW = """
n = int(input())
xs = [*map(int, input().split())]
print(next(x for x in xs if all(x >= y for y in xs for _ in range(n))))
"""
RANDOM = """
import random
random.seed(int(input()))
n = random.randrange(2, 6)
print(n)
print(*(random.randrange(10) for _ in range(n)))
"""
NEGATIVE = "seed = int(input())\nprint(2)\nprint(-2 - seed, -1 - seed)"
LARGE = "seed = int(input())\nprint(4000)\nprint(*range(seed, 4000 + seed))"
INVALID = "input()\nprint('no numbers')"
ENDLESS = "while True: pass"


def made(written, right, wrong, *, kind="bwrap", seeds=3, most=9, seconds=4.0):
  return make_tests(
    "python",
    written,
    right,
    wrong,
    seeds=seeds,
    max_tests=most,
    sandbox=kind,
    limits=Limits(seconds=seconds),
  )


def test_tests_are_valid_and_fail_wrong_submissions(kind):
  tests = made(
    [RANDOM, NEGATIVE, INVALID, ENDLESS, "not python"],
    [RIGHT, ALSO_RIGHT],
    [FIRST, AT_LEAST_0],
    kind=kind,
    seconds=2.0,
  )
  assert tests.caught == 2 and tests.valid < tests.inputs <= 7
  metadata = dict(tests=tests.cases)
  example = Example("", "", "code", "toy:1", metadata)
  score = lambda source: programs.reward(
    example, Completion(f"</think>\n```python\n{source}\n```"), sandbox=kind
  )
  assert [*map(score, (RIGHT, ALSO_RIGHT, FIRST, AT_LEAST_0))] == [1, 1, 0, 0]
  for case in tests.cases:
    _, numbers = case["input"].splitlines()
    assert int(case["output"]) == max(map(int, numbers.split()))


def test_inputs_on_which_right_submissions_differ_are_left_out(bwrap):
  other = (
    "input()\nxs = [*map(int, input().split())]\nprint(max(xs) + (min(xs) < 0))"
  )
  tests = made([RANDOM, NEGATIVE], [RIGHT, other], [CRASHES])
  assert 0 < tests.valid < tests.inputs
  assert not [case for case in tests.cases if "-" in case["input"]]


def test_a_large_input_catches_what_is_too_slow(bwrap):
  assert made([RANDOM], [RIGHT], [SLOW], seconds=1.0).caught == 0
  tests = made([RANDOM, LARGE], [RIGHT], [SLOW], seconds=1.0, seeds=1)
  assert tests.caught == 1
  assert [case["input"][:4] for case in tests.cases] == ["4000"]


def test_a_right_submission_among_the_wrong_ones_fails_nothing(bwrap):
  tests = made([RANDOM], [RIGHT], [ALSO_RIGHT])
  assert tests.cases == [] and tests.valid == 3 and tests.caught == 0


def test_without_generators_or_valid_inputs_there_are_no_tests(bwrap):
  assert made([], [RIGHT], [FIRST]) == ([], 0, 0, 0)
  assert made([INVALID], [RIGHT], [FIRST]) == ([], 1, 0, 0)


def test_without_submissions_there_is_nothing_to_filter_by():
  for right, wrong in ([], [FIRST]), ([RIGHT], []):
    with pytest.raises(ValueError, match="need right and wrong submissions"):
      made([RANDOM], right, wrong)


def test_every_input_has_the_whole_time(bwrap):
  waits = "import time\nn = float(input())\ntime.sleep(n)\nprint(n)"
  inputs = ["0.7", "0.7", "9", "0.7", "0"]
  got = outputs("python", waits, inputs, "bwrap", Limits(seconds=1.2))
  expected = [b"0.7\n", b"0.7\n", None, b"0.7\n", b"0.0\n"]
  assert got == expected


def test_programs_of_other_languages_are_built(bwrap, needs):
  needs("cpp")
  source = "#include <iostream>\nint main() { int n; std::cin >> n; "
  source += "if (n > 1) return 1; std::cout << n + 1; }"
  limits = Limits(seconds=20.0)
  assert outputs("cpp", source, ["0", "2", "1"], "bwrap", limits) == [
    b"1",
    None,
    b"2",
  ]
  assert outputs("cpp", "int", ["0", "2"], "bwrap", limits) == [None, None]


def test_what_is_too_long_or_no_text_is_no_test(bwrap, monkeypatch):
  monkeypatch.setattr(generators, "MAX_BYTES", 30)
  long = "print(1)\nprint('7' * 40)"
  binary = "import sys\nsys.stdout.buffer.write(bytes([200]))"
  assert made([long, binary], [RIGHT], [FIRST]).inputs == 0


@pytest.mark.parametrize(
  ("failed", "most", "expected"),
  [
    ([], 3, []),
    ([set(), set()], 3, []),
    ([{0, 1, 2}], 2, [0, 1]),
    ([{3}, {3, 1}, {2}], 1, [3]),
    ([{3}, {3, 1}, {2}], 2, [2, 3]),
    ([{3}, {3, 1}, {2}], 3, [1, 2, 3]),
  ],
)
def test_few_tests_catch_as_many_as_they_can(failed, most, expected):
  assert choose(failed, most) == expected
