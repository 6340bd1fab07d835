"""Every value has one slot, which sees its own text and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data.packing import Piece, pack, pack_rollout, unpack
from r1jax.types import Rollout, within_lengths

WIDTH = 24


@st.composite
def batches(draw):
  """Pieces whose tokens are all different, and where their values belong."""
  sizes = st.tuples(
    st.integers(0, 6), st.lists(st.integers(1, 6), min_size=1, max_size=3)
  )
  pieces, token, origin = [], 1, 0
  for head, tails in draw(st.lists(sizes, max_size=8)):
    prompt = [*range(token, token + head)]
    token += head
    completions, origins = [], []
    for size in tails:
      completions.append([*range(token, token + size)])
      origins.append(origin)
      token += size
      origin += size + draw(st.integers(0, 2))
    pieces.append(Piece(prompt, completions, origins))
  return pieces, origin


def expected(pieces):
  """{origin: (the whole text up to a token, the token)}."""
  table = {}
  for prompt, completions, origins in pieces:
    for completion, first in zip(completions, origins):
      for i, token in enumerate(completion):
        if prompt or i:
          table[first + i] = ([*prompt, *completion[:i]], token)
  return table


def seen(packed, row, slot):
  """Tokens and positions that a slot attends to, in the order of the row."""
  at = np.arange(packed.tokens.shape[1])
  own = (packed.k_start[row, slot] <= at) & (at <= slot)
  keys = own | (at < packed.prefix_end[row, slot])
  return packed.tokens[row, keys].tolist(), packed.positions[row, keys].tolist()


@settings(max_examples=200, deadline=None)
@given(batches())
def test_every_value_has_one_slot_that_attends_to_its_own_text(batch):
  pieces, _ = batch
  packed, table = pack(pieces, WIDTH), expected(pieces)
  slots = np.argwhere(packed.origin >= 0)
  origins = packed.origin[packed.origin >= 0].tolist()
  assert sorted(origins) == sorted(table)
  for (row, slot), origin in zip(slots, origins):
    before, token = table[origin]
    assert packed.targets[row, slot] == token
    assert packed.tokens[row, slot] == before[-1]
    assert packed.positions[row, slot] == len(before) - 1
    assert seen(packed, row, slot) == (before, [*range(len(before))])


@settings(max_examples=100, deadline=None)
@given(batches(), st.integers(0, 2))
def test_unused_slots_attend_only_to_themselves(batch, spare):
  pieces, _ = batch
  rows = pack(pieces, WIDTH).tokens.shape[0] + spare
  packed = pack(pieces, WIDTH, rows=rows)
  assert packed.tokens.shape == (rows, WIDTH)
  for row, slot in np.argwhere(packed.positions < 0):
    assert packed.origin[row, slot] == -1
    assert packed.tokens[row, slot] == 0
    assert seen(packed, row, slot) == ([0], [-1])
  assert (packed.positions >= 0).sum() <= sum(piece.size for piece in pieces)


@settings(max_examples=100, deadline=None)
@given(batches())
def test_prompt_tokens_have_no_value(batch):
  """Of a prompt no value is asked, and it is laid out once."""
  pieces, _ = batch
  packed = pack(pieces, WIDTH)
  heads = {token for piece in pieces for token in piece.prompt[:-1]}
  for token in heads:
    ((row, slot),) = np.argwhere(packed.tokens == token)
    assert packed.origin[row, slot] == -1
    assert packed.targets[row, slot] == token + 1


@settings(max_examples=100, deadline=None)
@given(batches())
def test_unpack_returns_values_to_their_origin(batch):
  pieces, size = batch
  packed, table = pack(pieces, WIDTH), expected(pieces)
  got = unpack(packed.targets, packed, (size,))
  for origin in range(size):
    assert got[origin] == (table[origin][1] if origin in table else 0)


@settings(max_examples=50, deadline=None)
@given(batches(), st.randoms())
def test_the_layout_does_not_depend_on_the_order_of_pieces(batch, random):
  pieces, _ = batch
  shuffled = [*pieces]
  random.shuffle(shuffled)
  for one, other in zip(
    pack(pieces, WIDTH).values(), pack(shuffled, WIDTH).values()
  ):
    np.testing.assert_array_equal(one, other)


def singles(*sizes):
  return [Piece([1], [[2] * n], [100 * i]) for i, n in enumerate(sizes)]


def test_texts_fill_rows_best_fit_longest_first():
  packed = pack(singles(3, 7, 5, 10, 5), 10)
  used = (packed.positions >= 0).sum(axis=1)
  np.testing.assert_array_equal(used, [10, 10, 10])


def test_a_shared_prompt_begins_its_row():
  shared = Piece([1, 2], [[3], [4]], [0, 1])
  packed = pack([shared, *singles(2, 9, 2)], 10)
  assert packed.tokens.shape[0] == 2
  row = packed.prefix_end.max(axis=1).argmax()
  assert packed.tokens[row].tolist() == [1, 2, 2, 1, 2, 1, 2, 0, 0, 0]
  assert packed.prefix_end[row].tolist() == [0, 1, 1] + 7 * [0]
  two = pack([shared, shared._replace(origins=[2, 3])], 10)
  assert two.tokens.shape[0] == 2


def test_a_text_longer_than_a_row_is_refused():
  with pytest.raises(ValueError, match="11 tokens does not fit rows of 10"):
    pack(singles(11), 10)
  with pytest.raises(ValueError, match="12 tokens does not fit rows of 10"):
    pack([Piece([1] * 5, [[2] * 4, [3] * 4], [0, 9])], 10)
  pack(singles(10), 10)


def test_too_few_rows_are_refused():
  with pytest.raises(ValueError, match="3 rows of 10 are needed, not 2"):
    pack(singles(8, 8, 8), 10, rows=2)


@st.composite
def rollouts(draw):
  prompts, group = draw(st.integers(1, 4)), draw(st.integers(1, 5))
  numbers = st.integers(0, 2**31)
  rng = np.random.default_rng(draw(numbers))
  size, window = 7, 5
  lengths = rng.integers(1, size + 1, (prompts, group)).astype(np.int32)
  completions = 1 + rng.permutation(prompts * group * size).astype(np.int32)
  completions = completions.reshape(prompts, group, size)
  return Rollout(  # What lies beyond a length is not zero here.
    prompts=rng.integers(0, 9, (prompts, window)).astype(np.int32),
    prompt_lengths=rng.integers(1, window + 1, prompts).astype(np.int32),
    completions=completions,
    lengths=lengths,
    finish=np.ones((prompts, group), np.int32),
    sampled_mask=within_lengths(lengths, size),
    logprobs=np.zeros((prompts, group, size), np.float32),
  )


@settings(max_examples=100, deadline=None)
@given(rollouts(), st.integers(11, 30), st.data())
def test_every_sampled_token_of_a_rollout_is_packed_once(rollout, width, data):
  prompts, group, size = rollout.completions.shape
  chosen = data.draw(st.permutations(range(prompts)))
  chosen = chosen[: data.draw(st.integers(1, prompts))]
  packed = pack_rollout(rollout, width, chosen=np.array(chosen), rows=20)
  mask = (
    rollout.sampled_mask & np.isin(np.arange(prompts), chosen)[:, None, None]
  )
  origins = packed.origin[packed.origin >= 0]
  np.testing.assert_array_equal(np.sort(origins), np.flatnonzero(mask))
  np.testing.assert_array_equal(
    unpack(packed.targets, packed, rollout.completions.shape),
    np.where(mask, rollout.completions, 0),
  )
  for row, slot in np.argwhere(packed.origin >= 0):
    p, g, t = np.unravel_index(packed.origin[row, slot], mask.shape)
    prompt = rollout.prompts[p, : rollout.prompt_lengths[p]]
    before = [*prompt, *rollout.completions[p, g, :t]]
    assert seen(packed, row, slot)[0] == before


def test_prompts_of_a_rollout_are_laid_out_once_if_there_is_room():
  rollout = Rollout(
    prompts=np.arange(1, 9, dtype=np.int32)[None],
    prompt_lengths=np.array([8], np.int32),
    completions=np.full((1, 4, 3), 50, np.int32),
    lengths=np.full((1, 4), 3, np.int32),
    finish=np.ones((1, 4), np.int32),
    sampled_mask=np.ones((1, 4, 3), bool),
    logprobs=np.zeros((1, 4, 3), np.float32),
  )
  packed = pack_rollout(rollout, 19, chosen=[0], rows=1)
  assert (packed.positions >= 0).sum() == 7 + 4 * 3
  with pytest.raises(ValueError, match="rows of 18 are needed, not 1"):
    pack_rollout(rollout, 18, chosen=[0], rows=1)


def test_unpack_keeps_the_dtype():
  packed = pack(singles(2), 10)
  values = np.full((1, 10), 0.5, np.float32)
  got = unpack(values, packed, (1, 3))
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got, [[0.5, 0.5, 0.0]])
