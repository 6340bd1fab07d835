"""Problems: one for each index, and never both trained and tested on."""

import pickle
import threading
import time

import pytest

from r1jax.data import reasoning_gym
from r1jax.data.split import in_test
from r1jax.types import Example

TASKS = {
  "chain_sum": dict(min_terms=2, max_terms=3, max_digits=2),
  "spell_backward": dict(min_word_len=3, max_word_len=5),
  "countdown": dict(
    min_numbers=3,
    max_numbers=3,
    max_value=20,
    min_target=1,
    max_target=99,
    operators=("+", "-"),
  ),
}
CHEAP = {task: TASKS[task] for task in ("chain_sum", "spell_backward")}


def load(tasks=TASKS, split="train", size=300, seed=0):
  return reasoning_gym.load(tasks=tasks, split=split, size=size, seed=seed)


def contents(dataset):
  return [(e.domain, reasoning_gym.content(e)) for e in dataset]


def test_train_and_test_share_no_problem():
  tests = {*contents(load(CHEAP, "test", 600, seed=7))}
  assert len(tests) == 600
  for seed in (7, 8):
    problems = contents(load(CHEAP, "train", 8000, seed=seed))
    assert len({*problems}) > 5000
    assert not tests & {*problems}
  tests = {*contents(load(TASKS, "test", 60, seed=7))}
  assert not tests & {*contents(load(TASKS, "train", 1500, seed=7))}


def test_wider_arguments_do_not_bring_test_problems_back():
  tests = {*contents(load(CHEAP, "test", 400))}
  wide = {"chain_sum": {}, "spell_backward": {}}
  problems = contents(load(wide, "train", 6000, seed=3))
  assert not tests & {*problems}


def test_the_library_alone_would_have_mixed_them():
  """Why seeds are hashed: neighbouring seeds of the library share items."""
  source = reasoning_gym._source("chain_sum", {})
  shared = {source[42 + i]["question"] for i in range(20)}
  assert len(shared & {source[43 + i]["question"] for i in range(20)}) == 19
  one, other = load(CHEAP, seed=42), load(CHEAP, seed=43)
  assert len({*contents(one)} & {*contents(other)}) < 30
  assert all(a != b for a, b in zip(contents(one), contents(other)))


def test_one_problem_in_ten_is_for_testing():
  share = sum(in_test("d", str(i)) for i in range(20_000)) / 20_000
  assert abs(share - 0.1) < 0.01


def test_an_item_depends_on_its_index_alone():
  for split in ("train", "test"):
    straight, backward = load(split=split, size=60), load(split=split, size=60)
    expected = [*straight]
    assert [backward[i] for i in reversed(range(60))] == expected[::-1]
    assert load(split=split, size=30)[7] == expected[7]
    assert backward[-1] == expected[-1]
    assert pickle.loads(pickle.dumps(expected)) == expected


def test_threads_read_the_same_items():
  dataset = load(CHEAP, "test", 200)
  read = []
  threads = [
    threading.Thread(target=lambda: read.append([*dataset])) for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert all(items == read[0] for items in read)


def test_tasks_take_turns_and_ids_are_unique():
  dataset = load(size=9)
  assert [e.domain for e in dataset] == [
    f"reasoning_gym/{task}" for task in TASKS
  ] * 3
  assert len({e.id for e in dataset}) == 9
  assert dataset[4].id == "spell_backward/train/1"


def test_a_dataset_may_be_larger_than_memory():
  dataset = load(CHEAP, size=10**12)
  assert len(dataset) == 10**12
  assert dataset[10**12 - 1].prompt
  with pytest.raises(IndexError):
    dataset[10**12]


def test_all_wordings_of_a_problem_have_the_same_content():
  metadata = dict(expression="3 - -4 + 15")
  one = Example("", "", "reasoning_gym/chain_sum", "", metadata)
  other = one._replace(metadata=dict(expression="15 + 3 - -4"), prompt="Add!")
  assert reasoning_gym.content(one) == reasoning_gym.content(other)
  metadata = dict(numbers=[3, 1, 2], target=6)
  one = Example("Make 6", "", "reasoning_gym/countdown", "", metadata)
  other = one._replace(metadata=dict(numbers=[1, 2, 3], target=6), prompt="6?")
  assert reasoning_gym.content(one) == reasoning_gym.content(other)
  assert reasoning_gym.is_test(one) == reasoning_gym.is_test(other)


def test_a_thousand_cheap_problems_take_no_time():
  start = time.monotonic()
  assert len([*load(CHEAP, size=1000)]) == 1000
  assert time.monotonic() - start < 2.0  # 0.03 s on an idle machine.


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(split="valid"), "'train' or 'test', got 'valid'"),
    (dict(size=0), "cannot make 0"),
    (dict(tasks={}), "cannot make"),
    (dict(tasks={"chain_sums": {}}), "did you mean 'chain_sum'"),
    (dict(tasks={"chain_sum": dict(terms=3)}), "chain_sum.*terms"),
    (
      dict(tasks={"chain_sum": dict(min_terms=0)}),
      "min_terms must be positive",
    ),
  ],
)
def test_bad_arguments_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    load(**change)


def test_too_few_problems_for_testing_is_an_error():
  tiny = {"chain_sum": dict(min_terms=2, max_terms=2, max_digits=1)}
  with pytest.raises(ValueError, match="chain_sum: only .* reduce `size`"):
    [*load(tiny, "test", 100)]
