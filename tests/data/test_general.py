"""General requests: their split, what the rule says of answers, and pairs."""

import random

import numpy as np
import pytest

from r1jax import data, rewards
from r1jax.data import general, pairs
from r1jax.rewards import format, quality
from r1jax.text import DOES_NOT_APPLY, Completion, Example


def requests(split="train", size=600, seed=0, **options):
  return data.load("general", split=split, size=size, seed=seed, **options)


def example_of(request):
  return Example(
    request.text, "", f"general/{request.kind}", "0", request.metadata()
  )


def quality_of(example, text):
  return quality.reward(example, Completion(text))


EXAMPLE = Example(
  "I am Anna. Which drink is good for me?",
  "",
  "general/advice",
  "0",
  dict(
    language="en",
    name=["Anna", "安娜"],
    ideas=[["tea", "茶"], ["because", "因为"]],
  ),
)
GOOD = "Anna, I recommend tea because it is warm."


def test_requests_are_functions_of_seed_and_index():
  dataset = requests(size=10**9)
  for index in (7, 3, 10**9 - 1):
    assert dataset[index] == requests(size=10**9)[index]
  assert dataset[-1] == dataset[10**9 - 1]
  assert sum(dataset[i] == requests(seed=1)[i] for i in range(50)) < 5
  with pytest.raises(IndexError):
    dataset[10**9]


def test_no_request_is_in_both_splits_in_whatever_language():
  rng, found = random.Random(0), {"train": set(), "test": set()}
  for split, contents in found.items():
    for _ in range(800):
      request = general.draw(rng, split=split)
      contents.add((request.kind, request.content))
      for language in general.LANGUAGES:
        assert request._replace(language=language).split == split
  assert not found["train"] & found["test"]
  assert len(found["test"]) > 30
  texts = {e.prompt for e in requests("test", seed=3)}
  assert not texts & {e.prompt for e in requests("train", 1000)}


def test_good_answers_meet_every_criterion():
  """Of every kind and topic, in both languages."""
  for kind, topics in general.KINDS.items():
    for topic in topics:
      for i, name in enumerate(general.NAMES):
        language = general.LANGUAGES[i % 2]
        request = general.Request(kind, topic, name, language, "")
        text = general.answer(request, (), random.Random(0))
        values = quality.criteria(example_of(request), text)
        assert values == dict.fromkeys(values, 1.0), text


@pytest.mark.parametrize("fault", general.FAULTS)
def test_every_fault_lowers_the_quality(fault):
  rng = random.Random(fault)
  for _ in range(100):
    request = general.draw(rng, split="train")
    text = general.answer(request, (fault,), rng)
    assert quality_of(example_of(request), text) <= 11 / 12, text


@pytest.mark.parametrize(
  ("text", "criterion"),
  [
    ("Tom, I recommend tea because it is warm.", "addressed"),
    ("Joanna, I recommend tea because it is warm.", "addressed"),
    ("Anna, I recommend steak because it is warm.", "relevant"),
    ("安娜，我推荐茶，因为它很暖。", "language"),
    ("anna, I recommend tea because it is warm.", "sentence"),
    ("Anna, I recommend tea because it is warm", "sentence"),
    ("Anna, tea because it is warm, because it is warm.", "fresh"),
    ("Anna, tea because.", "length"),
    (GOOD[:-1] + " and good" * 12 + ".", "length"),
  ],
)
def test_each_criterion_is_missed_by_what_lacks_it(text, criterion):
  assert min(quality.criteria(EXAMPLE, GOOD).values()) == 1.0
  assert quality.criteria(EXAMPLE, text)[criterion] < 1.0


def test_the_quality_is_that_of_what_the_reader_sees():
  tagged = f"<think> Tom, Tom 茶 </think> <answer> {GOOD} </answer>"
  assert quality_of(EXAMPLE, tagged) == quality_of(EXAMPLE, GOOD) == 1.0
  assert quality_of(EXAMPLE, f"<think> {GOOD} </think>") < 0.5
  assert quality_of(EXAMPLE, "") == 0.0
  other = EXAMPLE._replace(domain="reasoning_gym/chain_sum")
  assert quality_of(other, GOOD) == DOES_NOT_APPLY


def test_a_request_that_cannot_be_rated_is_named():
  wrong = EXAMPLE._replace(id="mine:3", metadata=dict(language="en"))
  with pytest.raises(ValueError, match=r"mine:3.*\['ideas', 'name'\]"):
    rewards.check([wrong], quality=1.0)
  rewards.check([EXAMPLE, Example("1 + 1 =", "2", "math")], quality=1.0)


def test_the_chosen_answer_of_a_pair_is_the_better_one():
  dataset = pairs.load(split="train", size=800, seed=0, fault=0.3)
  texts = {example.prompt: example for example in requests(size=4000, seed=5)}
  margins, shared = [], []
  for row in dataset:
    assert row.metadata["messages"] == [dict(role="user", content=row.prompt)]
    if example := texts.get(row.prompt):
      assert row.metadata["language"] == example.metadata["language"]
      chosen = quality_of(example, row.answer)
      margins.append(chosen - quality_of(example, row.metadata["rejected"]))
      shared.append(chosen < 1)
  assert len(margins) > 500
  assert min(margins) > 0.05
  assert 0.3 < np.mean(shared) < 0.9  # Chosen answers have faults, too.


def test_pairs_are_functions_of_seed_and_index():
  options = dict(split="test", size=10**9, fault=0.2)
  one, other = pairs.load(seed=0, **options), pairs.load(seed=1, **options)
  assert one[5] == pairs.load(seed=0, **options)[5] == one[5 - 10**9]
  assert sum(one[i] == other[i] for i in range(50)) < 5
  tests = {e.prompt for e in requests("test", 1200)}
  assert {one[i].prompt for i in range(200)} <= tests


def test_every_fault_is_in_pairs_and_the_worse_answer_has_more():
  rng, seen = random.Random(0), set()
  for _ in range(500):
    better, worse = pairs.draw_faults(rng, 0.6)
    assert better < worse
    seen |= worse - better
  assert seen == {*general.FAULTS}


def test_an_unknown_split_or_language_is_refused():
  with pytest.raises(ValueError, match="'dev'"):
    requests("dev")
  with pytest.raises(ValueError, match="'fr'"):
    requests(languages=("en", "fr"))
  with pytest.raises(ValueError, match="'all'"):
    pairs.load(split="all", size=1, seed=0, fault=0.1)


def test_thoughts_precede_answers_that_need_them():
  plain = requests("train", 60)
  thoughtful = general.load(split="train", size=60, seed=0, thoughts=True)
  for one, other in zip(plain, thoughtful, strict=True):
    assert one.prompt == other.prompt
    if other.domain in ("general/greeting", "general/thanks"):
      assert other.answer == one.answer
    else:
      assert format.thought(other, Completion(other.answer)) == 1
      assert other.answer.endswith(f"</think> {one.answer}")
    assert quality_of(other, other.answer) == 1
