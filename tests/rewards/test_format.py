"""The format reward sees exactly the paper's two blocks, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.rewards import format
from r1jax.types import Completion, Example

TAGS = ["<think>", "</think>", "<answer>", "</answer>"]


def reward(text: str, prefill: str = "") -> float:
  return format.reward(Example("", ""), Completion(text, prefill=prefill))


@pytest.mark.parametrize(
  "text",
  [
    "<think>a</think><answer>b</answer>",
    "<think>a</think> <answer>b</answer>",
    "\n <think>\na\n\nb\n</think>\n\n<answer>\nb\n</answer>\n",
    "<think></think><answer></answer>",
    "<think>1 < 2 > 0 </ think></think><answer>$x$</answer>",
  ],
)
def test_thoughts_then_an_answer_get_1(text):
  assert reward(text) == 1.0


def test_a_prefilled_tag_counts_as_written():
  assert reward("<think>a</think><answer>b</answer>", prefill="<think>") == 1.0


@pytest.mark.parametrize(
  "text",
  [
    "",
    "b",
    "<answer>b</answer>",
    "<think>a</think>",
    "<think>a</think><answer>b",
    "<think>a<answer>b</answer>",
    "<answer>b</answer><think>a</think>",
    "<think>a</think>so<answer>b</answer>",
    "so <think>a</think><answer>b</answer>",
    "<think>a</think><answer>b</answer>\nand more",
    "x\n<think>a</think><answer>b</answer>",
    "<think>a</think><answer>b</answer>\0",
    "<think>a</think><answer>b</answer><answer>c</answer>",
    "<think>a</think><think>a</think><answer>b</answer>",
    "<think><think>a</think><answer>b</answer>",
    "<think>a</think><answer><think>b</answer>",
    "<think>a<answer>b</answer></think>",
    "<Think>a</Think><Answer>b</Answer>",
    "<think>a</think></answer>b<answer>",
  ],
)
def test_any_other_text_gets_0(text):
  assert reward(text) == 0.0


def test_a_prefilled_tag_is_put_back_if_it_is_missing():
  assert reward("a</think><answer>b</answer>", prefill="<think>\n") == 1.0
  assert reward("a</think><answer>b</answer>") == 0.0
  text = "<think>\na</think><answer>b</answer>"
  assert reward(text, prefill="<think>\n") == 1.0


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("", 0.0),
    ("<think>", 0.25),
    ("<think>a</think>", 0.5),
    ("so <think>a</think> so <answer>b</answer> so", 1.0),
    ("<think>a</think><answer>b", 0.75),
    ("<think>a<answer>b</answer>", 0.75),
    ("<think><think>a</think><answer>b</answer>", 0.75),
    ("<answer>b</answer><think>a</think>", 0.5),
    ("</answer><answer></think><think>", 0.25),
    ("<think>" * 9 + "</answer>" * 9, 0.0),
  ],
)
def test_each_tag_in_its_place_earns_a_quarter(text, expected):
  assert format.tags(Example("", ""), Completion(text)) == expected


@given(st.lists(st.sampled_from([*TAGS, " ", "\n", "a"]), max_size=12))
def test_tags_agrees_with_a_loop_over_the_tags(pieces):
  def outside(text):
    return text.strip() == ""

  text = "".join(pieces)
  expected = 0.0
  if [piece for piece in pieces if piece in TAGS] == TAGS:
    before, rest = text.split(TAGS[0])
    between, after = rest.split(TAGS[1])[1].split(TAGS[2])
    after = after.split(TAGS[3])[1]
    expected = float(all(map(outside, (before, between, after))))
  assert reward(text) == expected


def test_a_megabyte_is_graded_fast():
  for text in ("<think>" * 150_000, " " * 1_000_000, "</think>\n" * 100_000):
    assert reward(text) == 0.0
