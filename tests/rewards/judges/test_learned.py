"""What reward models are shown, and what becomes of their scores."""

import math

import numpy as np
import pytest

from r1jax import rewards
from r1jax.rewards.judges import learned
from r1jax.types import Completion, Example

HELLO = Example("Hello!", "")
WRITTEN = [
  Completion("<think>rude</think> Good day."),
  Completion("<think>no end"),
]
PAIRS = [(HELLO, completion) for completion in WRITTEN]


def length(texts):
  return [float(len(text)) for _, text in texts]


def test_helpfulness_scores_only_the_summary():
  values = learned.start_helpfulness(PAIRS, model=length)()
  assert values == [len("Good day."), 0.0]
  assert learned.helpfulness(*PAIRS[0], model=length) == len("Good day.")


def test_safety_scores_the_thoughts_too():
  scores = [float(len(completion.text)) for completion in WRITTEN]
  assert learned.start_safety(PAIRS, model=length)() == scores
  assert learned.safety(*PAIRS[1], model=length) == scores[1]


def test_the_model_sees_the_prompt_and_all_texts_at_once():
  seen = []
  model = lambda texts: seen.append(texts) or [0.0] * len(texts)
  learned.start_safety(PAIRS, model=model)()
  assert seen == [[("Hello!", completion.text) for completion in WRITTEN]]


def test_a_score_that_is_not_finite_gives_None():
  for odd in (math.nan, math.inf, -math.inf):
    model = lambda texts, odd=odd: [odd, 1.0]
    assert learned.start_safety(PAIRS, model=model)() == [None, 1.0]


def test_a_model_must_return_a_score_for_each_text():
  with pytest.raises(ValueError, match="1 scores for 2 texts"):
    learned.start_safety(PAIRS, model=lambda texts: [1.0])()


def test_reward_models_can_be_named_in_a_spec():
  scores = rewards.score(
    [HELLO] * 2,
    WRITTEN,
    format=1.0,
    helpfulness=dict(weight=1.0, model=length),
    safety=dict(weight=0.5, model=lambda texts: [math.nan, 2.0]),
  )
  np.testing.assert_array_equal(scores.total, [np.nan, 1.0])
  np.testing.assert_array_equal(scores.parts["helpfulness"], [9.0, 0.0])


def test_a_reward_model_is_required():
  with pytest.raises(ValueError, match="rewards.safety: .*model"):
    rewards.check(safety=1.0)
  with pytest.raises(ValueError, match="rewards.helpfulness: "):
    rewards.check(helpfulness=dict(weight=1.0, model="m"))
