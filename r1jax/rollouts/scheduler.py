"""Which request comes next, and in which slot."""

import collections
import itertools
from collections.abc import Collection, Hashable, Iterator, Sequence

import numpy as np

from r1jax.rollouts.requests import Request

Group = Hashable


class Scheduler:
  """The requests that wait, by group and in order of arrival.

  The slots are in shards, one after another, and each group belongs to one of
  them. A block of neighbouring slots serves one group at a time. Only when all
  of them are free, it turns to another group of its shard.
  """

  def __init__(self, shards: int, num_slots: int, block: int):
    self._slots, self._block = num_slots // shards, block
    # By shard: the groups of which requests wait, and those requests.
    self._waiting: list[dict[Group, collections.deque[Request]]] = [
      {} for _ in range(shards)
    ]
    self._shard: dict[Group, int] = {}
    self._ids: set[Hashable] = set()
    self._arrived = 0  # Groups.

  def __len__(self) -> int:
    """Requests that wait."""
    return len(self._ids)

  def __contains__(self, id: Hashable) -> bool:
    """Whether a request of this id waits."""
    return id in self._ids

  def add(self, request: Request) -> None:
    """Puts a request behind the others of its group.

    Groups take turns among the shards.
    """
    self._ids.add(request.id)
    if request.group not in self._shard:
      self._shard[request.group] = self._arrived % len(self._waiting)
      self._arrived += 1
    groups = self._waiting[self._shard[request.group]]
    groups.setdefault(request.group, collections.deque()).append(request)

  def remove(self, ids: Collection[Hashable]) -> None:
    """Forgets those of these requests that wait."""
    if self._ids.isdisjoint(ids):
      return
    self._ids.difference_update(ids)
    for groups in self._waiting:
      for group, queue in [*groups.items()]:
        kept = collections.deque(r for r in queue if r.id not in ids)
        groups[group] = kept
        self._drop_if_empty(group)

  def requests(self, group: Group) -> Sequence[Request]:
    """Those of a group that wait."""
    shard = self._shard.get(group)
    return () if shard is None else self._waiting[shard].get(group, ())

  def groups(self) -> Iterator[Group]:
    """The groups of which requests wait, one of each shard in turn."""
    for turn in itertools.zip_longest(*self._waiting):
      yield from (group for group in turn if group is not None)

  def take(self, serving: Sequence[Group | None]) -> list[tuple[int, Request]]:
    """Slots that are filled now, and their requests, which wait no longer.

    `serving` is the group that each slot works for, None for a free one.
    """
    if not self._ids:
      return []
    serving, taken = [*serving], []
    free = [slot for slot, group in enumerate(serving) if group is None]
    for block, slots in itertools.groupby(free, lambda s: s // self._block):
      first = block * self._block
      served = serving[first : first + self._block]
      group = next((g for g in served if g is not None), None)
      for slot in slots:
        if group is None or self._block == 1:
          group = self._next(first // self._slots, serving)
        if group is None or not self.requests(group):
          break
        queue = self._waiting[self._shard[group]][group]
        taken.append((slot, queue.popleft()))
        self._ids.remove(taken[-1][1].id)
        serving[slot] = group
        self._drop_if_empty(group)
    return taken

  def _next(self, shard: int, serving: Sequence[Group | None]) -> Group | None:
    """The first waiting group of a shard, or None.

    Where blocks share prompts, it is the first of those that the fewest serve:
    the more completions a block has before it, the less its slots wait.
    """
    groups = self._waiting[shard]
    if self._block == 1 or not groups:
      return next(iter(groups), None)
    blocks = np.arange(len(serving)).reshape(-1, self._block)
    served = collections.Counter(
      next((g for g in map(serving.__getitem__, block) if g is not None), None)
      for block in blocks.tolist()
    )
    return min(groups, key=lambda group: served[group])

  def _drop_if_empty(self, group: Group) -> None:
    shard = self._shard[group]
    if not self._waiting[shard][group]:
      del self._waiting[shard][group], self._shard[group]

  def idle(self, busy: np.ndarray) -> float:
    """The share of the shards that have no busy slot."""
    return 1 - len(np.unique(busy // self._slots)) / len(self._waiting)
