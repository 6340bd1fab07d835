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


def test_an_empty_batch_has_empty_scores():
  assert rewards.score([], [], accuracy=1.0).total.shape == (0,)


def test_one_completion_is_needed_for_each_example():
  with pytest.raises(ValueError):
    rewards.score([EXAMPLE], [RIGHT, WRONG], accuracy=1.0)


def test_an_ungraded_completion_is_nan(monkeypatch):
  never = rewards.Reward(lambda e, c: None)
  monkeypatch.setitem(rewards.REWARDS, "never", never)
  scores = rewards.score([EXAMPLE], [RIGHT], accuracy=1.0, never=1.0)
  assert math.isnan(scores.total[0])
  assert math.isnan(scores.parts["never"][0])
  assert scores.parts["accuracy"][0] == 1.0


def test_a_reward_of_weight_0_is_measured_and_not_added(monkeypatch):
  never = rewards.Reward(lambda e, c: None)
  monkeypatch.setitem(rewards.REWARDS, "never", never)
  scores = rewards.score([EXAMPLE], [RIGHT], accuracy=0, format=2, never=0)
  assert scores.total[0] == 2.0
  assert scores.parts["accuracy"][0] == 1.0


def test_a_reward_that_raises_is_counted_and_named(monkeypatch, caplog):
  def broken(example, completion):
    raise KeyError("oh")

  monkeypatch.setitem(rewards.REWARDS, "broken", rewards.Reward(broken))
  scores = rewards.score([EXAMPLE] * 2, [RIGHT] * 2, broken=1.0)
  assert np.isnan(scores.total).all()
  assert scores.counts == dict(timeouts=0, crashes=2)
  assert "broken" in caplog.text
  assert "sum/0" in caplog.text


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    (dict(acuracy=1.0), "did you mean 'accuracy'"),
    (dict(zzz=1.0), "there is .*format"),
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
  got = [(t.name, t.weight, t.arguments) for t in rewards.check(**spec)]
  assert got == [("accuracy", 1.0, {}), ("random", 0.5, {"seed": 3})]


def test_an_offset_is_added_to_the_weighted_value():
  spec = dict(accuracy=dict(weight=2.0, offset=-1.0))
  scores = rewards.score([EXAMPLE] * 3, [RIGHT, WRONG, "12"], **spec)
  assert scores.total.tolist() == [1.0, -1.0, -1.0]
  assert scores.parts["accuracy"].tolist() == [1.0, 0.0, 0.0]


def test_right_wrong_and_no_answer_can_have_any_three_rewards():
  """2, -1.5 and -2, as in Logic-RL."""
  spec = dict(accuracy=dict(weight=3.5, offset=-2.0), answered=0.5)
  scores = rewards.score([EXAMPLE] * 3, [RIGHT, WRONG, "12"], **spec)
  assert scores.total.tolist() == [2.0, -1.5, -2.0]


MATHS = Example("1 + 1", "2", "math/easy", "m")
CHAT = Example("Hello", "", "general/chat", "g")
BY_DOMAIN = {
  "math": dict(accuracy=1.0),
  "math/hard": dict(accuracy=9.0),
  "general": dict(format=dict(weight=1.0, offset=-1.0)),
}


def test_each_domain_has_its_own_rewards():
  hard = MATHS._replace(domain="math/hard/2024")
  texts = [RIGHT.replace("12", "2"), RIGHT, RIGHT.replace("12", "2")]
  scores = rewards.score([MATHS, CHAT, hard], texts, **BY_DOMAIN)
  assert scores.total.tolist() == [1.0, 0.0, 9.0]
  assert scores.applies["accuracy"].tolist() == [True, False, True]
  assert scores.applies["format"].tolist() == [False, True, False]
  assert np.isnan(scores.parts["accuracy"][1])


def test_a_domain_without_rewards_is_refused_by_name():
  other = MATHS._replace(domain="mathematics")
  with pytest.raises(ValueError, match="'m' has the domain 'mathematics'"):
    rewards.score([other], [RIGHT], **BY_DOMAIN)


def test_does_not_apply_differs_from_ungraded(monkeypatch):
  def brief(example, completion):
    if example.domain.startswith("math"):
      return rewards.DOES_NOT_APPLY
    return None if "?" in completion.text else 0.5

  monkeypatch.setitem(rewards.REWARDS, "brief", rewards.Reward(brief))
  scores = rewards.score(
    [MATHS, CHAT, CHAT], ["so", "so", "?"], format=1.0, brief=1.0
  )
  assert scores.applies["brief"].tolist() == [False, True, True]
  np.testing.assert_array_equal(scores.total, [0.0, 0.5, np.nan])
  np.testing.assert_array_equal(scores.parts["brief"], [np.nan, 0.5, np.nan])


@pytest.fixture
def own_module(tmp_path, monkeypatch):
  """A module of the user's own, on the path as the working directory is."""
  (tmp_path / "praising.py").write_text(
    "def praise(example, completion, *, word='so'):\n"
    "  return float(completion.text.count(word))\n"
    "def rank(example, completions):\n"
    "  return [float(len(c.text)) for c in completions]\n"
    "NUMBER = 3\n"
  )
  monkeypatch.syspath_prepend(str(tmp_path))


def test_a_users_reward_is_named_by_module_and_function(own_module):
  texts = ["so so", "no"]
  spec = {
    "praising:praise": 1.0,
    "others": dict(function="praising:praise", weight=0.5, word="no"),
  }
  with rewards.GraderPool(
    num_workers=1, timeout=60.0, preload=(), canaries=()
  ) as pool:
    for where in (None, pool):
      scores = rewards.score([EXAMPLE] * 2, texts, pool=where, **spec)
      assert scores.total.tolist() == [2.0, 0.5]
      assert scores.counts == dict(timeouts=0, crashes=0)
  assert [*scores.parts] == ["praise", "others"]
  scores = rewards.score(
    [EXAMPLE] * 2, texts, group_size=2, **{"praising:rank": 1.0}
  )
  assert scores.total.tolist() == [5.0, 2.0]


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ({"praising:parise": 1.0}, "'praising:parise' is no function of a module"),
    ({"nowhere:praise": 1.0}, "No module named 'nowhere'"),
    ({"praising:NUMBER": 1.0}, "is 3, and no function"),
    ({"praising:praise": dict(weight=1.0, wrod="")}, "unexpected.*'wrod'"),
    (dict(math=dict(acuracy=1.0)), "did you mean 'accuracy'"),
    (dict(math=dict(accuracy=1.0), format=1.0), "'format' stands beside"),
    (dict(accuracy=dict(weight=1.0, offset="x")), "offset must be a finite"),
  ],
)
def test_errors_in_users_rewards_are_explained(own_module, spec, message):
  with pytest.raises(ValueError, match=message):
    rewards.check(**spec)


def toss(texts, **kwargs):
  spec = dict(weight=1.0, **kwargs)
  return rewards.score([EXAMPLE] * len(texts), texts, random=spec).total


def test_the_random_reward_is_1_with_the_given_probability():
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
