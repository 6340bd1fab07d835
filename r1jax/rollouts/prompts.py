"""Prompts: read into caches, some at a time, and copied into slots."""

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from r1jax.models.cache import Cache
from r1jax.models.transformer import Transformer
from r1jax.parallel import sharding
from r1jax.rollouts import slots as programs
from r1jax.rollouts.prompt_scores import PromptScores, score_prompts
from r1jax.rollouts.requests import TOP_LOGPROBS, PromptExperts, Request
from r1jax.rollouts.slots import Sampling
from r1jax.rollouts.state import EngineState

KV_BUCKET = 256  # Tokens of the smallest cache, unless the limits are lower.
SMALLEST = 64  # Tokens that a prompt is padded to, at least.
PREFILL = 8  # Prompts that are read at once, or as many as rows have parts.
REFILL = 32  # Slots that are filled at once.

Groups = Mapping[Hashable, Sequence[Request]]  # Requests of one prompt.


class Read(NamedTuple):
  """What was learned of prompts when they were read; see `requests.Output`."""

  scores: dict[Hashable, PromptScores]
  experts: list[PromptExperts]


@dataclasses.dataclass(frozen=True)
class PromptReader:
  """Reads what follows `prefix` in prompts, and fills slots with it."""

  model: Transformer
  sampling: Sampling
  prefix: tuple[int, ...]
  rows: int  # Prompts that are read at once.
  prompt_tokens: int  # That may follow the prefix.
  max_tokens: int  # Of a completion.

  def length(self, request: Request) -> int:
    """Tokens behind the prefix."""
    return len(request.prompt) - len(self.prefix)

  def width(self, request: Request) -> int:
    """Tokens that its prompt is padded to; a function of its length alone.

    So the numbers of a prompt do not depend on those that are read with it.
    """
    return room(self.length(request), self.prompt_tokens, SMALLEST)

  def rollout_width(self, prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that the prompts of a rollout are padded to, with the prefix."""
    longest = max(map(len, prompts)) - len(self.prefix)
    return len(self.prefix) + room(longest, self.prompt_tokens, KV_BUCKET)

  def resized(
    self, state: EngineState, filled: Sequence[tuple[int, Request]]
  ) -> Cache:
    """The cache of the slots with the room that the next step needs, not much
    more; `filled` are those that begin with it."""
    slots, shares = state.slots, state.slots_per_prompt > 1
    new = np.minimum(slots.limit - slots.count, self.sampling.steps)
    needed = int(np.max((slots.cached + new)[state.busy], initial=1))
    width = max((self.width(request) for _, request in filled), default=0)
    limit = self.max_tokens
    if not shares:
      limit, needed = limit + self.prompt_tokens, max(needed, width)
      width = 0
    size, cache = room(needed, limit, KV_BUCKET), state.cache
    if cache is None:
      return programs.empty(
        self.model, len(slots.token), size, state.slots_per_prompt, width
      )
    if cache.size == size and cache.prompt_size >= width:
      return cache
    return programs.grow(cache, size, max(width, cache.prompt_size))

  def fill(
    self,
    state: EngineState,
    cache: Cache,
    filled: Sequence[tuple[int, Request]],
  ) -> tuple[EngineState, Read]:
    """The prompts of requests are in the cache rows of their slots.

    Also returns what was learned of those that had to be read. `cache` is that
    of the slots.
    """
    read, learned = dict(state.read), Read({}, [])
    while filled:
      if (group := filled[0][1].group) not in read:
        groups = self._batch(state, read, filled)
        read |= self._read(state, groups, learned)
      source = read[group][0]
      here = [r.group in read and read[r.group][0] is source for _, r in filled]
      part = [pair for pair, is_here in zip(filled, here) if is_here]
      filled = [pair for pair, is_here in zip(filled, here) if not is_here]
      for start in range(0, len(part), REFILL):
        chosen = part[start : start + REFILL]
        columns = np.zeros((3, REFILL), np.int32)
        columns[0] = len(state.slots.token)  # Slots beyond the last: dropped.
        columns[:, : len(chosen)] = np.transpose(
          [(slot, read[r.group][1], self.length(r) - 1) for slot, r in chosen]
        )
        cache = programs.fill(cache, source, *columns)
      # What nobody waits for is forgotten.
      waits = {r.group for _, r in filled}
      read = {
        group: place
        for group, place in read.items()
        if group in waits or state.scheduler.requests(group)
      }
    return dataclasses.replace(state, cache=cache, read=read), learned

  def _batch(self, state, read, filled) -> Groups:
    """The groups to read now: the first of `filled`, and others of its width.

    Groups whose turn comes later are read ahead, so that no row is empty.
    """
    groups = {}
    for _, request in filled:
      if request.group not in read:
        groups.setdefault(request.group, []).append(request)
    width = self.width(filled[0][1])
    batch = {}
    for group in (*groups, *state.scheduler.groups()):
      if len(batch) == self.rows:
        break
      waiting = state.scheduler.requests(group)
      requests = [*groups.get(group, ()), *waiting]
      if group not in read and self.width(requests[0]) == width:
        batch[group] = requests
    return batch

  def _read(
    self, state: EngineState, groups: Groups, learned: Read
  ) -> dict[Hashable, tuple[Cache, int]]:
    """The places of the prompts in a new cache; adds to what was `learned`."""
    start, firsts = len(self.prefix), [r[0] for r in groups.values()]
    tokens = np.zeros((self.rows, start + self.width(firsts[0])), np.int32)
    for row, request in zip(tokens, firsts):
      row[: len(request.prompt)] = request.prompt
    asked = {
      group: max(r.top_logprobs for r in requests if r.prompt_logprobs)
      for group, requests in groups.items()
      if any(r.prompt_logprobs for r in requests)
    }
    cache, hidden, experts = programs.read_prompts(
      self.model,
      state.params,
      state.prefix,
      tokens[:, start:],
      state.prefix_experts,
      record_experts=self.sampling.record_experts,
      keep_hidden=bool(asked),
    )
    if experts is not None:
      learned.experts.append(PromptExperts([*groups], experts))
    if asked:
      scores = sharding.to_host(
        score_prompts(
          state.params,
          state.prefix_hidden,
          hidden,
          tokens,
          vocab_size=self.sampling.vocab_size,
          top=TOP_LOGPROBS if any(asked.values()) else 0,
        )
      )
    for row, (group, request) in enumerate(zip(groups, firsts)):
      if group in asked:
        own = (row, slice(len(request.prompt) - 1))
        learned.scores[group] = jax.tree.map(lambda x, at=own: x[at], scores)
    return {group: (cache, row) for row, group in enumerate(groups)}


def room(needed: int, limit: int, smallest: int) -> int:
  """`limit` halved as often as `needed` and `smallest` allow, rounded up.

  A cache comes in these sizes only: every other one is a program to compile.
  """
  least, size = max(needed, smallest), limit
  while size > least and (half := -(-size // 2)) >= least:
    size = half
  return size


def slots_per_prompt(
  prompt_tokens: int, max_tokens: int, group_size: int, num_slots: int
) -> int:
  """How many neighbouring slots share the cache of a prompt.

  Sharing pays where most of what a step reads is prompts. It also makes slots
  wait for each other, which is short where completions are.

  Args:
    prompt_tokens: of a prompt at most.
    max_tokens: of a completion at most.
    group_size: completions of each prompt.
    num_slots: of a shard.
  """
  if prompt_tokens <= max_tokens:
    return 1
  return math.gcd(group_size, num_slots)
