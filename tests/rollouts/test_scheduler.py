"""Which request comes next, and in which slot."""

import numpy as np
import pytest

from r1jax.rollouts.requests import Request
from r1jax.rollouts.scheduler import Scheduler


def scheduler(shards, num_slots, block, shape):
  """With a request of every member of every prompt, named (prompt, member)."""
  made = Scheduler(shards, num_slots, block)
  for p, g in np.ndindex(shape):
    made.add(Request((p, g), [p], group=p))
  return made


def take(made, serving):
  """The slots that are filled, and the names of their requests."""
  taken = made.take(serving)
  return [slot for slot, _ in taken], [request.id for _, request in taken]


def test_each_shard_of_slots_has_its_own_groups():
  made = scheduler(2, 6, 1, (3, 2))  # Prompts 0 and 2 are the first shard's.
  slots, ids = take(made, [None] * 6)
  assert slots == [0, 1, 2, 3, 4]
  assert ids == [(0, 0), (0, 1), (2, 0), (1, 0), (1, 1)]
  assert take(made, [0, None, 2, 1, 1, None]) == ([1], [(2, 1)])
  assert not len(made) and not made.take([None] * 6)
  assert made.idle(np.array([0, 1, 3])) == 0.0
  assert made.idle(np.array([0, 1])) == 0.5


def test_a_block_turns_to_another_group_only_when_it_is_free():
  made = scheduler(1, 4, 2, (3, 3))
  # Each block serves a prompt of its own, so that none of its slots waits yet.
  slots, ids = take(made, [None] * 4)
  assert slots == [0, 1, 2, 3]
  assert ids == [(0, 0), (0, 1), (1, 0), (1, 1)]
  assert take(made, [0, None, 1, 1]) == ([1], [(0, 2)])
  # Prompt 0 has no completion left, but one of them is still under way.
  assert take(made, [None, 0, 1, 1]) == ([], [])
  assert take(made, [None, None, 1, 1]) == ([0, 1], [(2, 0), (2, 1)])


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("shards", [1, 2])
def test_every_request_begins_once_whatever_ends_first(block, shards):
  rng, shape = np.random.default_rng(block), (5, 6)
  made, serving = scheduler(shards, 8, block, shape), [None] * 8
  begun = np.zeros(shape, int)
  while True:
    for slot, request in made.take(serving):
      p, g = request.id
      assert p % shards == slot // (8 // shards)
      assert serving[slot] is None
      serving[slot] = p
      begun[p, g] += 1
    for part in np.reshape(np.array(serving, object), (-1, block)):
      assert len({*part} - {None}) <= 1  # Neighbours share their prompt.
    busy = [slot for slot, group in enumerate(serving) if group is not None]
    if not busy:
      break
    for slot in rng.choice(busy, rng.integers(1, len(busy) + 1), replace=False):
      serving[slot] = None
  assert np.all(begun == 1)


def test_groups_come_one_of_each_shard_in_turn():
  made = scheduler(2, 4, 1, (5, 2))
  assert [*made.groups()] == [0, 1, 2, 3, 4]
  made.remove([(0, 0), (0, 1), (3, 0)])
  assert [*made.groups()] == [2, 1, 4, 3]
  assert (0, 0) not in made and (3, 1) in made and len(made) == 7
  assert [request.id for request in made.requests(3)] == [(3, 1)]
