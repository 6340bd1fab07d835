"""Conversations as token ids: prompts for sampling, demonstrations for SFT.

A conversation is a list of messages, {"role": "user", "content": "Hi"}, with
the roles system, user, assistant and tool. A template renders it as one text,

    template(messages, generation_prompt=True)

which ends where the assistant continues. A template may prefill the beginning
of the answer, such as "<think>", which is then a part of the prompt.

A message cannot forge a turn of another role. The name of a special token
within a message, such as `<｜Assistant｜>`, becomes ordinary tokens. Only the
template writes special tokens, except that an assistant's message may contain
<think> and </think>. All other text is encoded as the rendered text would be.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from r1jax.data import jinja
from r1jax.types import Tokenizer

Message = Mapping[str, Any]
Template = Callable[..., str]

BEGIN_THOUGHT, END_THOUGHT = "<think>", "</think>"
ROLES = ("system", "user", "assistant", "tool")


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


# Templates: from messages to text.


def deepseek_r1(
  messages: Sequence[Message], *, generation_prompt: bool = False
) -> str:
  """Returns a conversation in DeepSeek-R1's template of January 2025.

  Thoughts of past answers are removed. Of several tool calls, only the first in
  a conversation opens a turn, as in the released template.
  """
  _check(messages)
  system = [m["content"] for m in messages if m["role"] == "system"]
  texts = ["<｜begin▁of▁sentence｜>", "\n\n".join(system)]
  called = reported = False  # Whether there was a tool call, and an output.
  open_outputs = False  # Whether the last message is a tool's.
  for message in messages:
    role, content = message["role"], message["content"]
    if role == "user":
      texts += ["<｜User｜>", content]
    elif role == "tool":
      if not reported:
        texts.append("<｜tool▁outputs▁begin｜>")
      texts += ["<｜tool▁output▁begin｜>", content, "<｜tool▁output▁end｜>"]
      reported = True
    elif message.get("tool_calls"):
      opening = f"<｜Assistant｜>{content or ''}<｜tool▁calls▁begin｜>"
      calls = "\n".join(map(_tool_call, message["tool_calls"]))
      texts += ["\n" if called else opening, calls]
      texts.append("<｜tool▁calls▁end｜><｜end▁of▁sentence｜>")
      called = True
    elif role == "assistant":
      if open_outputs:
        texts += ["<｜tool▁outputs▁end｜>", content]
      else:
        texts += ["<｜Assistant｜>", content.rpartition(END_THOUGHT)[2]]
      texts.append("<｜end▁of▁sentence｜>")
    if role != "system":
      open_outputs = role == "tool"
  if open_outputs:
    texts.append("<｜tool▁outputs▁end｜>")
  elif generation_prompt:
    texts.append("<｜Assistant｜>")
  return "".join(texts)


def deepseek_r1_think(
  messages: Sequence[Message], *, generation_prompt: bool = False
) -> str:
  """Returns a conversation in the later template, which prefills "<think>".

  The templates of the distilled models differ from it for tools, and for
  several system messages, of which they keep only the last.
  """
  text = deepseek_r1(messages, generation_prompt=generation_prompt)
  opens = generation_prompt and text.endswith("<｜Assistant｜>")
  return text + f"{BEGIN_THOUGHT}\n" if opens else text


TEMPLATES = {"deepseek_r1": deepseek_r1, "deepseek_r1_think": deepseek_r1_think}


def _tool_call(call: Mapping[str, Any]) -> str:
  """Returns the text of a tool call."""
  function = call["function"]
  return (
    f"<｜tool▁call▁begin｜>{call['type']}<｜tool▁sep｜>{function['name']}\n"
    f"```json\n{function['arguments']}\n```<｜tool▁call▁end｜>"
  )


@dataclasses.dataclass(frozen=True)
class QuestionOnly:
  """A template for base models: `write(question)` of the last message."""

  write: Callable[[str], str]

  def __call__(
    self, messages: Sequence[Message], *, generation_prompt: bool = False
  ) -> str:
    """Returns the text of the last message, which must be a user's."""
    _check(messages)
    if any(message["role"] == "system" for message in messages):
      raise ValueError("this template does not support system messages")
    if not messages or messages[-1]["role"] != "user":
      raise ValueError("this template needs a user's message at the end")
    return self.write(messages[-1]["content"])


def tokenizer_template(tokenizer: ChatTokenizer) -> Template:
  """Returns the tokenizer's Jinja template, which runs in a sandbox.

  It renders with the same variables as in `transformers`, without tools:
  `messages`, the special tokens by name (`bos_token`, `pad_token`, ...) and
  `add_generation_prompt`. Raises ValueError if there is no template; the
  template raises it for messages that it refuses or fails on.
  """
  if tokenizer.chat_template is None:
    raise ValueError("the tokenizer has no chat template")
  compiled = jinja.compiled(tokenizer.chat_template)

  def template(
    messages: Sequence[Message], *, generation_prompt: bool = False
  ) -> str:
    _check(messages)
    try:
      return compiled.render(
        messages=list(messages),
        add_generation_prompt=generation_prompt,
        tools=None,
        documents=None,
        **tokenizer.special_tokens_map,
      )
    except Exception as error:  # A template can raise errors of any type.
      raise ValueError(f"the chat template failed: {error}") from error

  return template


def without_thought(text: str) -> str:
  """Returns an answer without its thought; "" if the thought is not closed."""
  before, ended, after = text.rpartition(END_THOUGHT)
  if not ended and after.lstrip().startswith(BEGIN_THOUGHT):
    return ""
  return after


# From messages to token ids.


def prompt(
  messages: Sequence[Message], template: Template, tokenizer: ChatTokenizer
) -> Prompt:
  """Returns the ids of a conversation, up to where the assistant continues."""
  messages, spelled = _shield(messages, tokenizer)
  text, prefill = _prompt_text(messages, template)
  ids = _encode(text + prefill, spelled, tokenizer)
  return Prompt([*_prefix_ids(template, tokenizer), *ids], prefill)


def demonstrations(
  messages: Sequence[Message],
  template: Template,
  tokenizer: ChatTokenizer,
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
  end = end_of_turn(template, tokenizer)
  if end not in tokenizer.eos_ids:
    raise ValueError(
      f"the template ends a turn with {tokenizer.id_to_token(end)!r}, which is "
      "not an EOS of the tokenizer, so that generation would not stop there"
    )
  _check(messages)
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


def end_of_turn(template: Template, tokenizer: ChatTokenizer) -> int:
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


def _prefix_ids(
  template: Template, tokenizer: ChatTokenizer
) -> tuple[int, ...]:
  """Returns the ids before the text; chat templates write BOS themselves."""
  return tokenizer.prefix_ids if isinstance(template, QuestionOnly) else ()


def _prompt_text(
  messages: Sequence[Message], template: Template
) -> tuple[str, str]:
  """Returns the text before the answer, and the template's prefill of it."""
  text = template(messages, generation_prompt=True)
  opened = re.search(rf"{BEGIN_THOUGHT}\s*\Z", text)
  cut = opened.start() if opened else len(text)
  return text[:cut], text[cut:]


def _shield(
  messages: Sequence[Message], tokenizer: ChatTokenizer
) -> tuple[list[Message], dict[str, str]]:
  """Returns messages with placeholders for the names of special tokens.

  Each name is replaced by a character that no message uses, so that a template
  can neither find nor form a special token, whatever it does with the text. The
  second result maps placeholders to names.
  """
  _check(messages)
  names = tokenizer.special_tokens
  if not names:
    return list(messages), {}
  used = {*json.dumps(list(messages), ensure_ascii=False, default=str)}
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

  any_of = lambda names: re.compile("|".join(map(re.escape, names)) or "(?!)")
  every = any_of(names)
  others = any_of([n for n in names if n not in (BEGIN_THOUGHT, END_THOUGHT)])
  shielded = []
  for message in messages:
    copy = shield(message, every)
    if message["role"] == "assistant":
      copy["content"] = shield(message["content"], others)
    shielded.append(copy)
  return shielded, {character: name for name, character in marks.items()}


def _encode(
  text: str, spelled: Mapping[str, str], tokenizer: ChatTokenizer
) -> list[int]:
  """Returns the ids of a text; `spelled` maps placeholders to their names."""
  if not spelled:
    return tokenizer.encode(text)
  ids = []
  for part in re.split(f"([{''.join(spelled)}])", text):
    is_name = part in spelled
    if is_name:
      ids += tokenizer.encode_ordinary(spelled[part])
    else:
      ids += tokenizer.encode(part)
  return ids


def _check(messages: Sequence[Message]) -> None:
  """Raises ValueError unless every message has a known role and a text."""
  for i, message in enumerate(messages):
    if message.get("role") not in ROLES:
      raise ValueError(
        f"message {i}: role must be one of {', '.join(ROLES)}, got "
        f"{message.get('role')!r}"
      )
    content = message.get("content")
    calls = message["role"] == "assistant" and message.get("tool_calls")
    if not isinstance(content, str) and not (content is None and calls):
      raise ValueError(f"message {i}: content must be text, got {content!r}")
