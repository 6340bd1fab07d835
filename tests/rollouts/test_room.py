"""Caches are as long as the longest text under way asks for."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import cache as caches
from r1jax.parallel.mesh import make_mesh
from r1jax.rollouts import prompts, slots
from r1jax.rollouts.engine import make_engine
from r1jax.rollouts.prompts import room

PROMPTS = [[7, 1, 30], [4], [9, 9], [12, 0, 5, 6], [3, 3, 3]]
GROUP = 4


def make(toy, **sizes):
  """An engine for which no id ends a text, so that limits are lengths."""
  words = copy.copy(toy.words)
  words.eos_ids = ()
  sizes = (
    dict(num_slots=4, decode_steps=3, prompt_tokens=6, max_tokens=12) | sizes
  )
  return make_engine(
    toy.model,
    words,
    make_mesh(data=1),
    (),
    temperature=1.0,
    **sizes,
  )


@pytest.fixture
def seen(monkeypatch):
  """The size of the cache at every call of `decode`, and its numbers."""
  seen, decode = [], slots.decode

  def watched(model, sampling, params, prefix, cache, slots):
    seen.append((cache.size, sum(x.size for x in jax.tree.leaves(cache.rows))))
    return decode(model, sampling, params, prefix, cache, slots)

  monkeypatch.setattr(slots, "decode", watched)
  return seen


@pytest.mark.parametrize(
  "needed, limit, smallest, expected",
  [
    (1, 304, 128, 152),
    (152, 304, 128, 152),
    (153, 304, 128, 304),
    (1, 304, 256, 304),
    (1, 300, 1000, 300),
    (5, 33_792, 128, 132),
    (133, 33_792, 128, 264),
    (33_792, 33_792, 128, 33_792),
    (1, 7, 1, 1),
    (2, 7, 1, 2),
    (3, 7, 1, 4),
  ],
)
def test_room_is_the_limit_halved(needed, limit, smallest, expected):
  assert room(needed, limit, smallest) == expected


def test_sizes_are_a_handful():
  sizes = {needed: room(needed, 33_792, 128) for needed in range(1, 33_793, 33)}
  assert len({*sizes.values()}) == 9
  for needed, size in sizes.items():
    assert needed <= size <= max(2 * needed, 132)


@pytest.fixture
def buckets(monkeypatch):
  """Sets the sizes of the smallest cache."""

  def set_to(size):
    monkeypatch.setattr(prompts, "KV_BUCKET", size)
    monkeypatch.setattr(prompts, "SMALLEST", size)

  return set_to


def test_long_limits_cost_nothing_until_they_are_reached(toy, seen, buckets):
  """Limits of 32k, texts of 15 tokens at most."""
  buckets(16)
  engine = make(toy, prompt_tokens=64, max_tokens=32_768)
  rollout = engine(toy.params, PROMPTS, 2, seed=0, round=0, max_tokens=12)
  assert rollout.lengths.max() == 12
  assert rollout.prompts.shape == (5, 16)
  whole = caches.empty(toy.model.config, 4, 64 + 32_768).rows
  numbers = sum(x.size for x in jax.tree.leaves(whole))
  for size, held in seen:
    assert size == 17
    assert held * 1900 < numbers


def test_the_cache_grows_for_the_longest_and_shrinks_when_it_has_gone(
  toy, seen, buckets
):
  limits = np.full((5, GROUP), 3)
  limits[0, 0] = 12
  run = lambda engine: engine(
    toy.params, PROMPTS, GROUP, seed=2, round=0, max_tokens=limits
  )
  buckets(4)
  got = run(make(toy))
  sizes = [size for size, _ in seen]
  assert got.lengths[0, 0] == 12
  assert sizes[0] == sizes[-1] == 9 and max(sizes) == 18
  changes = [a != b for a, b in zip(sizes, sizes[1:])]
  assert sum(changes) == 2
  # Rows only learn of it by rounding.
  buckets(256)
  expected = run(make(toy))
  assert {size for size, _ in seen[len(sizes) :]} == {18}
  np.testing.assert_array_equal(got.completions, expected.completions)
  np.testing.assert_array_equal(got.finish, expected.finish)
  np.testing.assert_allclose(got.logprobs, expected.logprobs, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_resizing_keeps_what_there_is_room_for(size):
  numbers = np.random.default_rng(0).normal(size=(3, 2, 4, 5, 3))
  values = jnp.asarray(numbers, jnp.float32)  # [..., S, H]; L leads.
  keys = jnp.swapaxes(values, -1, -2)
  kept = min(size, 5)
  for rows in ((keys, values), tuple(zip(keys, values))):
    cache = caches.Cache(prefix=(), rows=rows, lengths=jnp.zeros(3, int))
    grown = jax.jit(caches.grow, static_argnums=1)(cache, size)
    assert grown.size == size
    got = grown.rows
    assert jax.tree.structure(got) == jax.tree.structure(rows)
    for old, new in zip(jax.tree.leaves(rows)[::2], jax.tree.leaves(got)[::2]):
      np.testing.assert_array_equal(new[..., :kept], old[..., :kept])
      assert not new[..., kept:].any()
    for old, new in zip(
      jax.tree.leaves(rows)[1::2], jax.tree.leaves(got)[1::2]
    ):
      np.testing.assert_array_equal(new[..., :kept, :], old[..., :kept, :])
      assert not new[..., kept:, :].any()


def test_steps_are_those_that_slots_took(toy):
  """Five completions in four slots: one of them waits for the first three
  tokens, and the last look ends when nobody is left."""
  limits = np.array([[3], [1], [2], [3], [2]])
  engine = make(toy)
  rollout = engine(toy.params, PROMPTS, 1, seed=0, round=0, max_tokens=limits)
  np.testing.assert_array_equal(rollout.lengths, limits)
  assert rollout.steps == 3 + 2
