"""Conversations as token ids: prompts for sampling, demonstrations for SFT.

A template (see `data.templates`) renders a conversation as one text. It may
prefill the beginning of the answer, such as "<think>", which is then a part of
the prompt.

A message cannot forge a turn of another role. The name of a special token
within a message, such as `<｜Assistant｜>`, becomes ordinary tokens. Only the
template writes special tokens, except that an assistant's message may contain
<think> and </think>. All other text is encoded as the rendered text would be.
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

# A template's prefill: an unfinished thought, or an empty one for a model that
# shall not think.
PREFILL = re.compile(
  r"<think>(?:(?!</?think>).)*\Z|<think>\s*\n\s*</think>\s*\Z", re.DOTALL
)
# Questions that have nothing in common; see `shared_tokens`.
PROBES = ("What", "0", "(x", "\u8ba1\u7b97")


@runtime_checkable
class ChatTokenizer(Tokenizer, Protocol):
  """A tokenizer with the special tokens and the template of a chat model."""

  bos_id: int | None
  chat_template: str | None  # The Jinja text in the model's files.
  special_tokens: tuple[str, ...]  # Names that `encode` turns into one token.
  # By the keys of tokenizer_config.json: {"bos_token": "<s>", ...}.
  special_tokens_map: Mapping[str, str]

  def encode_ordinary(self, text: str) -> list[int]:
    """Returns the token ids of `text` without any special tokens."""

  def id_to_token(self, token: int) -> str:
    """Returns the token's string in the vocabulary."""


class Prompt(NamedTuple):
  """The token ids of a prompt."""

  ids: list[int]
  prefill: str  # The beginning of the answer in `ids`: "" or "<think>\n".


class Demonstration(NamedTuple):
  """A prompt, and the completion to imitate; only the latter has a loss."""

  prompt: list[int]
  completion: list[int]  # EOS included.


def without_thought(text: str) -> str:
  """Returns an answer without its thought; "" if the thought is not closed."""
  before, ended, after = text.rpartition(END_THOUGHT)
  if not ended and after.lstrip().startswith(BEGIN_THOUGHT):
    return ""
  return after


def prompt(
  messages: Sequence[Message], template: Template, tokenizer: Tokenizer
) -> Prompt:
  """Returns the ids of a conversation, up to where the assistant continues."""
  messages, spelled = _shield(messages, tokenizer)
  text, prefill = _prompt_text(messages, template)
  ids = _encode(text + prefill, spelled, tokenizer)
  return Prompt([*_prefix_ids(template, tokenizer), *ids], prefill)


def demonstrations(
  messages: Sequence[Message],
  template: Template,
  tokenizer: Tokenizer,
  *,
  turns: str = "last",
) -> list[Demonstration]:
  """Returns demonstrations of the "last" answer, or of "each" answer.

  The prompt of an answer is the one that a model would see at that point of the
  conversation, in which past answers have no thoughts. Prompt and completion
  are encoded separately and joined as ids, as in sampling. The completion ends
  with the EOS that ends a turn in this template.

  A prefill of the template belongs to the prompt, unless the answer does not
  begin with it. Then the prompt has no prefill.

  Raises ValueError for messages that the template cannot render, and if the
  token that ends a turn is not an EOS of the tokenizer.
  """
  if turns not in ("last", "each"):
    raise ValueError(f'turns must be "last" or "each", got {turns!r}')
  end = check_end_of_turn(template, tokenizer)
  check_messages(messages)
  messages, spelled = _shield(messages, tokenizer)
  answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
  if turns == "last" and (not answers or answers[-1] != len(messages) - 1):
    raise ValueError("the conversation does not end with an answer")
  result = []
  for i in answers if turns == "each" else answers[-1:]:
    if messages[i].get("tool_calls"):
      raise ValueError(f"message {i} calls a tool, which is not supported")
    text, prefill = _prompt_text(messages[:i], template)
    answer = messages[i]["content"]
    if answer.startswith(prefill):
      text, answer = text + prefill, answer[len(prefill) :]
    result.append(
      Demonstration(
        prompt=[
          *_prefix_ids(template, tokenizer),
          *_encode(text, spelled, tokenizer),
        ],
        completion=[*_encode(answer, spelled, tokenizer), end],
      )
    )
  return result


def encode(template: str, question: str, tokenizer: Tokenizer) -> list[int]:
  """Returns the token ids of a question in a template.

  They include BOS if the template or the tokenizer adds it.
  """
  render = templates.find(template, tokenizer)
  return prompt(templates.user_turn(question), render, tokenizer).ids


def encode_prompts(
  examples: Sequence[Example], template: str, tokenizer: Tokenizer
) -> list[list[int]]:
  """Returns the token ids of each example's prompt in a template."""
  render = templates.find(template, tokenizer)
  return [
    prompt(templates.user_turn(example.prompt), render, tokenizer).ids
    for example in examples
  ]


def prefill(template: str, tokenizer: Tokenizer) -> str:
  """Returns the template's prefill of every answer: "", or "<think>\\n"."""
  render = templates.find(template, tokenizer)
  return prompt(templates.user_turn(PROBES[0]), render, tokenizer).prefill


def shared_tokens(template: str, tokenizer: Tokenizer) -> tuple[int, ...]:
  """Returns the token ids with which every prompt in a template begins.

  They are those that the prompts of PROBES share. The last one is left out,
  because another question could be merged with it.
  """
  first, *others = (encode(template, probe, tokenizer) for probe in PROBES)
  size = 0
  while all(size < len(o) and o[size] == first[size] for o in others):
    size += 1
  least = len(_prefix_ids(templates.find(template, tokenizer), tokenizer))
  return tuple(first[: max(size - 1, least)])


def end_of_turn(template: Template, tokenizer: Tokenizer) -> int:
  """Returns the id of the special token with which the template ends an answer.

  If the template writes none, it is the tokenizer's first EOS.
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
  special = tokenizer.special_tokens
  others = [n for n in ids if tokenizer.id_to_token(n) in special]
  return [*ends, *others, tokenizer.eos_ids[0]][0]


def check_end_of_turn(template: Template, tokenizer: Tokenizer) -> int:
  """Returns `end_of_turn`; raises ValueError if it is not an EOS."""
  end = end_of_turn(template, tokenizer)
  if end not in tokenizer.eos_ids:
    raise ValueError(
      f"the template ends a turn with {tokenizer.id_to_token(end)!r}, which is "
      "not an EOS of the tokenizer, so that generation would not stop there"
    )
  return end


def _prefix_ids(template: Template, tokenizer: Tokenizer) -> tuple[int, ...]:
  """Returns the ids before the text; chat templates write BOS themselves."""
  is_text = isinstance(template, templates.QuestionOnly)
  return tokenizer.prefix_ids if is_text else ()


def _prompt_text(
  messages: Sequence[Message], template: Template
) -> tuple[str, str]:
  """Returns the text before the answer, and the template's prefill of it.

  The prefill is searched only in the text that a generation prompt adds,
  because a message may contain the tags, too.
  """
  text = template(messages, generation_prompt=True)
  ended = template(messages)
  added = len(os.path.commonprefix([text, ended]))
  opened = PREFILL.search(text, added)
  cut = opened.start() if opened else len(text)
  return text[:cut], text[cut:]


def _shield(
  messages: Sequence[Message], tokenizer: Tokenizer
) -> tuple[list[Message], dict[str, str]]:
  """Returns messages with placeholders for the names of special tokens.

  Each name is replaced by a character that no message uses, so that a template
  can neither find nor form a special token, whatever it does with the text. The
  second result maps placeholders to names.
  """
  check_messages(messages)
  every, others = _patterns(tuple(getattr(tokenizer, "special_tokens", ())))
  texts = [*_texts(list(messages))]
  if not any(map(every.search, texts)):
    return list(messages), {}
  used = set().union(*texts)
  free = (c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in used)
  marks: dict[str, str] = {}

  def shield(value, pattern):
    if isinstance(value, str):
      return pattern.sub(lambda match: mark(match[0]), value)
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
  """Yields all strings in messages."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, Mapping | list | tuple):
    parts = value.values() if isinstance(value, Mapping) else value
    for part in parts:
      yield from _texts(part)


@functools.cache
def _patterns(names: tuple[str, ...]) -> tuple[re.Pattern, re.Pattern]:
  """Returns patterns of all names, and of all but the tags of a thought."""
  others = [n for n in names if n not in (BEGIN_THOUGHT, END_THOUGHT)]
  any_of = lambda names: re.compile("|".join(map(re.escape, names)) or "(?!)")
  return any_of(names), any_of(others)


def _encode(
  text: str, spelled: Mapping[str, str], tokenizer: Tokenizer
) -> list[int]:
  """Returns the ids of a text; `spelled` maps placeholders to their names."""
  if not spelled:
    return tokenizer.encode(text)
  ids = []
  for part in re.split(f"([{''.join(spelled)}])", text):
    if part in spelled:
      ids += tokenizer.encode_ordinary(spelled[part])
    else:
      ids += tokenizer.encode(part)
  return ids
