"""Rewards of length: the papers' numbers, in tokens."""

import math

import pytest

from r1jax import rewards
from r1jax.rewards import length
from r1jax.types import Completion, Example

SUM = Example("1 + 11 =", "12", "reasoning_gym/chain_sum")


def write(tokens, *, limit=16_384, right=True, padding=""):
  text = f"<think>{padding}</think><answer>{12 if right else 13}</answer>"
  return Completion(text, num_tokens=tokens, max_tokens=limit)


@pytest.mark.parametrize(
  ("tokens", "expected"),
  [(1, 0), (12_288, 0), (12_289, -1 / 4096), (14_336, -0.5)]
  + [(16_384, -1), (20_000, -1)],
)
def test_overlong_falls_over_the_buffer(tokens, expected):
  assert length.overlong(SUM, write(tokens), buffer=4096) == expected


@pytest.mark.parametrize(
  ("tokens", "right", "wrong"),
  [(1, 1.0, -1.0), (500, 0.75, -0.75), (1000, 0.5, -0.5), (2000, 0.5, -0.5)],
)
def test_cosine_is_not_periodic(tokens, right, wrong):
  for correct, expected in ((True, right), (False, wrong)):
    completion = write(tokens, limit=1000, right=correct)
    assert math.isclose(length.cosine(SUM, completion), expected, abs_tol=1e-5)


def test_tokens_are_not_characters():
  for padding in ("", "x" * 100_000, "字" * 5000):
    assert length.overlong(SUM, write(9, padding=padding), buffer=9) == 0.0


def test_a_completion_of_unknown_length_is_not_graded():
  for completion in (Completion("x" * 99_999), write(0), write(9, limit=0)):
    assert length.overlong(SUM, completion, buffer=10) is None
    assert length.cosine(SUM, completion) is None
  assert length.overlong(SUM, write(9, limit=0), buffer=4, max_tokens=10) < 0


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match="buffer must be 1 or more, got 0"):
    length.overlong(SUM, write(9), buffer=0)
  with pytest.raises(ValueError, match="max_tokens must be 1 or more, got -1"):
    length.cosine(SUM, write(9), max_tokens=-1)


def test_cosine_is_None_where_accuracy_is_None():
  example = Example("", r"\mho(", "math")
  assert length.cosine(example, write(9)) is None


def test_the_shortest_of_a_group_is_worth_most():
  group = [write(100), write(200), write(300), write(300, right=False)]
  assert length.group(SUM, group) == [0.5, 0.0, -0.5, -0.5]
  short_and_wrong = [write(100, right=False), write(300)]
  assert length.group(SUM, short_and_wrong) == [0.0, -0.5]


def test_equal_lengths_get_equal_rewards():
  assert length.group(SUM, [write(7), write(7, right=False)]) == [0.0, 0.0]
  assert length.group(SUM, [write(7)]) == [0.0]


def test_completions_of_unknown_length_are_not_compared_with():
  group = [write(0), write(100), write(300)]
  assert length.group(SUM, group) == [None, 0.5, -0.5]
  assert length.group(SUM, [write(0)]) == [None]


def test_lengths_are_compared_within_a_group_only():
  lengths = [100, 300, 5000, 6000]
  written = [write(tokens) for tokens in lengths]
  scores = rewards.score([SUM] * 4, written, group_size=2, length=1.0)
  assert scores.total.tolist() == [0.5, -0.5, 0.5, -0.5]
  other = SUM._replace(id="other")
  scores = rewards.score([SUM, SUM, other, other], written, length=2.0)
  assert scores.total.tolist() == [1.0, -1.0, 1.0, -1.0]


def test_groups_that_do_not_divide_are_refused():
  written = [write(1)] * 3
  with pytest.raises(ValueError, match="group_size is 2: 3 completions"):
    rewards.score([SUM] * 3, written, group_size=2, length=1.0)
  examples = [SUM, SUM._replace(id="b")]
  with pytest.raises(ValueError, match="and of another example"):
    rewards.score(examples, written[:2], group_size=2, length=1.0)
