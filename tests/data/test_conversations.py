"""Conversations of files, as texts whose answers are learned."""

import json

import numpy as np
import pytest
from conversations import conversation, id_of

from r1jax.data import conversations, templates
from r1jax.data.demonstrations import texts
from r1jax.data.templates import (
  deepseek_r1,
  deepseek_r1_think,
  tokenizer_template,
)
from r1jax.types import Example

END = "<｜end▁of▁sentence｜>"

TURNS = [dict(role="user", content="q"), dict(role="assistant", content="a")]


def load(tmp_path, *rows):
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
  return conversations.load(path=tmp_path / "a.jsonl", domain="d")


def test_a_row_is_a_conversation(tmp_path):
  last = [dict(role="user", content="r"), dict(role="assistant", content="b")]
  bare, full = load(
    tmp_path,
    dict(messages=TURNS),
    dict(
      id="x", domain="math", messages=TURNS + last, weight=2, answer="7", n=None
    ),
  )
  assert bare == ("q", "a", "d", f"{tmp_path}/a.jsonl:1", dict(messages=TURNS))
  assert full[:4] == ("r", "b", "math", "x")
  assert full.metadata == dict(
    id="x", domain="math", messages=TURNS + last, weight=2, answer="7"
  )


@pytest.mark.parametrize(
  "row, message",
  [
    (dict(text="x"), "'messages' must be a list of objects, got None"),
    (dict(messages=["x"]), "'messages' must be a list of objects"),
    (dict(messages=[]), "the conversation does not end with an answer"),
    (dict(messages=TURNS[:1]), "the conversation does not end with an answer"),
    (dict(messages=[dict(role="bot", content="")]), "message 0: role must be"),
    (dict(messages=[dict(role="user")]), "message 0: content must be text"),
    (dict(messages=TURNS, weight=-1), "weight must be a number .* got -1"),
    (dict(messages=TURNS, weight="1"), "weight must be a number .* got '1'"),
    (dict(messages=TURNS, weight=True), "weight must be a number .* got True"),
    (
      dict(messages=[TURNS[0] | dict(weight=1), TURNS[1]]),
      "message 0 has a weight, but is not an answer",
    ),
    (
      dict(messages=[*TURNS, TURNS[1] | dict(tool_calls=[{}])]),
      "message 2 calls a tool",
    ),
  ],
)
def test_a_row_that_is_no_conversation_is_named(tmp_path, row, message):
  dataset = load(tmp_path, dict(messages=TURNS), row)
  assert dataset[0].answer == "a"
  with pytest.raises(ValueError, match=f"a.jsonl:2: {message}"):
    dataset[1]


def test_a_path_that_is_not_set_says_how(tmp_path):
  with pytest.raises(ValueError, match="--config.dataset.path=PATH"):
    conversations.load(path="")


def texts_of(messages, tokenizer, template=deepseek_r1, **metadata):
  example = Example("", "", metadata=metadata | dict(messages=messages))
  return texts(example, template, tokenizer)


def spelled(text, tokenizer):
  """The tokens that are only read, and those that are learned, in turns."""
  cuts = np.flatnonzero(np.diff(text.weights > 0)) + 1
  names = [tokenizer.id_to_token(i) for i in text.tokens.tolist()]
  parts = np.split(np.array(names, object), cuts)
  return ["".join(part).replace("\u0120", " ") for part in parts]


def test_answers_without_thoughts_are_learned_in_one_text(tokenizer):
  messages = conversation("a b", "c", "d", "e f", system="s")
  (text,) = texts_of(messages, tokenizer)
  assert text.tokens.tolist() == tokenizer.encode(deepseek_r1(messages))
  assert spelled(text, tokenizer) == [
    "<｜begin▁of▁sentence｜>s<｜User｜>a b<｜Assistant｜>",
    f"c{END}",
    "<｜User｜>d<｜Assistant｜>",
    f"e f{END}",
  ]


def test_answers_with_thoughts_are_texts_that_show_no_past_thought(tokenizer):
  first, second = "<think>x</think>c", "<think>y</think>e"
  messages = conversation("a", first, "d", second)
  one, two = texts_of(messages, tokenizer)
  begin = "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜>"
  assert spelled(one, tokenizer) == [begin, first + END]
  past = f"{begin}c{END}<｜User｜>d<｜Assistant｜>"
  assert spelled(two, tokenizer) == [past, second + END]
  # A thought that the template opens is not learned as far as it is written.
  messages = conversation("a", "<think>\nx</think>c")
  (opened,) = texts_of(messages, tokenizer, deepseek_r1_think)
  read, learned = spelled(opened, tokenizer)
  assert read.startswith(f"{begin}<think>") and learned == f"x</think>c{END}"


def test_the_released_template_is_followed_to_the_token(deepseek, golden):
  """In all its golden conversations that end with an answer."""
  template, compared = tokenizer_template(deepseek), 0
  for case in golden:
    messages = case["messages"]
    answers = [m for m in messages if m["role"] == "assistant"]
    if messages[-1]["role"] != "assistant" or any(
      m.get("tool_calls") for m in messages
    ):
      continue
    found = texts_of(messages, deepseek, template)
    learned = [
      int(token) for text in found for token in text.tokens[text.weights > 0]
    ]
    expected = [
      [*deepseek.encode(m["content"]), id_of(deepseek, END)] for m in answers
    ]
    assert learned == sum(expected, [])
    if not any("</think>" in m["content"] for m in answers):
      (text,) = found
      assert text.tokens.tolist() == deepseek.encode(case["rendered"])
    compared += 1
  assert compared


def test_a_chatml_conversation_is_learned_with_every_im_end(chatml):
  messages = conversation("a", "<think>x</think>b", "c", "d")
  template = tokenizer_template(chatml)
  one, two = texts_of(messages, chatml, template)
  begin = "<|im_start|>user\u010aa<|im_end|>\u010a<|im_start|>assistant\u010a"
  assert spelled(one, chatml) == [begin, "<think>x</think>b<|im_end|>"]
  read, learned = spelled(two, chatml)
  assert read.startswith(f"{begin}b<|im_end|>\u010a<|im_start|>user")
  assert learned == "d<|im_end|>"
  (text,) = texts_of(conversation("a", "b", "c", "d"), chatml, template)
  _, first, _, second = spelled(text, chatml)
  assert (first, second) == ("b<|im_end|>", "d<|im_end|>")


def test_weights_of_a_conversation_and_of_its_answers_are_multiplied(small):
  messages = conversation("a", "b", "c", "d", "e", "f")
  messages[1]["weight"], messages[3]["weight"] = 0.5, 0
  (text,) = texts_of(messages, small, weight=3.0)
  (plain,) = texts_of(conversation("a", "b", "c", "d", "e", "f"), small)
  assert text.tokens.tolist() == plain.tokens.tolist()
  assert spelled(text, small)[1] == f"b{END}"
  assert [*dict.fromkeys(text.weights.tolist())] == [0.0, 1.5, 3.0]
  assert spelled(text, small)[3] == f"f{END}"


def test_what_follows_the_last_learned_answer_is_not_read(small):
  messages = conversation("a", "b", "c", "d")
  messages[3]["weight"] = 0
  (text,) = texts_of(messages, small)
  (alone,) = texts_of(messages[:2], small)
  assert text.tokens.tolist() == alone.tokens.tolist()
  messages[1]["weight"] = 0
  assert texts_of(messages, small) == []


def test_a_question_and_a_document_are_texts_too(small):
  render = templates.find("Q {question}:", small)
  (text,) = texts(Example("ab", "cd"), render, small)
  assert spelled(text, small) == ["Q ab:", f"cd{END}"]
  (text,) = texts(Example("", "cd"), render, small)
  assert spelled(text, small) == [f"cd{END}"]
  assert (text.head, text.slots) == (0, len(text.tokens) - 1)
