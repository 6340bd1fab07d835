"""Countdown: exact arithmetic, each number once, and no `eval`."""

import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data import jsonl
from r1jax.rewards import accuracy
from r1jax.rewards.maths import arithmetic
from r1jax.rewards.tasks import countdown
from r1jax.types import Completion, Example

EXAMPLE = Example(
  "", "", "countdown", "", dict(numbers=[11, 47, 12], target=70)
)
SHARED = pathlib.Path(__file__).parents[3] / "../shared/data"


def make(numbers, target):
  return EXAMPLE._replace(metadata=dict(numbers=numbers, target=target))


@pytest.mark.parametrize(
  ("numbers", "target", "answer"),
  [
    ([11, 47, 12], 70, "11 + 47 + 12"),
    ([11, 47, 12], 70, "(12+47)+11"),
    ([11, 47, 12], 70, "11 + 47 + 12 = 70"),
    ([11, 47, 12], 70, "$11 + 47 + 12$."),
    ([11, 47, 12], -24, "11 - 47 + 12"),
    ([3, 4, 5], 17, "3 \\times 4 + 5"),
    ([3, 4, 5], 17, "3×4+5"),
    ([3, 4, 5], 17, "3 x 4 + 5"),
    ([3, 4, 5], 17, "(3)X(4)+5"),
    ([3, 4, 5], 17, "３＊４＋５"),
    ([3, 4, 5], 17, "`3 * 4 + 5`"),
    ([3, 4, 5], 17, "**3 * 4 + 5**"),
    ([3, 4, 5], 17, r"\(3 \times 4 + 5\)"),
    ([3, 4, 5], 17, r"\[3 \times 4 + 5 = 17\]"),
    ([3, 4, 5], 17, r"\text{3 * 4 + 5}"),
    ([3, 4, 5], -17, "−3·4–5"),
    ([6, 3, 5], 7, "6÷3 + 5"),
    ([6, 3, 5], 7, "\\frac{6}{3} + 5"),
    ([6, 3, 5], 7, "\\left(6 \\div 3\\right) + 5"),
    ([1, 3, 3], 1, "3*(1/3)"),
    ([8, 3, 8, 3], 24, "8/(3-8/3)"),
    ([5, 3], 2, "-3+5"),
    ([5, 5], 1, "5/5"),
  ],
)
def test_an_expression_of_the_numbers_that_makes_the_target(
  numbers, target, answer
):
  assert countdown.grade(make(numbers, target), answer) == 1.0


@pytest.mark.parametrize(
  "answer",
  [
    "",
    "70",
    "11 + 47",
    "11 + 47 + 12 + 0",
    "11 + 11 + 48",
    "11 + 47 + 12 = 71",
    "70 = 11 + 47 + 12",
    "11 + 47 + 12 = 70 = 70",
    "11 + 47 - 12",
    "1147 - 12",
    "11.0 + 47 + 12",
    "11 + 47 + 12.",  # Graded below: a full stop is no decimal.
    "11 + 47 + 12 or so",
    "11 + 47 + 12; 1",
    "11**47**12",
    "11 // 47 + 12",
    "11 % 47 + 12",
    "(11 + 47 + 12",
    "int(70) + 0*(11+47+12)",
    "11 + 47 + 12 + 11 - 11",
    "__import__('os').system('true')",
    "9**9**9",
    "+".join(["1"] * 10_000),
    "(" * 200 + "11" + ")" * 200,
    "11 + 47 + 012",
    "11 + 47 + 1²2",
    "11 + 47 + 12 x",
    "x11 + 47 + 12",
    "**11 + 47** + 12",
    "11/(47-47)+12",
  ],
)
def test_anything_else_is_wrong(answer):
  expected = 1.0 if answer.endswith("12.") else 0.0
  assert countdown.grade(EXAMPLE, answer) == expected


def test_rounding_does_not_help():
  assert countdown.grade(make([10, 3, 3], 11), "10 / 3 * 3 + 1") == 0.0
  assert countdown.grade(make([1, 3, 3], 1), "1/3*3") == 1.0
  assert countdown.grade(make([7, 2], 3), "7/2") == 0.0
  assert countdown.grade(make([1, 49, 49], 1), "1/49*49") == 1.0


def test_the_answer_is_taken_from_behind_the_thinking():
  text = "<think>11 + 47 + 12</think><answer>{}</answer>"
  right, wrong = text.format("11 + 47 + 12"), text.format("12")
  assert accuracy.reward(EXAMPLE, Completion(right)) == 1.0
  assert accuracy.reward(EXAMPLE, Completion(wrong)) == 0.0


def test_an_example_without_numbers_is_refused():
  with pytest.raises(ValueError, match="needs 'numbers' and 'target'"):
    countdown.grade(Example("", "", "countdown"), "1")


@settings(deadline=None)
@given(
  st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
      lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
    ),
    max_leaves=8,
  )
)
def test_a_value_is_what_python_computes_in_fractions(text):
  import fractions
  import re

  tree = arithmetic.parse(text)
  exact = re.sub(r"\d+", lambda match: f"F({match[0]})", text)
  try:
    expected = eval(exact, {"F": fractions.Fraction})
  except ZeroDivisionError:
    expected = None
  assert arithmetic.value(tree) == expected


@pytest.mark.skipif(not SHARED.exists(), reason="there is no ../shared/data")
@pytest.mark.parametrize(
  "name", ["eval/countdown_eval", "train/countdown_train"]
)
def test_every_known_solution_is_right_and_one_more_is_not(name):
  for _, row in jsonl.read(SHARED / f"{name}.jsonl"):
    metadata = dict(nums=row["nums"], target=row["target"])
    example = EXAMPLE._replace(metadata=metadata)
    assert countdown.grade(example, row["solution"]) == 1.0
    assert countdown.grade(example, row["solution"] + " + 1") == 0.0
