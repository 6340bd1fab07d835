"""Conversations to token ids: what a model reads, and what it learns to write.

A conversation is a list of messages, {"role": "user", "content": "Hi"}; roles
are system, user, assistant and tool. A template writes it as one text,

    template(messages, generation_prompt=True)

which ends where the assistant is to go on. A template may write the first words
of the answer itself, the opened thought: they are a part of the prompt.

Whoever writes a message cannot forge a turn of another. A special token's name
within a message, `<｜Assistant｜>` say, is spelled out in ordinary
tokens; only the template writes special tokens, and the assistant those of its
own thought. Everything else encodes as the rendered text does.
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
  prefill: str  # What of the answer the template wrote: "" or "<think>\n".


class Demonstration(NamedTuple):
  """A prompt, and the completion to imitate; losses count the latter alone."""

  prompt: list[int]
  completion: list[int]  # EOS included.


# Templates: messages to text.


def deepseek_r1(
  messages: Sequence[Message], *, generation_prompt: bool = False
) -> str:
  """The text of a conversation as DeepSeek-R1 first read it (January 2025).

  Past answers lose their thoughts. Tool calls follow the released template to
  the letter, in that only the first of a conversation opens a turn.
  """
  _check(messages)
  system = [m["content"] for m in messages if m["role"] == "system"]
  texts = ["<｜begin▁of▁sentence｜>", "\n\n".join(system)]
  called = reported = False  # Whether a tool ever was, and ever answered.
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
  """The same in the later release, which opens the thought itself.

  The distilled models' own templates differ where there are tools, or several
  system messages, of which they keep the last.
  """
  text = deepseek_r1(messages, generation_prompt=generation_prompt)
  opens = generation_prompt and text.endswith("<｜Assistant｜>")
  return text + f"{BEGIN_THOUGHT}\n" if opens else text


TEMPLATES = {"deepseek_r1": deepseek_r1, "deepseek_r1_think": deepseek_r1_think}


def _tool_call(call: Mapping[str, Any]) -> str:
  function = call["function"]
  return (
    f"<｜tool▁call▁begin｜>{call['type']}<｜tool▁sep｜>{function['name']}\n"
    f"```json\n{function['arguments']}\n```<｜tool▁call▁end｜>"
  )


@dataclasses.dataclass(frozen=True)
class QuestionOnly:
  """A template for base models: `write` of the last question, and no more."""

  write: Callable[[str], str]

  def __call__(
    self, messages: Sequence[Message], *, generation_prompt: bool = False
  ) -> str:
    """The text of the last question, which must be a user's."""
    _check(messages)
    if any(message["role"] == "system" for message in messages):
      raise ValueError("this template has no place for a system message")
    if not messages or messages[-1]["role"] != "user":
      raise ValueError("this template writes questions, and none is the last")
    return self.write(messages[-1]["content"])


def own_template(tokenizer: ChatTokenizer) -> Template:
  """The Jinja template that came with the tokenizer, in a sandbox.

  It is given what `transformers` gives it: `messages`, the special tokens by
  their names (`bos_token`, `pad_token`, ...) and `add_generation_prompt`,
  without tools. What it refuses, or gets wrong, is a ValueError.
  """
  if tokenizer.chat_template is None:
    raise ValueError("the tokenizer has no chat template of its own")
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
        **tokenizer.named_specials,
      )
    except Exception as error:  # It is a program; it may fail in any way.
      raise ValueError(f"the chat template says: {error}") from error

  return template


def without_thought(text: str) -> str:
  """What an answer says to others; nothing, if its thought never ended."""
  before, ended, after = text.rpartition(END_THOUGHT)
  if not ended and after.lstrip().startswith(BEGIN_THOUGHT):
    return ""
  return after


# Token ids.


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
  end = end_of_turn(template, tokenizer)
  if end not in tokenizer.eos_ids:
    raise ValueError(
      f"the template ends a turn with {tokenizer.piece(end)!r}, which is no "
      "EOS of the tokenizer: a model that learned it would not stop there"
    )
  _check(messages)
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


def _begins(template: Template, tokenizer: ChatTokenizer) -> tuple[int, ...]:
  """What stands before the text; a template of messages writes its own BOS."""
  bare = isinstance(template, QuestionOnly)
  return tokenizer.prefix_ids if bare else ()


def _prompt_text(
  messages: Sequence[Message], template: Template
) -> tuple[str, str]:
  """The text before the answer, and what of the answer the template wrote."""
  text = template(messages, generation_prompt=True)
  opened = re.search(rf"{BEGIN_THOUGHT}\s*\Z", text)
  cut = opened.start() if opened else len(text)
  return text[:cut], text[cut:]


def _shield(
  messages: Sequence[Message], tokenizer: ChatTokenizer
) -> tuple[list[Message], dict[str, str]]:
  """Messages without special tokens' names, and what stands for which.

  Each name is replaced by one character that no message uses, so that whatever
  a template does with a text, it can neither meet nor make a special token.
  """
  _check(messages)
  names = tokenizer.specials
  if not names:
    return list(messages), {}
  used = {*json.dumps(list(messages), ensure_ascii=False, default=str)}
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
  """Token ids of `text`; characters of `spelled` are names to spell out."""
  if not spelled:
    return tokenizer.encode(text)
  ids = []
  for part in re.split(f"([{''.join(spelled)}])", text):
    is_name = part in spelled
    ids += tokenizer.spell(spelled[part]) if is_name else tokenizer.encode(part)
  return ids


def _check(messages: Sequence[Message]) -> None:
  """Raises ValueError unless every message has a known role and a text."""
  for i, message in enumerate(messages):
    if message.get("role") not in ROLES:
      raise ValueError(
        f"message {i}: role {message.get('role')!r} is none of "
        + ", ".join(ROLES)
      )
    content = message.get("content")
    calls = message["role"] == "assistant" and message.get("tool_calls")
    if not isinstance(content, str) and not (content is None and calls):
      raise ValueError(f"message {i}: content {content!r} is no text")
