"""What reward models are shown, and what becomes of their scores."""

import math

import pytest

from r1jax.rewards import learned
from r1jax.types import Completion, Example

HELLO = Example("Hello!", "")
PAIRS = [
  (HELLO, Completion("<think>rude</think> Good day.")),
  (HELLO, Completion("<think>no end")),
]


def length(texts):
  return [float(len(text)) for _, text in texts]


def test_helpfulness_is_that_of_the_summary_alone():
  assert learned.helpfulness(length, PAIRS) == [len("Good day."), 0.0]


def test_safety_is_that_of_the_thoughts_too():
  scores = [float(len(completion.text)) for _, completion in PAIRS]
  assert learned.safety(length, PAIRS) == scores


def test_the_model_sees_the_prompt():
  seen = []
  learned.safety(lambda texts: seen.extend(texts) or [0.0] * 2, PAIRS)
  assert [prompt for prompt, _ in seen] == ["Hello!"] * 2


def test_a_score_that_is_no_number_is_no_score():
  for odd in (math.nan, math.inf, -math.inf):
    scores = learned.safety(lambda texts, odd=odd: [odd, 1.0], PAIRS)
    assert scores == [None, 1.0]


def test_a_score_is_needed_for_each_text():
  with pytest.raises(ValueError, match="1 scores for 2 texts"):
    learned.safety(lambda texts: [1.0], PAIRS)
