"""Forward passes with a cache equal those without."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import cache as caches
from r1jax.models import transformer
from r1jax.models.presets import preset
from r1jax.parallel import sharding
from r1jax.parallel.mesh import make_mesh

ROWS, LENGTH, ROOM = 3, 9, 12
TOKENS = np.random.default_rng(0).integers(0, 40, (ROWS, LENGTH), np.int32)


@pytest.fixture(scope="module")
def uncached(toy):
  """Hidden states of all tokens, without a cache."""
  return toy.forward(toy.params, transformer.pack_rows(TOKENS)).hidden


@pytest.fixture(scope="module")
def extend(toy):
  """`extend(cache, tokens)` of the toy model; tokens [B, T]."""
  return lambda cache, tokens: toy.extend(
    toy.params, jnp.asarray(tokens), cache
  )


def assert_close(got, expected):
  np.testing.assert_allclose(got, expected, atol=5e-5)


def test_extending_by_all_tokens_equals_no_cache(toy, extend, uncached):
  hidden, cache = extend(caches.empty(toy.config, ROWS, ROOM), TOKENS)
  assert_close(hidden, uncached)
  np.testing.assert_array_equal(cache.lengths, [LENGTH] * ROWS)


def test_extending_token_by_token_equals_no_cache(toy, extend, uncached):
  cache = caches.empty(toy.config, ROWS, ROOM)
  for t in range(LENGTH):
    hidden, cache = extend(cache, TOKENS[:, t : t + 1])
    assert_close(hidden[:, 0], uncached[:, t])


def test_extending_by_any_number_of_tokens_equals_no_cache(
  toy, extend, uncached
):
  cache = caches.empty(toy.config, ROWS, ROOM)
  for start, stop in ((0, 5), (5, 8), (8, 9)):
    hidden, cache = extend(cache, TOKENS[:, start:stop])
    assert_close(hidden, uncached[:, start:stop])


def test_extending_after_a_shared_prefix_equals_no_cache(toy, extend):
  prefix = TOKENS[0, :4]
  rows = np.concatenate([np.tile(prefix, (ROWS, 1)), TOKENS[:, 4:]], axis=1)
  expected = toy.forward(toy.params, transformer.pack_rows(rows)).hidden
  _, alone = extend(caches.empty(toy.config, 1, 4), prefix[None])
  shared = caches.as_prefix(alone)
  cache = caches.empty(toy.config, ROWS, ROOM, prefix=shared)
  for t in range(4, LENGTH):
    hidden, cache = extend(cache, rows[:, t : t + 1])
    assert_close(hidden[:, 0], expected[:, t])
  jax.tree.map(np.testing.assert_array_equal, shared, cache.prefix)


@pytest.mark.parametrize("shared", [False, True])
def test_a_copied_prompt_continues_like_the_original(
  toy, extend, uncached, shared
):
  """Whatever the rows held before, and if two rows share each prompt."""
  _, prompts = extend(caches.empty(toy.config, ROWS, 5), TOKENS[:, :5])
  sizes = dict(prompts=2, prompt_size=5) if shared else {}
  cache = caches.empty(toy.config, 4, ROOM, **sizes)
  _, cache = extend(cache, TOKENS[[1, 1, 1, 1], :2])
  row, source, lengths = np.array([[0, 1, 2, 3], [2, 2, 0, 0], [3, 3, 5, 5]])
  at = source, lengths
  if not shared:  # A row beyond the last is dropped.
    row, source, lengths = (np.append(x, 4) for x in (row, source, lengths))
  arguments = map(jnp.asarray, (source, lengths))
  cache = caches.copy_prompt(cache, jnp.asarray(row), prompts, *arguments)
  hidden, _ = extend(cache, TOKENS[at][:, None])
  assert_close(hidden[:, 0], uncached[at])


LENGTHS = np.array([2, 5, 4], np.int32)  # Of rows that differ.


@pytest.fixture(scope="module")
def ragged(toy, extend):
  """A cache whose rows hold the first LENGTHS tokens, then garbage."""
  _, cache = extend(caches.empty(toy.config, ROWS, ROOM), TOKENS[:, :5])
  return cache.replace(lengths=jnp.asarray(LENGTHS))


def test_rows_of_different_lengths_in_one_batch(extend, ragged, uncached):
  cache = ragged
  for step in range(4):
    at = LENGTHS + step
    hidden, cache = extend(cache, TOKENS[np.arange(ROWS), at][:, None])
    assert_close(hidden[:, 0], uncached[np.arange(ROWS), at])
  np.testing.assert_array_equal(cache.lengths, LENGTHS + 4)


def test_buffers_beyond_the_length_have_no_influence(extend, ragged):
  beyond = jnp.arange(ROOM) >= LENGTHS[:, None, None, None]
  new = TOKENS[np.arange(ROWS), LENGTHS][:, None]
  expected, _ = extend(ragged, new)
  for garbage in (1e30, -1e30, 0.0):
    spoiled = ragged.replace(
      rows=jax.tree.map(
        lambda x, g=garbage: jnp.where(beyond, g, x), ragged.rows
      )
    )
    hidden, _ = extend(spoiled, new)
    np.testing.assert_array_equal(hidden, expected)


def test_rows_do_not_influence_each_other(extend, ragged):
  new = TOKENS[np.arange(ROWS), LENGTHS][:, None]
  expected, _ = extend(ragged, new)
  others = ragged.replace(
    rows=jax.tree.map(lambda x: x.at[1:].add(1.0), ragged.rows)
  )
  hidden, _ = extend(others, np.concatenate([new[:1], new[1:] + 1]) % 40)
  np.testing.assert_array_equal(hidden[0], expected[0])
  assert np.abs(hidden[1:] - expected[1:]).max() > 0.01


def test_other_weights_make_another_cache(toy, ragged):
  other = jax.tree.map(lambda w: w * 1.01, toy.params)
  cache = caches.empty(toy.config, ROWS, ROOM)
  _, cache = toy.extend(other, jnp.asarray(TOKENS[:, :5]), cache)
  for old, new in zip(*map(jax.tree.leaves, (ragged.rows, cache.rows))):
    assert np.abs(old[..., :5] - new[..., :5]).max() > 1e-3


def test_append_writes_after_each_rows_tokens_and_drops_what_has_no_room():
  new = jnp.arange(1.0, 13.0).reshape(3, 2, 1, 2)
  lengths = jnp.asarray([0, 2, 3])
  keys, values = jnp.zeros((3, 1, 2, 4)), jnp.zeros((3, 1, 4, 2))
  expected = [[1, 3, 0, 0], [0, 0, 5, 7], [0, 0, 0, 9]]
  for rows in (((keys, values),), (keys[None], values[None])):
    cache = caches.Cache(prefix=(), rows=rows, lengths=lengths)
    got = caches.read(caches.append(cache, 0, (new, new)).rows, 0)
    np.testing.assert_array_equal(got[0][:, 0, 0], expected)
    np.testing.assert_array_equal(got[1][:, 0, :, 0], expected)
    np.testing.assert_array_equal(
      got[0][:, 0, 1], np.add(expected, np.greater(expected, 0))
    )


@pytest.mark.parametrize("family", ["tiny_deepseek", "tiny_qwen2"])
def test_decoding_rows_that_a_mesh_splits_moves_nothing(family, random_params):
  model = transformer.Transformer(preset(family))
  mesh = make_mesh(data=2)

  @jax.jit
  def step(params, tokens, rows):
    cache = caches.empty(model.config, 4, ROOM).replace(rows=rows)
    cache = caches.shard_constraint(cache)
    return transformer.extend(model, params, tokens, cache)

  with jax.set_mesh(mesh):
    params = sharding.replicate(mesh, random_params(model.config))
    rows = caches.empty(model.config, 4, ROOM).rows
    given = sharding.rows_to_device(mesh, (np.zeros((4, 1), np.int32), rows))
    text = step.lower(params, *given).compile().as_text()
  assert not re.findall(r"(all-\w+|collective-\w+|reduce-scatter)\(", text)


def test_the_cache_holds_a_latent_and_one_key_per_token(toy):
  cache = caches.empty(toy.config, ROWS, ROOM)
  numbers = toy.config.attention.kv_rank + toy.config.attention.rope_size
  shapes = [rows.shape for rows in jax.tree.leaves(cache.rows)]
  assert shapes == 3 * [(ROWS, 1, numbers, ROOM)]
