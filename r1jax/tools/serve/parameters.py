"""How a request wants its answer, and which limits it must keep."""

import dataclasses
import secrets
from typing import Any

from r1jax.rollouts.requests import TOP_LOGPROBS
from r1jax.rollouts.slots import STOP_IDS
from r1jax.tools.serve.errors import ApiError
from r1jax.tools.serve.fields import Fields, is_integer, refusal

CHOICES = 128  # The most choices of one prompt.
STOPS, STOP_LENGTH = 16, 256  # The most stop strings, and their characters.
SEEDS = 2**63
TEMPERATURE = 1e-4  # Below it, sampling is greedy: float32 ends somewhere.

# Keys that would change an answer, with the values that do not.
UNSUPPORTED = {
  "frequency_penalty": (0, 0.0),
  "presence_penalty": (0, 0.0),
  "repetition_penalty": (1, 1.0),
  "min_p": (0, 0.0),
  "min_tokens": (0,),
  "logit_bias": ({},),
  "response_format": ({"type": "text"},),
  "tools": ([],),
  "functions": ([],),
  "tool_choice": ("none", "auto"),
  "modalities": (["text"],),
  "thinking": ({"type": "enabled"},),
  "chat_template_kwargs": ({},),
  "continue_final_message": (False,),
  "prompt_logprobs": (0,),
  "use_beam_search": (False,),
  "suffix": ("",),
}


@dataclasses.dataclass(frozen=True)
class Parameters:
  """How each choice is sampled, and what is returned of it."""

  n: int  # Choices of each prompt.
  max_tokens: int | None  # Of a choice; None for as many as there is room for.
  temperature: float
  top_p: float
  top_k: int
  seed: int  # From 0 to 2**31 - 1.
  stop_strings: tuple[str, ...]
  stop_ids: tuple[int, ...]  # Beside those that end every text.
  ignore_eos: bool  # Whether those do not end this one.
  logprobs: bool
  top_logprobs: int  # The most probable tokens that are returned for each.
  echo: bool  # Whether the prompt is a part of the text.
  stream: bool
  include_usage: bool  # At the end of a stream.
  return_token_ids: bool
  separate_reasoning: bool  # Whether thoughts are apart from the content.


def read(fields: Fields, *, chat: bool, vocab_size: int) -> Parameters:
  """The parameters of a request; raises ApiError for what it cannot have.

  Args:
    fields: its keys.
    chat: whether it is a chat's: log-probabilities are asked for in another way
      then, and choices are as long as there is room for.
    vocab_size: token ids lie below it.
  """
  for name, values in UNSUPPORTED.items():
    fields.only(name, *values)
  n = fields.integer("n", 1, 1, CHOICES)
  if fields.integer("best_of", n, 1, CHOICES) != n:
    raise ApiError("best_of must equal n", param="best_of")
  temperature = fields.number("temperature", 1.0, 0.0, 100.0)
  top_p = fields.number("top_p", 1.0, 0.0, 1.0)
  if top_p == 0:
    raise refusal("top_p", 0, "above 0")
  top_k = fields.integer("top_k", 0, -1, 2**31 - 1)
  seed = fields.integer("seed", None, -SEEDS, SEEDS - 1)
  stream = fields.boolean("stream")
  logprobs, top = _logprobs(fields, chat)
  most = 2**31 - 1
  limit = fields.integer("max_tokens", None if chat else 16, 0, most)
  limit = fields.integer("max_completion_tokens", limit, 0, most)
  echo = fields.boolean("echo")
  if echo and chat:
    raise ApiError("echo is for /v1/completions", param="echo")
  if limit == 0 and not echo:
    raise ApiError("max_tokens 0 needs echo: true", param="max_tokens")
  options = fields.object("stream_options")
  return Parameters(
    n=n,
    max_tokens=limit,
    temperature=temperature if temperature >= TEMPERATURE else 0.0,
    top_p=top_p,
    top_k=max(top_k, 0),
    seed=secrets.randbelow(2**31) if seed is None else seed % 2**31,
    stop_strings=_stop_strings(fields),
    stop_ids=_stop_ids(fields, vocab_size),
    ignore_eos=fields.boolean("ignore_eos"),
    logprobs=logprobs,
    top_logprobs=top,
    echo=echo,
    stream=stream,
    include_usage=stream and options.boolean("include_usage"),
    return_token_ids=fields.boolean("return_token_ids"),
    separate_reasoning=fields.boolean("separate_reasoning", True),
  )


def _logprobs(fields: Fields, chat: bool) -> tuple[bool, int]:
  """Whether log-probabilities are returned, and of how many more tokens."""
  if not chat:
    top = fields.integer("logprobs", None, 0, TOP_LOGPROBS)
    return top is not None, top or 0
  logprobs = fields.boolean("logprobs")
  top = fields.integer("top_logprobs", 0, 0, TOP_LOGPROBS)
  if top and not logprobs:
    raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs")
  return logprobs, top


def _stop_strings(fields: Fields) -> tuple[str, ...]:
  value: Any = fields.get("stop", [])
  strings = [value] if isinstance(value, str) else value
  expected = f"at most {STOPS} texts of 1 to {STOP_LENGTH} characters"
  if not isinstance(strings, list) or len(strings) > STOPS:
    raise refusal("stop", value, expected)
  if not all(isinstance(s, str) and 0 < len(s) <= STOP_LENGTH for s in strings):
    raise refusal("stop", value, expected)
  return tuple(dict.fromkeys(strings))


def _stop_ids(fields: Fields, vocab_size: int) -> tuple[int, ...]:
  ids = fields.list("stop_token_ids", STOP_IDS // 2)
  for i, value in enumerate(ids):
    if not is_integer(value) or not 0 <= value < vocab_size:
      raise refusal(
        f"stop_token_ids[{i}]", value, f"an id from 0 to {vocab_size - 1}"
      )
  return tuple(ids)
