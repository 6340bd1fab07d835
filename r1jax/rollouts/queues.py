"""Which completion comes next, and in which slot."""

import itertools

import numpy as np


class Queues:
  """The completions that have not begun, and the slots that may begin them.

  A block of neighbouring slots serves one prompt at a time. Only when all of
  them are free, it turns to another one of its shard.
  """

  def __init__(
    self, shards: int, num_slots: int, block: int, shape: tuple[int, int]
  ):
    prompts, self._group_size = shape
    self._shards, self._slots, self._block = shards, num_slots // shards, block
    self._begun = np.zeros(prompts, int)
    self._served = np.full(num_slots // block, -1)

  def take(self, free: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of the free slots those that are filled, with which prompts, members."""
    taken = []
    of_block = lambda slot: slot // self._block
    for block, slots in itertools.groupby(free.tolist(), of_block):
      slots = list(slots)
      if len(slots) == self._block:
        self._served[block] = -1
        self._served[block] = self._next(slots[0] // self._slots)
      prompt = self._served[block]
      if prompt < 0:
        continue
      for slot in slots[: self._group_size - self._begun[prompt]]:
        taken.append((slot, prompt, self._begun[prompt]))
        self._begun[prompt] += 1
    return tuple(np.array(taken, int).reshape(-1, 3).T)

  def _next(self, shard: int) -> int:
    """The first prompt of a shard that has completions left, or -1.

    Where blocks share prompts, it is the first of those that the fewest serve:
    the more completions a block has before it, the less its slots wait.
    """
    own = np.arange(shard, len(self._begun), self._shards)
    own = own[self._begun[own] < self._group_size]
    if self._block > 1 and len(own):
      served = self._served[self._served >= 0]
      own = own[[np.bincount(served, minlength=own[-1] + 1)[own].argmin()]]
    return int(own[0]) if len(own) else -1

  def idle(self, busy: np.ndarray) -> float:
    """The share of the shards that have no busy slot."""
    return 1 - len(np.unique(busy // self._slots)) / self._shards
