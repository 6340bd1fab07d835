"""What is learned of a conversation: no token too many, and none too few."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data import chat, packing
from r1jax.data.templates import (
  deepseek_r1,
  deepseek_r1_think,
  tokenizer_template,
)

END, USER, ASSISTANT = "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
TEXTS = st.text() | st.lists(
  st.sampled_from([END, USER, ASSISTANT, "<think>", "</think>", "a", "\n", " "])
).map("".join)


def said(*contents, system=None):
  """A conversation in turns, the user's first."""
  roles = ("user", "assistant") * len(contents)
  first = [] if system is None else [dict(role="system", content=system)]
  return first + [
    dict(role=role, content=content) for role, content in zip(roles, contents)
  ]


def id_of(words, name="<|im_end|>"):
  (number,) = words.encode(name)
  return number


def learn(messages, words, template=deepseek_r1, **options):
  return chat.demonstrations(messages, template, words, **options)


def test_an_answer_is_learned_and_its_end(words):
  told = said("Hi", "<think>\nHm\n</think>\n\nHello!", system="S")
  ((prompt, completion),) = learn(told, words)
  assert prompt == chat.prompt(told[:-1], deepseek_r1, words).ids
  assert completion[-1] == id_of(words, END)
  assert words.decode(completion[:-1]) == told[-1]["content"]
  assert completion[0] == id_of(words, "<think>")
  joined = "".join([words.decode(prompt), told[-1]["content"], END])
  assert prompt + completion == words.encode(joined)


def test_what_the_template_writes_is_not_learned(words):
  told = said("Hi", "<think>\n\nHm\n</think>\n\nHello!")
  ((prompt, completion),) = learn(told, words, deepseek_r1_think)
  assert prompt == chat.prompt(told[:-1], deepseek_r1_think, words).ids
  assert words.decode(prompt).endswith(f"{ASSISTANT}<think>\n")
  assert words.decode(completion) == "\nHm\n</think>\n\nHello!"
  assert id_of(words, "<think>") not in completion


def test_prompt_and_completion_are_joined_as_ids(deepseek):
  # In one text both line breaks are one token, which no sampler would see.
  told = said("Hi", "<think>\n\nHm")
  ((prompt, completion),) = learn(told, deepseek, deepseek_r1_think)
  text = deepseek.decode(prompt) + deepseek.decode(completion)
  assert text == deepseek_r1_think(said("Hi"), generation_prompt=True) + (
    "\nHm"
  )
  assert len(deepseek.encode(text)) < len(prompt + completion[:-1])


@pytest.mark.parametrize("answer", ["Hello!", "<think></think>Hello!", ""])
def test_an_answer_without_the_opening_follows_a_bare_prompt(words, answer):
  told = said("Hi", answer)
  assert learn(told, words, deepseek_r1_think) == learn(told, words)


def test_each_answer_is_an_example_of_its_own(words):
  answers = [f"<think>\nthought {i}\n</think>\n\nanswer {i}" for i in range(3)]
  told = said("q0", answers[0], "q1", answers[1], "q2", answers[2])
  found = learn(told, words, turns="each")
  assert [words.decode(d.completion) for d in found] == answers
  for i, demonstration in enumerate(found):
    prompt = words.decode(demonstration.prompt)
    assert "thought" not in prompt
    assert [f"answer {j}" in prompt for j in range(3)] == [
      j < i for j in range(3)
    ]
    assert [f"q{j}" in prompt for j in range(3)] == [j <= i for j in range(3)]
  assert learn(told, words) == found[-1:]
  assert learn(told[:-1], words, turns="each") == found[:-1]


def test_any_answer_is_learned_whole_and_ends_once(words):
  @settings(max_examples=150, deadline=None)
  @given(TEXTS, TEXTS)
  def compare(question, answer):
    for template in (deepseek_r1, deepseek_r1_think):
      told = said(question, answer)
      ((prompt, completion),) = learn(told, words, template)
      end = id_of(words, END)
      assert completion[-1] == end and end not in completion[:-1]
      assert {USER, ASSISTANT}.isdisjoint(map(words.id_to_token, completion))
      whole = words.decode(prompt) + words.decode(completion[:-1])
      asked = deepseek_r1(told[:-1], generation_prompt=True)
      assert whole == asked + answer

  compare()


def test_an_end_that_also_pads_is_learned(small):
  # In the files of `small`, as in R1's, the pad token is the EOS.
  found = learn(said("a", "b", "c", "d"), small, turns="each")
  pieces = [
    packing.Piece(prompt=p, completions=[c], origins=[100 * i])
    for i, (p, c) in enumerate(found)
  ]
  packed = packing.pack(pieces, 64)
  learned = packed.targets[packed.origin >= 0].tolist()
  assert sorted(learned) == sorted(found[0].completion + found[1].completion)
  assert learned.count(id_of(small, END)) == 2


def test_a_chatml_answer_ends_with_its_mark(chatml, small):
  template = tokenizer_template(chatml)
  told = said("Hi", "<think>x</think>Ho")
  ((prompt, completion),) = learn(told, chatml, template)
  assert chatml.decode(prompt) == template(
    told[:-1], generation_prompt=True
  ).replace("<|im_end|>", "")  # An EOS is not shown.
  assert completion == [*chatml.encode("<think>x</think>Ho"), id_of(chatml)]
  with pytest.raises(ValueError, match=r"ends a turn with '<\|im_end\|>', whi"):
    learn(told, small, template)


def test_what_cannot_be_learned_is_said(small):
  with pytest.raises(ValueError, match="does not end with an answer"):
    learn(said("Hi"), small)
  with pytest.raises(ValueError, match="does not end with an answer"):
    learn([], small)
  with pytest.raises(ValueError, match='turns must be "last" or "each"'):
    learn(said("Hi", "Ho"), small, turns="all")
  call = dict(type="function", function=dict(name="f", arguments=""))
  called = dict(role="assistant", content=None, tool_calls=[call])
  with pytest.raises(ValueError, match="message 1 calls a tool"):
    learn([*said("Hi"), called], small)
  assert learn(said("Hi"), small, turns="each") == []
