"""Scores: names, weights, and what could not be graded."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax import rewards
from r1jax.types import Completion, Example

EXAMPLE = Example("1 + 11 =", "12", "reasoning_gym/chain_sum", "sum/0")
RIGHT = "<think>so</think><answer>12</answer>"
WRONG = "<think>so</think><answer>13</answer>"


def test_the_total_is_the_weighted_sum_of_the_parts():
  texts = [RIGHT, WRONG, Completion("12")]
  scores = rewards.score([EXAMPLE] * 3, texts, accuracy=1.0, format=0.5)
  np.testing.assert_array_equal(scores.total, [1.5, 0.5, 0.0])
  np.testing.assert_array_equal(scores.parts["accuracy"], [1, 0, 0])
  np.testing.assert_array_equal(scores.parts["format"], [1, 1, 0])
  assert scores.total.dtype == np.float64
  assert scores.counts == dict(timeouts=0, crashes=0)


def test_nothing_scores_nothing():
  assert rewards.score([], [], accuracy=1.0).total.shape == (0,)


def test_one_completion_is_needed_for_each_example():
  with pytest.raises(ValueError):
    rewards.score([EXAMPLE], [RIGHT, WRONG], accuracy=1.0)


def test_what_could_not_be_graded_is_nan_and_not_wrong(monkeypatch):
  monkeypatch.setitem(rewards.REWARDS, "never", lambda e, c: None)
  scores = rewards.score([EXAMPLE], [RIGHT], accuracy=1.0, never=1.0)
  assert math.isnan(scores.total[0])
  assert math.isnan(scores.parts["never"][0])
  assert scores.parts["accuracy"][0] == 1.0


def test_a_reward_of_no_weight_is_measured_and_does_not_count(monkeypatch):
  monkeypatch.setitem(rewards.REWARDS, "never", lambda e, c: None)
  scores = rewards.score([EXAMPLE], [RIGHT], accuracy=0, format=2, never=0)
  assert scores.total[0] == 2.0
  assert scores.parts["accuracy"][0] == 1.0


def test_a_reward_that_raises_is_counted_and_named(monkeypatch, caplog):
  def broken(example, completion):
    raise KeyError("oh")

  monkeypatch.setitem(rewards.REWARDS, "broken", broken)
  scores = rewards.score([EXAMPLE] * 2, [RIGHT] * 2, broken=1.0)
  assert np.isnan(scores.total).all()
  assert scores.counts == dict(timeouts=0, crashes=2)
  assert "broken" in caplog.text
  assert "sum/0" in caplog.text


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    (dict(acuracy=1.0), "did you mean 'accuracy'"),
    (dict(zzz=1.0), "have .*format"),
    (
      dict(random=dict(weight=1.0, probabilty=0.5)),
      "rewards.random.*probabilty",
    ),
    (dict(random=dict(probability=0.5)), "weight must be a finite number"),
    (dict(accuracy="1"), "weight must be a finite number, got '1'"),
    (dict(accuracy=math.nan), "weight must be a finite number"),
    (dict(overlong=1.0), "rewards.overlong.*'buffer'"),
    (dict(overlong=dict(weight=1.0, buffer=0)), "buffer must be 1 or more"),
    (dict(repetition=dict(weight=1.0, size=0)), "size must be 1 or more"),
    (dict(length=dict(weight=1.0, buffer=1)), "rewards.length.*'buffer'"),
  ],
)
def test_a_bad_spec_says_what_is_wrong(spec, message):
  with pytest.raises(ValueError, match=message):
    rewards.check(**spec)


def test_a_checked_spec_is_weights_and_arguments():
  spec = dict(accuracy=1, random=dict(weight=0.5, seed=3))
  expected = {"accuracy": (1.0, {}), "random": (0.5, {"seed": 3})}
  assert rewards.check(**spec) == expected


def toss(texts, **kwargs):
  spec = dict(weight=1.0, **kwargs)
  return rewards.score([EXAMPLE] * len(texts), texts, random=spec).total


def test_the_random_reward_is_paid_as_often_as_asked():
  texts = [str(i) for i in range(2000)]
  for probability in (0.0, 0.2, 0.5, 1.0):
    mean = toss(texts, probability=probability).mean()
    assert abs(mean - probability) < 0.04
  assert (toss(texts, seed=1) != toss(texts, seed=2)).mean() > 0.4


@settings(deadline=None)
@given(st.lists(st.text(), max_size=6), st.randoms())
def test_a_reward_depends_on_no_other_row(texts, random):
  order = random.sample(range(len(texts)), len(texts))
  spec = dict(accuracy=1.0, format=1.0, random=1.0)
  straight = rewards.score([EXAMPLE] * len(texts), texts, **spec).total
  shuffled = [texts[i] for i in order]
  scores = rewards.score([EXAMPLE] * len(texts), shuffled, **spec)
  np.testing.assert_array_equal(scores.total, straight[order])
