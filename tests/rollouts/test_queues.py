"""Which completion comes next, and in which slot."""

import numpy as np
import pytest

from r1jax.rollouts.queues import Queues


def test_each_shard_of_slots_has_its_own_prompts():
  queues = Queues(2, 6, 1, (3, 2))  # Prompts 0 and 2 are the first shard's.
  free, prompt, member = queues.take(np.arange(6))
  assert free.tolist() == [0, 1, 2, 3, 4]
  assert prompt.tolist() == [0, 0, 2, 1, 1]
  assert member.tolist() == [0, 1, 0, 0, 1]
  free, prompt, member = queues.take(np.array([1, 5]))
  assert (free.tolist(), prompt.tolist(), member.tolist()) == ([1], [2], [1])
  assert queues.idle(np.array([0, 1, 3])) == 0.0
  assert queues.idle(np.array([0, 1])) == 0.5


def test_a_block_turns_to_another_prompt_only_when_it_is_free():
  queues = Queues(1, 4, 2, (3, 3))
  free, prompt, member = queues.take(np.arange(4))
  # Each block serves a prompt of its own, so that none of its slots waits yet.
  assert prompt.tolist() == [0, 0, 1, 1]
  assert member.tolist() == [0, 1, 0, 1]
  free, prompt, member = queues.take(np.array([1]))
  assert (free.tolist(), prompt.tolist(), member.tolist()) == ([1], [0], [2])
  # Prompt 0 has no completion left, but one of them is still under way.
  assert not len(queues.take(np.array([0]))[0])
  free, prompt, member = queues.take(np.array([0, 1]))
  assert (prompt.tolist(), member.tolist()) == ([2, 2], [0, 1])


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("shards", [1, 2])
def test_every_completion_begins_once_whatever_ends_first(block, shards):
  rng, shape = np.random.default_rng(block), (5, 6)
  queues, slots = Queues(shards, 8, block, shape), np.full((8, 2), -1)
  begun = np.zeros(shape, int)
  while True:
    free, prompt, member = queues.take(np.flatnonzero(slots[:, 0] < 0))
    assert np.all(prompt % shards == free // (8 // shards))
    begun[prompt, member] += 1
    slots[free] = np.stack([prompt, member], axis=1)
    for part in slots.reshape(-1, block, 2):  # Neighbours share their prompt.
      assert len(set(part[part[:, 0] >= 0, 0])) <= 1
    busy = np.flatnonzero(slots[:, 0] >= 0)
    if not len(busy):
      break
    slots[rng.choice(busy, rng.integers(1, len(busy) + 1), replace=False)] = -1
  assert np.all(begun == 1)
