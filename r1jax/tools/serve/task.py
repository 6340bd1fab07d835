"""What a request asks the model: its prompts, and how they go on."""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.data import chat
from r1jax.data.templates import Template
from r1jax.tools.serve import parameters
from r1jax.tools.serve.errors import ApiError
from r1jax.tools.serve.fields import Fields, is_integer, refusal, shown
from r1jax.tools.serve.messages import read_messages
from r1jax.tools.serve.parameters import Parameters
from r1jax.tools.serve.pieces import Pieces

MESSAGES = 10_000  # The most of a conversation.
SHOWN = 500  # Characters of what a template says to messages that it refuses.


@dataclasses.dataclass(frozen=True)
class Served:
  """The model that is served, as requests see it."""

  name: str
  tokenizer: chat.ChatTokenizer
  template: Template
  max_length: int  # Tokens of a prompt and its completion together.
  capacity: int  # Choices that may wait or be under way at once.
  created: int = dataclasses.field(default_factory=lambda: int(time.time()))

  @functools.cached_property
  def pieces(self) -> Pieces:
    """The texts of its tokens."""
    return Pieces(self.tokenizer)


@dataclasses.dataclass(frozen=True)
class Task:
  """The prompts of a request, each with n choices."""

  prompts: Sequence[Sequence[int]]
  texts: Sequence[str | None]  # The prompts as they came; None for token ids.
  parameters: Parameters
  stop_ids: tuple[int, ...]
  max_tokens: Sequence[int]  # Of each prompt's choices, at least 1.
  prefill: str | None  # Of an answer; None if there is no conversation.
  ignored: Sequence[str]  # Keys of the request that have no effect.

  @property
  def choices(self) -> int:
    """All of them."""
    return len(self.prompts) * self.parameters.n


def read_chat(values: Mapping[str, Any], served: Served) -> Task:
  """The task of a chat; raises ApiError if there is none."""
  fields = _fields(values, served)
  prompt = _conversation(fields, served)
  end = chat.end_of_turn(served.template, served.tokenizer)
  return _task(fields, served, [prompt.ids], [None], prompt.prefill, (end,))


def read_completion(values: Mapping[str, Any], served: Served) -> Task:
  """The task of prompts, texts or lists of token ids; raises ApiError."""
  fields = _fields(values, served)
  texts = _prompts(fields, served)
  special = fields.boolean("add_special_tokens", True)
  prompts = [
    _encoded(text, served, special) if isinstance(text, str) else text
    for text in texts
  ]
  texts = [text if isinstance(text, str) else None for text in texts]
  return _task(fields, served, prompts, texts, None, ())


def read_tokens(values: Mapping[str, Any], served: Served) -> list[int]:
  """The token ids of a prompt, or of a conversation."""
  fields = _fields(values, served)
  special = fields.boolean("add_special_tokens", True)
  if fields.get("messages") is not None:
    return _conversation(fields, served).ids
  text = fields.get("prompt")
  if not isinstance(text, str):
    raise refusal("prompt", text, "a text")
  return _encoded(text, served, special)


def read_text(values: Mapping[str, Any], served: Served) -> str:
  """The text of token ids."""
  fields = _fields(values, served)
  ids = fields.list("tokens", served.max_length)
  _check_ids("tokens", ids, served)
  return served.tokenizer.decode(ids)


def check_name(name: Any, served: Served) -> None:
  """Raises ApiError for the name of another model."""
  if name != served.name:
    raise ApiError(
      f"the model {shown(name)} does not exist; this server has "
      f"{shown(served.name)}",
      status=404,
      param="model",
      code="model_not_found",
    )


def _fields(values: Mapping[str, Any], served: Served) -> Fields:
  fields = Fields(values)
  check_name(fields.get("model", served.name), served)
  return fields


def _task(
  fields: Fields,
  served: Served,
  prompts: Sequence[Sequence[int]],
  texts: Sequence[str | None],
  prefill: str | None,
  stop_ids: Sequence[int],
) -> Task:
  """The task, once its lengths are known to fit."""
  asked = parameters.read(
    fields,
    chat=prefill is not None,
    vocab_size=served.tokenizer.vocab_size,
  )
  ends = () if asked.ignore_eos else (*served.tokenizer.eos_ids, *stop_ids)
  task = Task(
    prompts=prompts,
    texts=texts,
    parameters=asked,
    stop_ids=tuple(dict.fromkeys((*ends, *asked.stop_ids))),
    max_tokens=[_room(prompt, asked.max_tokens, served) for prompt in prompts],
    prefill=prefill,
    ignored=fields.ignored,
  )
  if task.choices > served.capacity:
    raise ApiError(
      f"the request has {task.choices} choices, and this server takes at most "
      f"{served.capacity} at once; send fewer prompts, or a smaller n"
    )
  return task


def _room(prompt: Sequence[int], wanted: int | None, served: Served) -> int:
  """Tokens that may follow a prompt; raises ApiError for too long a text."""
  if not prompt:
    raise ApiError("a prompt is empty", param="prompt")
  limit = served.max_length
  left = limit - len(prompt)
  if left < max(wanted or 1, 1):
    more = "" if wanted is None else f", and max_tokens is {wanted}"
    raise ApiError(
      f"this model's maximum length is {limit} tokens; the prompt has "
      f"{len(prompt)}{more}. Shorten the prompt or lower max_tokens",
      param="max_tokens" if left > 0 else "prompt",
      code="context_length_exceeded",
    )
  return left if wanted is None else max(wanted, 1)


def _encoded(text: str, served: Served, special: bool) -> list[int]:
  prefix = served.tokenizer.prefix_ids if special else ()
  return [*prefix, *served.tokenizer.encode(text)]


def _prompts(fields: Fields, served: Served) -> list[str | list[int]]:
  """The prompts: a text, a list of token ids, or a list of either."""
  value = fields.get("prompt")
  expected = "a text, a list of token ids, or a list of these"
  if isinstance(value, str):
    return [value]
  if not isinstance(value, list) or not value:
    raise refusal("prompt", value, expected)
  prompts = [value] if is_integer(value[0]) else value
  for prompt in prompts:
    if isinstance(prompt, list):
      _check_ids("prompt", prompt, served)
    elif not isinstance(prompt, str):
      raise refusal("prompt", prompt, expected)
  return prompts


def _check_ids(name: str, ids: Sequence[Any], served: Served) -> None:
  high = served.tokenizer.vocab_size - 1
  for value in ids:
    if not is_integer(value) or not 0 <= value <= high:
      raise refusal(name, value, f"token ids from 0 to {high}")


def _conversation(fields: Fields, served: Served) -> chat.Prompt:
  """The ids of the messages in the model's template."""
  messages = read_messages(fields.list("messages", MESSAGES))
  try:
    return chat.prompt(messages, served.template, served.tokenizer)
  except ValueError as error:  # The template refuses them.
    raise ApiError(f"{error}"[:SHOWN], param="messages") from error
