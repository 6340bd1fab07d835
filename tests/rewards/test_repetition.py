"""Repetition: what was said before counts, in any script."""

import pytest

from r1jax.rewards import repetition
from r1jax.types import Completion, Example


def reward(text: str, **kwargs) -> float:
  return repetition.reward(Example("", ""), Completion(text), **kwargs)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("", 0.0),
    ("one two", 0.0),
    ("one two three four five", 0.0),
    ("a b c a b c", -1 / 4),  # abc bca cab abc
    ("the the the the the", -2 / 3),
    ("The cat sat. the CAT sat.", -1 / 4),
    ("1 2 3 1 2 3 1 2 3", 0.0),  # Numbers are no words.
    ("我想想我想想", -1 / 4),
    ("我想你他她它", 0.0),
  ],
)
def test_the_penalty_is_the_share_of_repeated_sequences(text, expected):
  assert reward(text) == pytest.approx(expected)


def test_the_length_of_a_sequence_is_an_argument():
  assert reward("a b a b", size=1) == -0.5
  assert reward("a b a b", size=4) == 0.0
  with pytest.raises(ValueError, match="size must be 1 or more, got 0"):
    reward("a", size=0)


def test_an_endless_repetition_gets_almost_minus_1():
  assert -1.0 < reward("wait no " * 5000) < -0.99
