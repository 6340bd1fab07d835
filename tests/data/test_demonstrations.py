"""What is learned of a conversation: no token too many, and none too few."""

import packed
import pytest
from conversations import conversation, id_of
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data import chat
from r1jax.data.templates import (
  deepseek_r1,
  deepseek_r1_think,
  tokenizer_template,
)

END, USER, ASSISTANT = "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
TEXTS = st.text() | st.lists(
  st.sampled_from([END, USER, ASSISTANT, "<think>", "</think>", "a", "\n", " "])
).map("".join)


def learn(messages, tokenizer, template=deepseek_r1, **options):
  return chat.demonstrations(messages, template, tokenizer, **options)


def test_an_answer_and_its_eos_are_learned(tokenizer):
  messages = conversation("Hi", "<think>\nHm\n</think>\n\nHello!", system="S")
  ((prompt, completion),) = learn(messages, tokenizer)
  assert prompt == chat.prompt(messages[:-1], deepseek_r1, tokenizer).ids
  assert completion[-1] == id_of(tokenizer, END)
  assert tokenizer.decode(completion[:-1]) == messages[-1]["content"]
  assert completion[0] == id_of(tokenizer, "<think>")
  joined = "".join([tokenizer.decode(prompt), messages[-1]["content"], END])
  assert prompt + completion == tokenizer.encode(joined)


def test_a_prefill_belongs_to_the_prompt_of_a_demonstration(tokenizer):
  messages = conversation("Hi", "<think>\n\nHm\n</think>\n\nHello!")
  ((prompt, completion),) = learn(messages, tokenizer, deepseek_r1_think)
  assert prompt == chat.prompt(messages[:-1], deepseek_r1_think, tokenizer).ids
  assert tokenizer.decode(prompt).endswith(f"{ASSISTANT}<think>\n")
  assert tokenizer.decode(completion) == "\nHm\n</think>\n\nHello!"
  assert id_of(tokenizer, "<think>") not in completion


def test_prompt_and_completion_are_joined_as_ids(deepseek):
  # In one text both line breaks are one token, which no sampler would see.
  messages = conversation("Hi", "<think>\n\nHm")
  ((prompt, completion),) = learn(messages, deepseek, deepseek_r1_think)
  text = deepseek.decode(prompt) + deepseek.decode(completion)
  assert text == deepseek_r1_think(
    conversation("Hi"), generation_prompt=True
  ) + ("\nHm")
  assert len(deepseek.encode(text)) < len(prompt + completion[:-1])


@pytest.mark.parametrize("answer", ["Hello!", "<think></think>Hello!", ""])
def test_an_answer_without_the_prefill_has_a_prompt_without_it(
  tokenizer, answer
):
  messages = conversation("Hi", answer)
  assert learn(messages, tokenizer, deepseek_r1_think) == learn(
    messages, tokenizer
  )


def test_each_answer_makes_one_demonstration(tokenizer):
  answers = [f"<think>\nthought {i}\n</think>\n\nanswer {i}" for i in range(3)]
  messages = conversation("q0", answers[0], "q1", answers[1], "q2", answers[2])
  found = learn(messages, tokenizer, turns="each")
  assert [tokenizer.decode(d.completion) for d in found] == answers
  for i, demonstration in enumerate(found):
    prompt = tokenizer.decode(demonstration.prompt)
    assert "thought" not in prompt
    assert [f"answer {j}" in prompt for j in range(3)] == [
      j < i for j in range(3)
    ]
    assert [f"q{j}" in prompt for j in range(3)] == [j <= i for j in range(3)]
  assert learn(messages, tokenizer) == found[-1:]
  assert learn(messages[:-1], tokenizer, turns="each") == found[:-1]


def test_a_completion_is_the_whole_answer_and_one_end(tokenizer):
  @settings(max_examples=150, deadline=None)
  @given(TEXTS, TEXTS)
  def compare(question, answer):
    for template in (deepseek_r1, deepseek_r1_think):
      messages = conversation(question, answer)
      ((prompt, completion),) = learn(messages, tokenizer, template)
      end = id_of(tokenizer, END)
      assert completion[-1] == end and end not in completion[:-1]
      assert {USER, ASSISTANT}.isdisjoint(
        map(tokenizer.id_to_token, completion)
      )
      whole = tokenizer.decode(prompt) + tokenizer.decode(completion[:-1])
      asked = deepseek_r1(messages[:-1], generation_prompt=True)
      assert whole == asked + answer

  compare()


def test_an_eos_that_is_also_the_pad_token_is_learned(small):
  # In the files of `small`, as in R1's, the pad token is the EOS.
  found = learn(conversation("a", "b", "c", "d"), small, turns="each")
  rows = packed.of_texts(found, 64, rows=2)
  learned = rows.targets[rows.origin >= 0].tolist()
  assert sorted(learned) == sorted(found[0].completion + found[1].completion)
  assert learned.count(id_of(small, END)) == 2


def test_a_chatml_answer_ends_with_im_end(chatml, small):
  template = tokenizer_template(chatml)
  messages = conversation("Hi", "<think>x</think>Ho")
  ((prompt, completion),) = learn(messages, chatml, template)
  assert chatml.decode(prompt) == template(
    messages[:-1], generation_prompt=True
  ).replace("<|im_end|>", "")  # An EOS is not shown.
  assert completion == [*chatml.encode("<think>x</think>Ho"), id_of(chatml)]
  with pytest.raises(ValueError, match=r"ends a turn with '<\|im_end\|>', whi"):
    learn(messages, small, template)


def test_conversations_that_cannot_be_learned_are_refused(small):
  with pytest.raises(ValueError, match="does not end with an answer"):
    learn(conversation("Hi"), small)
  with pytest.raises(ValueError, match="does not end with an answer"):
    learn([], small)
  with pytest.raises(ValueError, match="turns must be .*'all'"):
    learn(conversation("Hi", "Ho"), small, turns="all")
  call = dict(type="function", function=dict(name="f", arguments=""))
  called = dict(role="assistant", content=None, tool_calls=[call])
  with pytest.raises(ValueError, match="message 1 calls a tool"):
    learn([*conversation("Hi"), called], small)
  assert learn(conversation("Hi"), small, turns="each") == []
