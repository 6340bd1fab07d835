"""Conversations to token ids: what a model reads, and what it learns to write.

A template (see `data.templates`) writes a conversation as one text. It may
write the first words of the answer itself, such as an opened <think>: they are
a part of the prompt.

Whoever writes a message cannot forge a turn of another. A special token's name
within a message, `<｜Assistant｜>` say, is spelled out in ordinary
tokens; only the template writes special tokens, and the assistant those of its
own thought. Everything else encodes as the rendered text does.
"""

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from r1jax.data import templates
from r1jax.data.templates import (
  BEGIN_THOUGHT,
  END_THOUGHT,
  Message,
  Template,
  check_messages,
)
from r1jax.types import Example, Tokenizer

# How a template begins an answer: a thought that it does not end, with any
# words in it, or an empty one, as of a model that is told not to think.
PREFILL = re.compile(
  r"<think>(?:(?!</?think>).)*\Z|<think>\s*\n\s*</think>\s*\Z", re.DOTALL
)
# Questions that have nothing in common; see `shared_tokens`.
PROBES = ("What", "0", "(x", "\u8ba1\u7b97")


@runtime_checkable
class ChatTokenizer(Tokenizer, Protocol):
  """A tokenizer that also knows its model's special tokens."""

  bos_id: int | None
  chat_template: str | None  # Jinja, as the model's files have it.
  specials: tuple[str, ...]  # The names that `encode` takes for one token.
  # By the keys of tokenizer_config.json: {"bos_token": "<s>", ...}.
  named_specials: Mapping[str, str]

  def spell(self, text: str) -> list[int]:
    """Token ids of `text`; special tokens' names are spelled out."""

  def piece(self, token: int) -> str:
    """The token as the vocabulary spells it."""


class Prompt(NamedTuple):
  """What a model is given, up to where it goes on."""

  ids: list[int]
  prefill: str  # What the template wrote of the answer: "" or "<think>\n".


class Demonstration(NamedTuple):
  """A prompt, and the completion to imitate; losses count the latter alone."""

  prompt: list[int]
  completion: list[int]  # EOS included.


def without_thought(text: str) -> str:
  """What an answer says to others; nothing, if its thought never ended."""
  before, ended, after = text.rpartition(END_THOUGHT)
  if not ended and after.lstrip().startswith(BEGIN_THOUGHT):
    return ""
  return after


def prompt(
  messages: Sequence[Message], template: Template, tokenizer: ChatTokenizer
) -> Prompt:
  """The ids of a conversation, up to where the assistant goes on."""
  messages, spelled = _shield(messages, tokenizer)
  text, prefill = _prompt_text(messages, template)
  ids = _encode(text + prefill, spelled, tokenizer)
  return Prompt([*_begins(template, tokenizer), *ids], prefill)


def demonstrations(
  messages: Sequence[Message],
  template: Template,
  tokenizer: ChatTokenizer,
  *,
  turns: str = "last",
) -> list[Demonstration]:
  """What to learn from a conversation: the "last" answer, or "each" of them.

  Each answer is an example of its own, after the prompt that a model would be
  given at that place, in which past answers have lost their thoughts. So no
  token is learned that the model would not have to write, and none is read that
  it would not see. Prompt and completion are encoded apart and joined as ids,
  as they are when a model is sampled; the completion ends with the EOS that
  ends a turn in this template.

  An opened thought that the template writes belongs to the prompt. An answer
  that does not begin with it follows the prompt without it.
  """
  if turns not in ("last", "each"):
    raise ValueError(f'turns {turns!r} is neither "last" nor "each"')
  end = check_end_of_turn(template, tokenizer)
  check_messages(messages)
  messages, spelled = _shield(messages, tokenizer)
  answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
  if turns == "last" and (not answers or answers[-1] != len(messages) - 1):
    raise ValueError("the conversation does not end with an answer")
  found = []
  for i in answers if turns == "each" else answers[-1:]:
    if messages[i].get("tool_calls"):
      raise ValueError(f"message {i} calls a tool, which is not supported")
    text, prefill = _prompt_text(messages[:i], template)
    answer = messages[i]["content"]
    if answer.startswith(prefill):
      text, answer = text + prefill, answer[len(prefill) :]
    found.append(
      Demonstration(
        prompt=[
          *_begins(template, tokenizer),
          *_encode(text, spelled, tokenizer),
        ],
        completion=[*_encode(answer, spelled, tokenizer), end],
      )
    )
  return found


def encode(template: str, question: str, tokenizer: Tokenizer) -> list[int]:
  """Token ids of `question` in the template, BOS included where it belongs."""
  render = templates.find(template, tokenizer)
  return prompt(templates.user_turn(question), render, tokenizer).ids


def encode_prompts(
  examples: Sequence[Example], template: str, tokenizer: Tokenizer
) -> list[list[int]]:
  """The token ids of each example's prompt in the template."""
  render = templates.find(template, tokenizer)
  return [
    prompt(templates.user_turn(example.prompt), render, tokenizer).ids
    for example in examples
  ]


def prefill(template: str, tokenizer: Tokenizer) -> str:
  """What the template writes of every answer: "", or "<think>\\n"."""
  render = templates.find(template, tokenizer)
  return prompt(templates.user_turn(PROBES[0]), render, tokenizer).prefill


def shared_tokens(template: str, tokenizer: Tokenizer) -> tuple[int, ...]:
  """The token ids with which every prompt in this template begins.

  Found by trying PROBES. The last token that their prompts share is left out:
  what follows may still be joined to it.
  """
  first, *others = (encode(template, probe, tokenizer) for probe in PROBES)
  size = 0
  while all(size < len(o) and o[size] == first[size] for o in others):
    size += 1
  least = len(_begins(templates.find(template, tokenizer), tokenizer))
  return tuple(first[: max(size - 1, least)])


def end_of_turn(template: Template, tokenizer: ChatTokenizer) -> int:
  """The id of the special token that the template writes behind an answer.

  The tokenizer's first EOS, if the template writes none.
  """
  probe = "\U0010fffd"
  messages = [
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": probe},
  ]
  try:
    tail = template(messages).rpartition(probe)[2]
  except ValueError:  # A template for questions only.
    tail = ""
  ids = tokenizer.encode(tail)
  ends = [n for n in ids if n in tokenizer.eos_ids]
  marks = [n for n in ids if tokenizer.piece(n) in tokenizer.specials]
  return [*ends, *marks, tokenizer.eos_ids[0]][0]


def check_end_of_turn(template: Template, tokenizer: ChatTokenizer) -> int:
  """`end_of_turn`; raises ValueError if sampling would not stop there."""
  end = end_of_turn(template, tokenizer)
  if end not in tokenizer.eos_ids:
    raise ValueError(
      f"the template ends a turn with {tokenizer.piece(end)!r}, which is no "
      "EOS of the tokenizer: a model that learned it would not stop there"
    )
  return end


def _begins(template: Template, tokenizer: ChatTokenizer) -> tuple[int, ...]:
  """What stands before the text; a template of messages writes its own BOS."""
  bare = isinstance(template, templates.QuestionOnly)
  return tokenizer.prefix_ids if bare else ()


def _prompt_text(
  messages: Sequence[Message], template: Template
) -> tuple[str, str]:
  """The text before the answer, and what the template wrote of the answer.

  The latter is sought only in what a generation prompt adds: a message may hold
  tags of its own.
  """
  text = template(messages, generation_prompt=True)
  ended = template(messages)
  added = len(os.path.commonprefix([text, ended]))
  opened = PREFILL.search(text, added)
  cut = opened.start() if opened else len(text)
  return text[:cut], text[cut:]


def _shield(
  messages: Sequence[Message], tokenizer: ChatTokenizer
) -> tuple[list[Message], dict[str, str]]:
  """Messages without special tokens' names, and what stands for which.

  Each name is replaced by one character that no message uses, so that whatever
  a template does with a text, it can neither meet nor make a special token.
  """
  check_messages(messages)
  every, others = _patterns(tuple(getattr(tokenizer, "specials", ())))
  texts = [*_texts(list(messages))]
  if not any(map(every.search, texts)):
    return list(messages), {}
  used = set().union(*texts)
  free = (c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in used)
  marks: dict[str, str] = {}

  def shield(value, pattern):
    if isinstance(value, str):
      return pattern.sub(lambda found: mark(found[0]), value)
    if isinstance(value, Mapping):
      return {key: shield(part, pattern) for key, part in value.items()}
    if isinstance(value, list | tuple):
      return [shield(part, pattern) for part in value]
    return value

  def mark(name):
    if name not in marks:
      marks[name] = next(free)
    return marks[name]

  shielded = []
  for message in messages:
    copy = shield(message, every)
    if message["role"] == "assistant":
      copy["content"] = shield(message["content"], others)
    shielded.append(copy)
  return shielded, {character: name for name, character in marks.items()}


def _texts(value: Any) -> Iterator[str]:
  """All strings in messages."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, Mapping | list | tuple):
    parts = value.values() if isinstance(value, Mapping) else value
    for part in parts:
      yield from _texts(part)


@functools.cache
def _patterns(names: tuple[str, ...]) -> tuple[re.Pattern, re.Pattern]:
  """Any of the names, and any of them but the tags of a thought."""
  others = [n for n in names if n not in (BEGIN_THOUGHT, END_THOUGHT)]
  any_of = lambda names: re.compile("|".join(map(re.escape, names)) or "(?!)")
  return any_of(names), any_of(others)


def _encode(
  text: str, spelled: Mapping[str, str], tokenizer: ChatTokenizer
) -> list[int]:
  """Token ids of `text`; characters of `spelled` are names to spell out."""
  if not spelled:
    return tokenizer.encode(text)
  ids = []
  for part in re.split(f"([{''.join(spelled)}])", text):
    is_name = part in spelled
    ids += tokenizer.spell(spelled[part]) if is_name else tokenizer.encode(part)
  return ids
