"""What the engine has under way: caches on devices, the rest on the host."""

import dataclasses
from collections.abc import Hashable

import numpy as np
from jaxtyping import Array, Float

from r1jax.models.cache import Buffers, Cache
from r1jax.rollouts.requests import Output, Request
from r1jax.rollouts.scheduler import Scheduler
from r1jax.rollouts.slots import Record, Slots
from r1jax.rollouts.stops import StopWatch
from r1jax.types import FINISH_STOP, Ints, Params, Tokenizer


@dataclasses.dataclass(frozen=True)
class EngineState:
  """All that the engine has under way; made by `Engine.start`.

  The engine takes over the state that it is given, as it takes over the memory
  of the cache: only the state that a call returns may be used afterwards.
  """

  params: Params
  prefix: Buffers  # The cache of what all prompts begin with,
  prefix_hidden: Float[Array, "1 T0 D"]  # its states,
  prefix_experts: Ints | None  # and its experts [1, T0, L, k].
  slots_per_prompt: int
  slots: Slots
  scheduler: Scheduler  # Of the requests that wait.
  cache: Cache | None = None  # Of the slots; None before the first step.
  # The latest request of each slot, None if there was none or it was removed.
  requests: list[Request | None] = dataclasses.field(default_factory=list)
  # The slots of these requests, by id.
  places: dict[Hashable, int] = dataclasses.field(default_factory=dict)
  # By slot: tokens that are still to be given, and who looks for stop strings.
  forced: dict[int, list[int]] = dataclasses.field(default_factory=dict)
  watches: dict[int, StopWatch] = dataclasses.field(default_factory=dict)
  # By group: a cache of prompts and a row of it, while requests wait for it.
  read: dict[Hashable, tuple[Cache, int]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def busy(self) -> np.ndarray:
    """The slots with a completion under way."""
    return np.flatnonzero(self.slots.finish == 0)

  @property
  def done(self) -> bool:
    """Whether nothing waits and nothing is under way."""
    return not len(self.scheduler) and not len(self.busy)

  def place(
    self, slot: int, request: Request, cached: int, tokenizer: Tokenizer
  ) -> None:
    """Puts a request that begins into a slot, whose row holds `cached` tokens.

    The cache itself is not touched.
    """
    old, slots = self.requests[slot], self.slots
    if old is not None and self.places.get(old.id) == slot:
      del self.places[old.id]
    self.requests[slot], self.places[request.id] = request, slot
    self.watches.pop(slot, None)
    if request.stop_strings:
      self.watches[slot] = StopWatch(tokenizer, request.stop_strings)
    slots.token[slot], slots.cached[slot] = request.prompt[-1], cached
    slots.count[slot] = slots.finish[slot] = 0
    slots.limit[slot], slots.keys[slot] = request.max_tokens, request.key
    for name, values in slots.settings._asdict().items():
      values[slot] = getattr(request, name)
    slots.stop_ids[slot] = -1
    slots.stop_ids[slot, : len(request.stop_ids)] = request.stop_ids

  def give_forced(self) -> None:
    """Sets the forced tokens of the next call of `decode`."""
    slots = self.slots
    slots.num_forced[:] = 0
    for slot, tokens in self.forced.items():
      given = tokens[: slots.forced.shape[1]]
      slots.forced[slot, : len(given)] = given
      slots.num_forced[slot] = len(given)

  def cut(self, record: Record, sampled: np.ndarray) -> dict[Hashable, str]:
    """Ends completions in the record behind the token that completes a stop
    string; returns the text before it, by request.

    `sampled` [B, n] is False where tokens were forced.
    """
    texts = {}
    for slot, watch in self.watches.items():
      start = self.slots.count[slot]
      for step in range(record.count[slot] - start):
        text = watch.push(
          int(record.tokens[slot, step]), sampled=bool(sampled[slot, step])
        )
        if text is not None:
          record.count[slot] = start + step + 1
          record.finish[slot] = FINISH_STOP
          texts[self.requests[slot].id] = text
          break
    return texts

  def advance(self, busy: np.ndarray, output: Output) -> None:
    """Takes over what a step has done with the `busy` slots."""
    slots, new = self.slots, output.count - output.start
    slots.token[busy] = output.tokens[np.arange(len(busy)), new - 1]
    slots.cached[busy] += new
    slots.count[busy], slots.finish[busy] = output.count, output.finish
    for slot in [*self.forced]:
      del self.forced[slot][: slots.num_forced[slot]]
      if not self.forced[slot]:
        del self.forced[slot]
