"""Every reward is total, deterministic, in its range, and alone in its row."""

import json
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax import rewards
from r1jax.types import Completion, Example

# The range of each reward, and the arguments that it needs.
RANGES = {
  "accuracy": (0, 1, {}),
  "answered": (0, 1, {}),
  "cosine": (-1, 1, {}),
  "format": (0, 1, {}),
  "instructions": (0, 1, {"partial": True}),
  "language": (0, 1, {}),
  "length": (-0.5, 0.5, {}),
  "overlong": (-1, 0, {"buffer": 8}),
  "paragraphs": (0, 1, {"max_words": 3}),
  "prose": (0, 1, {}),
  "quality": (0, 1, {}),
  "random": (0, 1, {}),
  "repetition": (-1, 0, {}),
  "tags": (0, 1, {}),
  "thought": (0, 1, {}),
}
CHECKED = dict(
  instruction_id_list=[
    "detectable_format:json_format",
    "language:response_language",
    "length_constraints:number_sentences",
    "change_case:english_capital",
    "length_constraints:nth_paragraph_first_word",
  ],
  kwargs=[
    {},
    dict(language="fr"),
    dict(relation="at least", num_sentences=3),
    {},
    dict(num_paragraphs=2, nth_paragraph=1, first_word="so"),
  ],
)
EXAMPLES = [
  Example("How many?", r"\frac{1}{2}", "math", "0", CHECKED),
  Example(
    "", "5 + 4", "countdown", "1", CHECKED | dict(numbers=[5, 4], target=9)
  ),
  Example("多少？", "B", "choice", "2", CHECKED | dict(choices=["one", "two"])),
  Example("1 + 1", '{"a": 1}', "logic", "3", CHECKED),
  Example("1 + 11 =", "12", "reasoning_gym/chain_sum", "4", CHECKED),
  Example("Combien ?", "Paris", "trivia", "5", CHECKED),
  Example(
    "Is it?",
    "",
    "general/self",
    "6",
    CHECKED | dict(language="en", name=["a"], ideas=[["x", "是"], ["1"]]),
  ),
]
PIECES = st.sampled_from(
  ["<think>", "</think>", "<answer>", "</answer>", r"\boxed{", "}", "{", "$"]
  + ["1", "2", "12", "0.5", "1/2", r"\frac12", r"\text{B}", "(B)", "5 + 4", "="]
  + ["((" * 20, "))", "[", "]", '{"a": 1}', ",", ";", "%", "\\", r"\sqrt", "^"]
  + ["9^{9^{9}}", "9**9**9", "99999!", "\0", "\ud800", "\u202e", "½", "√", "①"]
  + ["So it is. ", "Das ist ein Satz. ", "是的。", "```", "a" * 600, "1," * 40]
  + ["* a\n", "\n\n", "***", "******", "<<", ">>", "SECTION 1", "x=1", " or "]
  + [r"\begin{pmatrix}", r"\\", "&", r"\end{pmatrix}", r"\pm", "<", r"\le", "x"]
)
TEXTS = st.one_of(
  st.lists(PIECES, max_size=14).map("".join),
  st.lists(PIECES, max_size=8).map(
    lambda pieces: f"<think></think><answer>{''.join(pieces)}</answer>"
  ),
  st.text(max_size=40),
)
COMPLETIONS = st.builds(
  Completion,
  TEXTS,
  num_tokens=st.integers(0, 40),
  max_tokens=st.sampled_from([0, 16, 40]),
)
ROWS = st.lists(st.tuples(st.sampled_from(EXAMPLES), COMPLETIONS), max_size=4)


def score(name: str, rows, **kwargs) -> np.ndarray:
  examples, written = [e for e, _ in rows], [c for _, c in rows]
  spec = {name: dict(RANGES[name][2], weight=1.0)}
  scores = rewards.score(examples, written, **spec, **kwargs)
  assert scores.counts == dict(timeouts=0, crashes=0)
  return scores.total


def test_every_reward_that_needs_nothing_else_is_tried():
  elsewhere = {"code", "compiles", "helpfulness", "judge", "preference"}
  elsewhere |= {"safety", "speed"}
  assert {*rewards.REWARDS} - elsewhere == {*RANGES}


@pytest.mark.parametrize("name", RANGES)
def test_any_text_gets_a_score_in_its_range_twice(name):
  low, high, _ = RANGES[name]

  @settings(deadline=None, max_examples=60)
  @given(ROWS)
  def check(rows):
    once, again = score(name, rows), score(name, rows)
    np.testing.assert_array_equal(once, again)
    assert all(math.isnan(value) or low <= value <= high for value in once)

  check()


@pytest.mark.parametrize("name", sorted({*RANGES} - {"length"}))
def test_a_score_depends_on_no_other_row(name):
  @settings(deadline=None, max_examples=25)
  @given(ROWS, st.randoms())
  def check(rows, random):
    alone = [score(name, [row])[0] for row in rows]
    order = random.sample(range(len(rows)), len(rows))
    shuffled = score(name, [rows[i] for i in order])
    np.testing.assert_array_equal(shuffled, [alone[i] for i in order])

  check()


@settings(deadline=None, max_examples=40)
@given(st.lists(COMPLETIONS, min_size=1, max_size=5), st.randoms())
def test_a_group_in_another_order_gets_the_same(written, random):
  rows = [(EXAMPLES[0], completion) for completion in written]
  straight = score("length", rows, group_size=len(rows))
  order = random.sample(range(len(rows)), len(rows))
  shuffled = score("length", [rows[i] for i in order], group_size=len(rows))
  np.testing.assert_array_equal(shuffled, straight[order])


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize(
  "text",
  [
    "x" * 10**6,
    "<think>" * 150_000,
    "</think>" + "{" * 10**6,
    "</think><answer>" + "9" * 10**6 + "</answer>",
    "</think><answer>" + "1," * 255 + "</answer>",
    r"</think>\boxed{" + r"\frac{1}{" * 60 + "1" + "}" * 61,
    r"</think>" + r"\boxed{" * 10**5,
    "<think>" + "$" * 10**5 + "</think>" + "*" * 10**5,
    "<think>" + "`" * 10**5 + "</think>" + "<<" * 10**5,
    "<think>" + r"\(" * 10**5 + "</think>" + "[" * 10**5,
    "<think>" + "是" * 10**5 + "</think>" + "\n" * 10**5,
    "<think>" + r"\begin{a}" * 10**4 + "</think>" + " - \n" * 10**4,
    "<think>" + "wait. " * 10**5 + "</think>" + "a\ud800\0" * 10**5,
  ],
)
def test_a_hostile_text_takes_seconds_at_most(name, text):
  """Within the pool's usual limit of five, as the process counts them."""
  examples = EXAMPLES if name == "accuracy" else EXAMPLES[:1]
  start = time.process_time()
  score(name, [(example, Completion(text, 9, 16)) for example in examples])
  assert time.process_time() - start < 5.0 * len(examples)


def test_an_example_can_be_sent_to_the_pool():
  assert json.loads(json.dumps(CHECKED)) == CHECKED
