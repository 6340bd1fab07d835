"""Templates render conversations as the released ones do."""

import copy

import pytest
from conversations import conversation, id_of
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data import chat, templates
from r1jax.data.templates import (
  deepseek_r1,
  deepseek_r1_think,
  tokenizer_template,
)
from r1jax.types import Example

R1_ZERO = templates.TEMPLATES["r1_zero"]
BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
NAMES = [BEGIN, END, USER, ASSISTANT, "<think>", "</think>", "<|im_end|>"]


# As released.


def test_deepseek_r1_renders_as_released(deepseek, golden):
  own = tokenizer_template(deepseek)
  for row in golden:
    options = dict(generation_prompt=row["add_generation_prompt"])
    assert deepseek_r1(row["messages"], **options) == row["rendered"]
    assert own(row["messages"], **options) == row["rendered"]


def test_deepseek_r1_prompts_are_the_ids_of_their_renders(deepseek, golden):
  count = 0
  for row in golden:
    if row["add_generation_prompt"]:
      ids, prefill = chat.prompt(row["messages"], deepseek_r1, deepseek)
      assert ids == deepseek.encode(row["rendered"]) and prefill == ""
      count += 1
  assert count > 4


def test_the_later_release_opens_the_thought(golden):
  for row in golden:
    later = deepseek_r1_think(row["messages"], generation_prompt=True)
    first = deepseek_r1(row["messages"], generation_prompt=True)
    opens = first.endswith(ASSISTANT)
    assert later == first + "<think>\n" * opens
    assert deepseek_r1_think(row["messages"]) == deepseek_r1(row["messages"])


TEXTS = st.text() | st.lists(
  st.sampled_from(
    [*NAMES, "a", "\n", " ", "<", "think>", "{{ x }}", "\U000f0000"]
  )
).map("".join)
CALLS = st.lists(
  st.builds(
    lambda name, arguments: dict(
      type="function", function=dict(name=name, arguments=arguments)
    ),
    TEXTS,
    TEXTS,
  ),
  min_size=1,
  max_size=3,
)
MESSAGES = st.lists(
  st.builds(
    lambda role, content: dict(role=role, content=content),
    st.sampled_from(templates.ROLES),
    TEXTS,
  )
  | st.builds(
    lambda content, calls: dict(
      role="assistant", content=content, tool_calls=calls
    ),
    st.none() | TEXTS,
    CALLS,
  ),
  max_size=6,
)


def test_any_conversation_renders_as_the_released_template_does(
  deepseek, with_template
):
  ending = "{{'<｜Assistant｜>'}}{% endif %}"
  source = deepseek.chat_template
  assert source.endswith(ending)
  later = source.removesuffix(ending) + ending.replace("｜>'", "｜><think>\\n'")
  pairs = [
    (deepseek_r1, tokenizer_template(deepseek)),
    (
      deepseek_r1_think,
      tokenizer_template(with_template(deepseek, later)),
    ),
  ]

  @settings(max_examples=150, deadline=None)
  @given(MESSAGES, st.booleans())
  def render(messages, generation_prompt):
    options = dict(generation_prompt=generation_prompt)
    for ours, theirs in pairs:
      assert ours(messages, **options) == theirs(messages, **options)

  render()


def test_thoughts_of_past_answers_are_removed():
  messages = conversation(
    "Hi", "<think>\na</think> b\n</think>\n\nHello!", "Bye"
  )
  text = f"{BEGIN}{USER}Hi{ASSISTANT}\n\nHello!{END}{USER}Bye{ASSISTANT}"
  assert deepseek_r1(messages, generation_prompt=True) == text
  assert deepseek_r1_think(messages, generation_prompt=True) == (
    text + "<think>\n"
  )


@pytest.mark.parametrize(
  ("text", "rest"),
  [
    ("<think>\na\n</think>\n\nb", "\n\nb"),
    ("a</think>b</think>c", "c"),
    ("b", "b"),
    (" <think> cut off", ""),
    ("no <think> at all", "no <think> at all"),
    ("", ""),
  ],
)
def test_an_answer_without_its_thought(text, rest):
  assert chat.without_thought(text) == rest


@pytest.mark.parametrize(
  ("message", "problem"),
  [
    (dict(role="bot", content=""), "role must be one of system, user.*'bot'"),
    (dict(content="x"), "role must be one of .*None"),
    (dict(role="user"), "content must be text, got None"),
    (dict(role="user", content=["x"]), r"content must be text, got \['x'\]"),
    (dict(role="assistant", content=None), "content must be text, got None"),
  ],
)
def test_an_invalid_message_is_refused_by_number(small, message, problem):
  messages = [*conversation("Hi"), message]
  for template in (deepseek_r1, R1_ZERO):
    with pytest.raises(ValueError, match=f"message 1: {problem}"):
      template(messages)
    with pytest.raises(ValueError, match=f"message 1: {problem}"):
      chat.prompt(messages, template, small)


def test_a_base_model_is_asked_one_question(small):
  template = R1_ZERO
  ids, prefill = chat.prompt(
    conversation("Hi", "Ho", "1 + 1?"), template, small
  )
  assert ids == small.encode(R1_ZERO.fill("1 + 1?")) and prefill == ""
  with pytest.raises(ValueError, match="does not support system messages"):
    template(conversation("Hi", system="Be brief."))
  with pytest.raises(ValueError, match="needs a user"):
    template(conversation("Hi", "Ho"))
  assert chat.end_of_turn(template, small) == small.eos_ids[0]


# A model's own template.


def test_a_models_tokenizer_template_is_rendered(chatml):
  template = tokenizer_template(chatml)
  messages = conversation(" Hi ", "<think>x</think> Ho", system="S")
  assert template(messages, generation_prompt=True) == (
    "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>assistant\n"
  )
  assert chat.end_of_turn(template, chatml) == id_of(chatml)


def test_a_config_may_name_the_tokenizers_chat_template(chatml, with_template):
  text = "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
  examples = [Example("1 + 1?", "2")]
  (ids,) = chat.encode_prompts(examples, "chat", chatml)
  assert ids == chatml.encode(text) and chat.prefill("chat", chatml) == ""
  assert chat.shared_tokens("chat", chatml) == tuple(
    chatml.encode("<|im_start|>user\n")[:-1]
  )
  source = chatml.chat_template.replace(
    "assistant\\n", "assistant\\n<think>\\n"
  )
  thinking = with_template(chatml, source)
  (ids,) = chat.encode_prompts(examples, "chat", thinking)
  assert ids == chatml.encode(text + "<think>\n")
  assert chat.prefill("chat", thinking) == "<think>\n"


def test_a_template_whose_end_would_not_stop_the_sampler_is_refused(chatml):
  template = tokenizer_template(chatml)
  assert chat.check_end_of_turn(template, chatml) == id_of(chatml)
  endless = copy.copy(chatml)
  endless.eos_ids = endless.eos_ids[:1]
  with pytest.raises(ValueError, match="ends a turn with '<|im_end|>'"):
    chat.check_end_of_turn(template, endless)


def test_a_template_gets_the_variables_of_transformers(small, with_template):
  source = (
    "{{ bos_token }}|{{ eos_token }}|{{ tools is none }}"
    "|{{ documents is none }}"
    "|{{ {'a': '\u8ba1<'} | tojson }}|{{ strftime_now('%Y') | length }}"
    "|{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
    "{{ m.content }}{% endfor %}|{{ nothing }}"
  )
  template = tokenizer_template(with_template(small, source))
  expected = f'{BEGIN}|{END}|True|True|{{"a": "\u8ba1<"}}|4|Hi|'
  assert template(conversation("Hi", "Ho")) == expected
  source = "{{ bos_token }}|{{ pad_token }}|{{ unk_token }}"
  assert tokenizer_template(with_template(small, source))(
    conversation("Hi")
  ) == (f"{BEGIN}|{END}|")
  unnamed = with_template(small, source, special_tokens_map={})
  assert tokenizer_template(unnamed)(conversation("Hi")) == "||"


def test_bos_stands_before_a_question_and_before_no_conversation(
  small, with_template
):
  begun = with_template(small, "{{ messages[0].content }}", prefix_ids=(5,))
  bare = R1_ZERO
  ids = small.encode(R1_ZERO.fill("Hi"))
  assert chat.prompt(conversation("Hi"), bare, small).ids == ids
  assert chat.prompt(conversation("Hi"), bare, begun).ids == [5, *ids]
  (shown,) = chat.demonstrations(conversation("Hi", "Ho"), bare, begun)
  assert shown.prompt == [5, *ids]
  for template in (deepseek_r1, tokenizer_template(begun)):
    one, other = (
      chat.prompt(conversation("Hi"), template, w) for w in (small, begun)
    )
    assert one == other


def test_text_in_generation_tags_is_rendered(small, with_template):
  source = (
    "{% for m in messages %}\n  {%- if m.role == 'assistant' %}\n"
    "    {%- generation -%}\n    {{ m.content + eos_token }}\n"
    "    {%- endgeneration -%}\n  {%- else %}{{ m.content }}{% endif %}\n"
    "{% endfor %}"
  )
  template = tokenizer_template(with_template(small, source))
  assert template(conversation("Hi", "Ho", "He")) == f"HiHo{END}He"


@pytest.mark.parametrize(
  ("source", "problem"),
  [
    ("{% if %}", "the chat template is not Jinja"),
    (
      "{{ raise_exception('no system') }}",
      "the chat template failed: no system",
    ),
    ("{{ messages[9].content.x }}", "the chat template failed: "),
    ("{{ 1 / 0 }}", "the chat template failed: division by zero"),
    ("{{ messages.append(1) }}", "the chat template failed: .*unsafe"),
    ("{{ ''.__class__.__mro__ }}", "the chat template failed: .*unsafe"),
  ],
)
def test_a_template_that_fails_or_attacks_raises_ValueError(
  small, with_template, source, problem
):
  with pytest.raises(ValueError, match=problem):
    tokenizer_template(with_template(small, source))(conversation("Hi"))


def test_a_tokenizer_without_a_template_is_refused(small):
  with pytest.raises(ValueError, match="no chat template"):
    tokenizer_template(small)


@pytest.mark.reference
def test_templates_render_as_transformers_does(chatml, small, with_template):
  import transformers

  source = chatml.chat_template + (
    "  {% if messages | length > 2 %}\n  long\n  {% endif %}\n"
    "{% for m in messages %}\n    {{ m | tojson }}\n\n{% endfor %}"
    "{{ bos_token }}"
  )
  generated = (
    "{{ pad_token }}{% set n = 0 %}{% for m in messages %}{% set n = 1 %}"
    "{% generation %}\n {{ m.content }}{% set n = 2 %}\n{% endgeneration %}"
    "{{ n }}{{ unk_token }}{{ mask_token is defined }}{% endfor %}{{ n }}"
  )
  theirs = transformers.PreTrainedTokenizerFast(
    tokenizer_object=small._model,
    bos_token=BEGIN,
    eos_token=END,
    pad_token=END,
  )
  for text in (source, generated):
    ours = tokenizer_template(with_template(small, text))
    compare_renders(ours, theirs, text)


def compare_renders(ours, theirs, source):
  for messages in (
    conversation("Hi"),
    conversation("a", "\u8ba1", "<b>", system=" x\n"),
  ):
    for ask in (False, True):
      assert ours(
        messages, generation_prompt=ask
      ) == theirs.apply_chat_template(
        messages,
        chat_template=source,
        tokenize=False,
        add_generation_prompt=ask,
      )
