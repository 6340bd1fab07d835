"""Texts of evaluation sets are found; what only looks like them is not."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data import decontamination
from r1jax.data.decontamination import (
  choose,
  first_occurrences,
  index_of,
  is_contaminated,
)
from r1jax.text import Example

QUESTION = (
  "Natalia sold clips to 48 of her friends in April, and then she sold half as "
  "many clips in May. How many clips did she sell altogether?"
)
CHINESE = "小明有十二个苹果，他给了小红三个，又买了五个，请问他现在有几个？"


def oracle(evaluation, text, size):
  """Whether two texts share `size` words in a row, by comparing all."""
  mine = decontamination.words(text)
  theirs = decontamination.words(evaluation)
  if len(theirs) < size:
    return mine == theirs
  return any(
    mine[i : i + size] == theirs[j : j + size]
    for i in range(len(mine) - size + 1)
    for j in range(len(theirs) - size + 1)
  )


WORDS = st.lists(st.sampled_from(["a", "b", "1", "+", "十"]), max_size=9)


@settings(max_examples=300)
@given(WORDS, WORDS, st.integers(2, 4))
def test_shared_sequences_are_those_of_the_oracle(evaluation, text, size):
  evaluation, text = " ".join(evaluation), " ".join(text)
  index = index_of([evaluation], size=size)
  expected = bool(evaluation) and oracle(evaluation, text, size)
  assert is_contaminated(index, text) == expected


def test_ten_words_in_a_row_are_enough_and_nine_are_not():
  index = index_of([QUESTION])
  words = QUESTION.split()
  other = ["So", "Bob", "left"]
  for start in range(0, len(words) - 10):
    part = words[start : start + 10]
    assert is_contaminated(index, " ".join([*other, *part, *other]))
    assert not is_contaminated(index, " ".join([*other, *part[:-1], *other]))


def test_case_punctuation_and_spaces_hide_nothing():
  index = index_of([QUESTION])
  assert is_contaminated(index, QUESTION.upper().replace(",", " -- \n"[-1]))
  assert is_contaminated(index, f"\n>{QUESTION.replace(' ', '  ')}!")


def test_a_character_is_a_word_where_there_are_no_spaces():
  index = index_of([CHINESE])
  assert is_contaminated(index, f"题目：{CHINESE[3:18]}。")
  assert not is_contaminated(index, "题目：小明有十二个橘子，他给了小红四个。")


def test_numbers_and_operators_tell_problems_apart():
  index = index_of(["1 + 2 - 3 + 4 - 5 + 6 ="])
  assert is_contaminated(index, "Compute 1 + 2 - 3 + 4 - 5 + 6")
  assert not is_contaminated(index, "Compute 1 - 2 + 3 - 4 + 5 - 6")


def test_the_frame_of_a_task_is_no_contamination():
  rng = random.Random(0)
  frame = "State the final answer to the following arithmetic problem:"
  numbers = lambda: " + ".join(str(rng.randrange(100)) for _ in range(6))
  evaluation = [f"{frame} {numbers()} =" for _ in range(60)]
  index = index_of(evaluation)
  assert all(is_contaminated(index, text) for text in evaluation)
  fresh = {f"{frame} {numbers()} =" for _ in range(200)} - {*evaluation}
  assert not [text for text in fresh if is_contaminated(index, text)]


def test_a_set_that_holds_a_question_often_is_no_frame():
  assert is_contaminated(index_of([QUESTION] * 50), QUESTION)


def test_a_short_question_is_found_where_it_is_all():
  index = index_of(["What is 2 + 3?"])
  assert is_contaminated(index, "what is 2+3")
  assert not is_contaminated(index, "What is 2 + 3? And what is 2 + 3 + 4?")
  assert not is_contaminated(index_of(["", "!?"]), "")


def test_solutions_are_texts_and_answers_are_not():
  examples = [
    Example("Q one", "7", metadata={"solution": "Seven it is."}),
    Example("Q two", "8", metadata={"solution": 8}),
  ]
  texts = [*decontamination.texts_of(examples)]
  assert texts == ["Q one", "Seven it is.", "Q two"]


def test_repetitions_differ_in_case_and_spaces_only():
  texts = ["A b", "a  B\n", "a+b", "a-b", "A b"]
  assert [*first_occurrences(texts)] == [True, False, True, True, False]


def test_prompts_are_chosen_once_and_counted():
  prompts = ["one", QUESTION, "One", QUESTION, "two"]
  chosen = choose(prompts, index_of([QUESTION]))
  assert chosen == ([0, 4], 2, 1)


def test_a_size_below_two_is_refused():
  with pytest.raises(ValueError, match="size must be 2 or more, got 1"):
    index_of([QUESTION], size=1)
