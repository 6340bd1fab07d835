"""Requests to the engine, and the results of its steps."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from r1jax.rollouts.prompt_scores import PromptScores
from r1jax.rollouts.slots import STOP_IDS
from r1jax.types import Bools, Floats, Ints

TOP_LOGPROBS = 20  # The most probable tokens that a request may ask for.


class Request(NamedTuple):
  """One completion of a prompt; None stands for the engine's own setting."""

  id: Hashable
  prompt: Sequence[int]
  max_tokens: int | None = None  # Of the completion, forced ones included.
  # Of everything sampled: the data of a key of JAX, uint32 [2]. See `key_of`
  # and `sampling.completion_keys`.
  key: np.ndarray | Sequence[int] = (0, 0)
  # Requests of one group have one prompt, which is read once for all of them.
  group: Hashable | None = None  # None for a group of its own.
  temperature: float | int | None = None  # 0 takes the most probable token.
  top_p: float | int | None = None
  top_k: int | None = None
  stop_ids: Sequence[int] | None = None  # Any of them ends the completion.
  stop_strings: Sequence[str] = ()  # Likewise, wherever tokens begin and end.
  prompt_logprobs: bool = False  # Whether the prompt's are computed.
  # Of how many of the most probable tokens log-probabilities are returned, for
  # every token of the completion, and of the prompt if its own are computed.
  top_logprobs: int = 0


def key_of(seed: int) -> np.ndarray:
  """The key of a request that is a function of a seed alone."""
  return np.asarray(jax.random.key_data(jax.random.key(seed)))


class Output(NamedTuple):
  """The result of one step: b requests that went on, n tokens at most."""

  ids: Sequence[Hashable]  # [b]
  slots: Ints  # [b]: where they are under way.
  start: Ints  # [b]: tokens of the completion before this step.
  count: Ints  # [b]: and after it.
  finish: Ints  # [b]: 0 if it goes on, FINISH_STOP or FINISH_LENGTH.
  tokens: Ints  # [b, n]: the first count - start are new.
  sampled: Bools  # [b, n]: False where a token was forced.
  logprobs: Floats  # [b, n]: under the tempered policy; 0 where forced.
  top_ids: Ints  # [b, n, k]: the most probable tokens, in order.
  top_logprobs: Floats  # [b, n, k]; k is 0 if no request asked for them.
  # Text before the stop string, of completions that one has just ended.
  texts: Mapping[Hashable, str]
  # By group: log-probabilities [T - 1] of prompts read in this step, if they
  # were asked for; of temperature 1.
  prompts: Mapping[Hashable, PromptScores]
  # On the devices, if they are recorded: of all slots the experts of the token
  # before each token [B, n, L, k], and those of prompts read in this step.
  experts: Ints | None
  prompt_experts: Sequence["PromptExperts"]
  steps: int  # Tokens that slots went on for, n at most.
  idle: float  # Share of the shards of slots without any request.

  @property
  def finished(self) -> list[Hashable]:
    """The requests that have just ended."""
    return [id for id, finish in zip(self.ids, self.finish) if finish]


class PromptExperts(NamedTuple):
  """The experts of prompts that were read together."""

  groups: Sequence[Hashable]
  experts: Ints  # [B, T, L, k]: on the devices, the first rows for the groups.


def with_defaults(request: Request, defaults: Request) -> Request:
  """The request, with the settings of `defaults` where it has none."""
  missing = {
    name: getattr(defaults, name)
    for name, value in zip(request._fields, request)
    if value is None
  }
  if request.group is None:
    missing["group"] = request.id
  return request._replace(**missing)


def check(
  request: Request, prefix: Sequence[int], prompt_tokens: int, max_tokens: int
) -> None:
  """Raises ValueError for a request that an engine of these sizes cannot serve.

  Args:
    request: with all its settings.
    prefix: what its prompt must begin with.
    prompt_tokens: that may follow the prefix in the prompt.
    max_tokens: of a completion.
  """
  name, start = f"request {request.id!r}", len(prefix)
  check_settings(request.temperature, request.top_p, request.top_k)
  if not 0 < request.max_tokens <= max_tokens:
    raise ValueError(
      f"{name}: max_tokens {request.max_tokens} is not within 1 and the "
      f"engine's {max_tokens}"
    )
  prompt, size = f"prompt {request.group!r}", len(request.prompt) - start
  if not len(request.prompt) and not start:
    raise ValueError(f"{prompt} is empty")
  if size < 1 or tuple(request.prompt[:start]) != tuple(prefix):
    raise ValueError(f"{prompt} does not begin with the template")
  if size > prompt_tokens:
    raise ValueError(
      f"{prompt} has {size} tokens beyond the template, and the window "
      f"prompt_tokens is {prompt_tokens}; raise it, or filter the dataset"
    )
  if len(request.stop_ids) > STOP_IDS:
    raise ValueError(
      f"{name} has {len(request.stop_ids)} stop_ids, more than {STOP_IDS}"
    )
  if not all(request.stop_strings):
    raise ValueError(f"{name}: an empty stop string would end any text")
  if not 0 <= request.top_logprobs <= TOP_LOGPROBS:
    raise ValueError(
      f"{name}: top_logprobs {request.top_logprobs} is not within 0 and "
      f"{TOP_LOGPROBS}"
    )


def check_settings(
  temperature: float | int, top_p: float | int, top_k: int
) -> None:
  """Raises ValueError for settings that no token can be sampled with."""
  if temperature < 0:
    raise ValueError(f"temperature {temperature} is below 0")
  if not 0 < top_p <= 1:
    raise ValueError(f"top_p {top_p} is not within (0, 1]")
  if top_k < 0:
    raise ValueError(f"top_k {top_k} is below 0; 0 keeps all tokens")


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
  """Raises ValueError for ids that a model has no embedding of."""
  if len(ids) and not 0 <= min(ids) <= max(ids) < vocab_size:
    raise ValueError(
      f"token ids from {min(ids)} to {max(ids)}, but the model knows those "
      f"from 0 to {vocab_size - 1}"
    )
