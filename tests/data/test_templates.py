"""The paper's template, word for word, and what all prompts share."""

import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data import chat, templates, tokenizer

DEEPSEEK = (
  pathlib.Path(__file__).parents[3] / "shared/data/reference/deepseek_r1"
)
# arXiv:2501.12948, Table 1, with a question in the place of "prompt".
FILLED = (
  "A conversation between User and Assistant. "
  "The user asks a question, and the Assistant solves it. "
  "The assistant first thinks about the reasoning process in the mind and then "
  "provides the user with the answer. "
  "The reasoning process and answer are enclosed within <think> </think> and "
  "<answer> </answer> tags, respectively, i.e., "
  "<think> reasoning process here </think> "
  "<answer> answer here </answer>. "
  "User: What is 1 + 1?. Assistant:"
)

r1_zero = templates.TEMPLATES["r1_zero"].fill


def test_the_template_is_the_papers():
  assert r1_zero("What is 1 + 1?") == FILLED


def test_a_question_is_inserted_verbatim():
  for question in ("{prompt} %s \\1", "the prompt. Assistant:", "<think>", ""):
    text = r1_zero(f"\n {question} ")
    assert text == FILLED.replace("What is 1 + 1?", question)
  assert templates.TEMPLATES["plain"].fill(" 1 + 1 = \n") == "1 + 1 =\n"


@pytest.mark.parametrize(
  "template, prefill",
  [
    ("r1_zero", ""),
    ("plain", ""),
    ("Q: {question}\nAssistant: <think>\n", "<think>\n"),
    ("{question} Assistant: <think>Okay,", "<think>Okay,"),
    # Tags that only tell how to answer, or stand before the question.
    ("Think in <think> </think>. {question} A:", ""),
    ("{question} Use <think> </think> tags. A: <think>", "<think>"),
    ("<think> {question}", ""),
    # A model that is told not to think.
    ("{question}\n<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n"),
  ],
)
def test_what_a_template_writes_of_the_answer_is_its_prefill(template, prefill):
  tokenizer = Characters()
  assert chat.prefill(template, tokenizer) == prefill
  for question in ("1 + 1?", "<think>", "<think> {question}", "a</think>"):
    turn = templates.user_turn(question)
    prompt = chat.prompt(turn, templates.find(template, tokenizer), tokenizer)
    assert prompt.prefill == prefill
    text = templates.TEMPLATES.get(template)
    before, _, after = (text.text if text else template).partition("{question}")
    assert tokenizer.decode(prompt.ids) == before + question + after


@pytest.mark.parametrize(
  "template, message",
  [
    ("r1_zeroo", "did you mean 'r1_zero'.*or a text with {question}"),
    ("Question: Assistant:", "must hold {question} once"),
    ("{question} or {question}", "must hold {question} once"),
    ("{prompt}", "must hold {question} once"),
    ("", "unknown template ''"),
  ],
)
def test_a_template_that_is_none_is_refused(template, message):
  with pytest.raises(ValueError, match=message):
    templates.check(template)


class Characters:
  """A tokenizer that knows characters alone."""

  vocab_size, eos_ids = 2**21, (0,)
  prefix_ids = ()

  def encode(self, text):
    return [*map(ord, text)]

  def decode(self, ids):
    return "".join(map(chr, ids))


@pytest.fixture(
  name="tokenizer", scope="module", params=["characters", "bytes", "deepseek"]
)
def any_tokenizer(request, write_tokenizer, tmp_path_factory):
  if request.param == "characters":
    return Characters()
  if request.param == "bytes":
    folder = write_tokenizer(tmp_path_factory.mktemp("words"))
    return tokenizer.load(str(folder))
  if not DEEPSEEK.exists():
    pytest.skip(f"{DEEPSEEK} is absent")
  return tokenizer.load(str(DEEPSEEK))


QUESTIONS = st.text() | st.sampled_from(
  [
    "What",
    "0",
    "\u8ba1\u7b97",
    "?",
    ". Assistant:",
    ":",
    "\n\n",
    "'s",
    "_",
    "(",
  ]
)


def test_every_prompt_begins_with_what_all_share(tokenizer):
  shared = chat.shared_tokens("r1_zero", tokenizer)
  begins = len(tokenizer.prefix_ids)
  assert tokenizer.decode(shared[begins:]) in FILLED
  assert len(tokenizer.decode(shared)) > FILLED.index("User: What") - 2

  @settings(max_examples=300, deadline=None)
  @given(QUESTIONS)
  def check(question):
    question = question.encode("utf-8", "ignore").decode()
    prompt = chat.encode("r1_zero", question, tokenizer)
    assert tuple(prompt[: len(shared)]) == shared
    assert len(prompt) > len(shared)

  check()


def test_a_prompt_begins_with_bos_where_the_tokenizer_asks_for_it():
  class Begun(Characters):
    prefix_ids = (7, 8)

  ids = chat.encode("r1_zero", "What?", Begun())
  assert ids[:2] == [7, 8]
  assert ids[2:] == chat.encode("r1_zero", "What?", Characters())
  assert ids[2:] == Characters().encode(r1_zero("What?"))
  shared = chat.shared_tokens("r1_zero", Begun())
  assert shared == (7, 8, *chat.shared_tokens("r1_zero", Characters()))
  assert chat.shared_tokens("plain", Begun()) == (7, 8)


def test_prompts_without_a_template_share_nothing(tokenizer):
  assert chat.shared_tokens("plain", tokenizer) == tokenizer.prefix_ids
