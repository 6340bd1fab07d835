"""A thought that is good to read passes; each fault of one is found."""

import pytest

from r1jax.rewards import format, readability
from r1jax.types import Completion, Example

EXAMPLE = Example("How many?", "7")


def text(thought, after="It is 7."):
  return Completion(f"<think>\n{thought}\n</think>\n{after}")


@pytest.mark.parametrize(
  ("thought", "expected"),
  [
    ("one two three", 1.0),
    ("one two three four", 0.0),
    ("one two three\n\nfour five six", 1.0),
    ("one two three\nfour five six", 1.0),
    ("one two three four\n\nfive", 0.0),
    ("1 + 2 = 3", 0.0),
    ("我有三", 1.0),
    ("我有三个苹果", 0.0),
    ("", 1.0),
  ],
)
def test_a_paragraph_of_more_than_three_words_is_long(thought, expected):
  assert readability.paragraphs(EXAMPLE, text(thought), max_words=3) == expected


def test_a_long_paragraph_after_the_thought_is_no_matter():
  long = text("one", after="four words or more")
  assert readability.paragraphs(EXAMPLE, long, max_words=3) == 1.0
  without = Completion("four words or more")  # All of it is a thought.
  assert readability.paragraphs(EXAMPLE, without, max_words=3) == 0.0


def test_a_paragraph_has_at_least_a_word():
  with pytest.raises(ValueError, match="max_words must be 1 or more, got 0"):
    readability.paragraphs(EXAMPLE, text("a"), max_words=0)


@pytest.mark.parametrize(
  ("thought", "expected"),
  [
    ("I call `f(x)` twice.", 1.0),
    ("so:\n```python\nf(x)\n```\nthen", 0.0),
    ("so:\n  ~~~\nf(x)\n~~~", 0.0),
    ("so:\n```\nnever closed", 0.0),
    ("> ```\n> quoted\n> ```", 0.0),
    ("three ticks ``` within a line", 1.0),
  ],
)
def test_a_block_of_code_in_the_thought_is_found(thought, expected):
  assert readability.prose(EXAMPLE, text(thought)) == expected


def test_a_block_of_code_is_an_answer_like_any_other():
  program = text("I write it.", after="```python\nprint(7)\n```")
  assert readability.prose(EXAMPLE, program) == 1.0


@pytest.mark.parametrize(
  ("written", "expected"),
  [
    ("<think>a</think>b", 1.0),
    ("  <think>\na\n</think>\n\n<answer>b</answer>\n", 1.0),
    ("<think></think>b", 0.0),
    ("<think> \n</think>b", 0.0),
    ("<think>a</think> ", 0.0),
    ("a</think>b", 0.0),
    ("<think>a", 0.0),
    ("b", 0.0),
    ("", 0.0),
    ("x <think>a</think>b", 0.0),
    ("<think>a</think>b</think>c", 0.0),
    ("<think>a<think>b</think>c", 0.0),
    ("<think>a</think>b<think>c</think>d", 0.0),
  ],
)
def test_a_thought_and_a_summary_are_the_pattern(written, expected):
  assert format.thought(EXAMPLE, Completion(written)) == expected


def test_what_the_template_wrote_belongs_to_the_pattern():
  prefilled = Completion("a</think>b", prefill="<think>")
  assert format.thought(EXAMPLE, prefilled) == 1.0
