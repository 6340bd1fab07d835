"""Multiple choice: what names a letter, and what does not."""

import pytest

from r1jax.rewards.tasks import choice
from r1jax.types import Example

EXAMPLE = Example(
  "The capital?", "C", "choice", "", dict(choices=["$1$", "Rome", "Paris"])
)


@pytest.mark.parametrize(
  "answer",
  [
    "C",
    "c",
    "(C)",
    "(c).",
    "**C**",
    "$C$",
    r"\text{C}",
    r"\textbf{(C)}\ Paris",
    "C) Paris",
    "(C) Paris",
    "(c) Paris",
    "Ｃ",
    "C: Paris",
    "C. Paris, and not A",
    "Paris",
    " paris",
    "Answer: C",
    "option C",
    "The answer is (C).",
    "The correct answer is C) Paris",
    "答案是C",
    "选C",
    "option (c)",
    r"\boxed{C}",
    "I choose C.",
    "C is correct",
    "C Paris",
    "c paris",
  ],
)
def test_a_letter_or_its_text_names_the_choice(answer):
  assert choice.grade(EXAMPLE, answer) == 1.0


@pytest.mark.parametrize(
  "answer",
  ["", "A", "D", "(B)", "Rome", "1", "A, C", "CD", "B or C", "Cat", "C or D"]
  + [
    "The answer is C or D",
    "I choose C or D",
    "C Rome",
    "option (b)",
    "I. C. E.",
    "Because",
    "\0",
    "C" * 5000,
  ],
)
def test_another_letter_or_several_do_not(answer):
  assert choice.grade(EXAMPLE, answer) == 0.0


def test_several_letters_are_wanted_all_and_in_any_order():
  several = EXAMPLE._replace(answer="A B D", metadata={})
  for answer in ("ABD", "D, B, A", "A, B and D", "A、B、D"):
    assert choice.grade(several, answer) == 1.0
  for answer in ("A", "AB", "ABCD"):
    assert choice.grade(several, answer) == 0.0


def test_a_text_that_is_a_letter_too_is_read_as_the_text():
  units = dict(choices=["2c", "c", "0.8c"])
  example = EXAMPLE._replace(metadata=units)
  assert choice.grade(example, "c") == 0.0  # The second choice.
  assert choice.grade(example, "C") == choice.grade(example, "0.8c") == 1.0


def test_an_answer_that_is_no_letter_is_matched_as_text():
  assert choice.grade(Example("", "True", "choice"), "true.") == 1.0
  assert choice.grade(Example("", "True", "choice"), "false") == 0.0
