"""Every value has one slot, which sees its own text and nothing else."""

import numpy as np
import packed as packed_rows
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data import packing
from r1jax.types import Rollout, within_lengths

WIDTHS = (24, 12, 7)


@st.composite
def groups(draw):
  """Prompts and completions whose tokens are all different; ragged lists."""
  rng = np.random.default_rng(draw(st.integers(0, 2**31)))
  count, size = draw(st.integers(1, 6)), draw(st.integers(1, 5))
  prompts = rng.integers(0, 7, count).tolist()
  answers = rng.integers(1, 18, count * size).tolist()
  token, texts = 1, []
  for length in prompts + answers:
    texts.append([*range(token, token + length)])
    token += length
  return texts[:count], texts[count:]


def packed(prompts, answers, widths=WIDTHS, rows=2, stride=100):
  """The placements of all groups, and their rows."""
  size = len(answers) // len(prompts)
  placements = packing.pack(
    np.array([*map(len, prompts)]),
    np.array([*map(len, answers)]).reshape(-1, size),
    widths=widths,
    rows=rows,
  )
  return placements, [
    packing.lay_out(x, prompts, answers, group_size=size, stride=stride)
    for x in placements
  ]


def expected(prompts, answers, stride=100):
  """{origin: (the whole text up to a token, the token)}."""
  table, size = {}, len(answers) // len(prompts)
  for i, answer in enumerate(answers):
    prompt = prompts[i // size]
    for t, token in enumerate(answer):
      if prompt or t:
        table[i * stride + t] = ([*prompt, *answer[:t]], token)
  return table


def seen(rows, row, slot):
  """Tokens and positions that a slot attends to, in the order of the row."""
  at = np.arange(rows.tokens.shape[1])
  own = (rows.k_start[row, slot] <= at) & (at <= slot)
  keys = own | (at < rows.prefix_end[row, slot])
  return rows.tokens[row, keys].tolist(), rows.positions[row, keys].tolist()


@settings(max_examples=200, deadline=None)
@given(groups(), st.integers(1, 4))
def test_every_value_has_one_slot_that_attends_to_its_own_text(texts, rows):
  table, origins = expected(*texts), []
  for part in packed(*texts, rows=rows)[1]:
    assert part.tokens.shape[0] == rows and part.tokens.shape[1] in WIDTHS
    for row, slot in np.argwhere(part.origin >= 0):
      origin = int(part.origin[row, slot])
      origins.append(origin)
      before, token = table[origin]
      assert part.targets[row, slot] == token
      assert part.tokens[row, slot] == before[-1]
      assert part.positions[row, slot] == len(before) - 1
      assert seen(part, row, slot) == (before, [*range(len(before))])
  assert sorted(origins) == sorted(table)


@settings(max_examples=100, deadline=None)
@given(groups())
def test_unused_slots_come_last_and_attend_only_to_themselves(texts):
  for placement, part in zip(*packed(*texts)):
    used = part.positions >= 0
    np.testing.assert_array_equal(
      used, np.arange(placement.width) < placement.used[:, None]
    )
    for row, slot in np.argwhere(~used):
      assert part.origin[row, slot] == -1
      assert part.tokens[row, slot] == part.targets[row, slot] == 0
      assert seen(part, row, slot) == ([0], [-1])


@settings(max_examples=100, deadline=None)
@given(groups())
def test_prompt_tokens_have_no_value_and_stand_at_most_once_per_completion(
  texts,
):
  prompts, answers = texts
  parts = packed(*texts)[1]
  size = len(answers) // len(prompts)
  for prompt in prompts:
    for token in prompt[:-1]:
      places = [
        (x, *at) for x in parts for at in np.argwhere(x.tokens == token)
      ]
      assert 1 <= len(places) <= size
      for part, row, slot in places:
        assert part.origin[row, slot] == -1
        assert part.targets[row, slot] == token + 1
      # A row that shares a prompt holds it once.
      shared = [
        (id(part), row)
        for part, row, slot in places
        if part.prefix_end[row].any() and not slot > part.prefix_end[row].max()
      ]
      assert len(shared) == len({*shared})


@settings(max_examples=100, deadline=None)
@given(groups())
def test_the_pairs_of_a_placement_are_those_that_attention_computes(texts):
  for placement, part in zip(*packed(*texts)):
    pairs = sum(
      len(seen(part, *at)[0]) for at in np.argwhere(part.positions >= 0)
    )
    assert placement.num_pairs == pairs


@settings(max_examples=100, deadline=None)
@given(groups(), st.data())
def test_values_by_completion_and_by_token_come_to_their_targets(texts, data):
  prompts, answers = texts
  by_token = np.zeros((len(answers), 20), np.int64)
  for values, answer in zip(by_token, answers):
    values[: len(answer)] = answer
  by_completion = np.arange(len(answers)) + 5
  for placement, part in zip(*packed(*texts)):
    targets = packing.per_slot(placement, by_token, np.int32)
    np.testing.assert_array_equal(
      targets, np.where(part.origin >= 0, part.targets, 0)
    )
    owners = packing.per_slot(placement, by_completion, np.float32)
    np.testing.assert_array_equal(
      owners, np.where(part.origin >= 0, part.origin // 100 + 5, 0)
    )


def lengths(mean, sigma=1.0, shape=(32, 16), limit=32_768):
  rng = np.random.default_rng(0)
  drawn = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, shape)
  return np.clip(drawn, 1, limit).astype(int)


@pytest.mark.parametrize(
  "mean, least", [(1_000, 0.5), (3_600, 0.7), (10_000, 0.7)]
)
def test_most_slots_hold_tokens_and_rows_are_about_equally_full(mean, least):
  drawn, prompts = lengths(mean), np.full(32, 201)
  widths = [40_960, 20_480, 10_240, 5_120]
  placements = packing.pack(prompts, drawn, widths=widths, rows=32)
  slots = sum(x.rows * x.width for x in placements)
  assert (drawn.sum() + 200 * 32) / slots >= least
  load = sum(x.used for x in placements)
  assert load.min() >= 0.9 * load.mean()


def test_what_does_not_fit_a_microbatch_goes_to_another():
  whole = np.full((1, 5), 10)
  placements = packing.pack(np.array([1]), whole, widths=[10], rows=2)
  assert [len(x.completion) for x in placements] == [2, 2, 1]
  sizes = packing.pack(np.array([1]), whole, widths=[10, 40], rows=1)
  assert [x.width for x in sizes] == [40, 10]


def test_texts_of_their_own_go_where_they_fit_best():
  """In the rows with most room, the last would not fit."""
  sizes = np.array([3, 4, 5, 6, 7, 2, 6])[:, None]
  ones = np.ones(len(sizes), int)
  (placement,) = packing.pack(ones, sizes, widths=[11], rows=3)
  whole = sizes[placement.completion, 0]
  rows = [sorted(whole[placement.row == row].tolist()) for row in range(3)]
  assert sorted(rows) == [[2, 3, 6], [4, 7], [5, 6]]


def test_best_fit_leaves_few_slots_empty():
  drawn, widths = (
    lengths(5_000, shape=(256, 1)),
    [32_768 >> i for i in range(4)],
  )
  placements = packing.pack(np.ones(256, int), drawn, widths=widths, rows=8)
  assert drawn.sum() / sum(x.rows * x.width for x in placements) > 0.95


def test_texts_of_the_full_width_each_have_a_row():
  """Whichever of the prompts a row would rather share."""
  drawn = np.array([[3, 3, 3], [9, 9, 9], [3, 3, 2]])
  prompts = np.array([8, 2, 8])
  placements = packing.pack(prompts, drawn, widths=[10], rows=1)
  assert sum(len(x.completion) for x in placements) == 9


def test_a_text_longer_than_the_widest_row_is_refused():
  with pytest.raises(ValueError, match="11 tokens does not fit rows of 10"):
    packing.pack(np.array([4]), np.array([[8]]), widths=[5, 10], rows=3)
  packing.pack(np.array([4]), np.array([[7]]), widths=[5, 10], rows=3)


def test_nothing_takes_one_empty_microbatch():
  empty = np.zeros((0, 1), int)
  (one,) = packing.pack(np.zeros(0, int), empty, widths=[8, 4], rows=2)
  assert one.width == 4 and one.used.tolist() == [0, 0]


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
  rows = packed_rows.of_rollout(rollout, width, chosen=chosen, rows=20)
  mask = (
    rollout.sampled_mask & np.isin(np.arange(prompts), chosen)[:, None, None]
  )
  origins = rows.origin[rows.origin >= 0]
  np.testing.assert_array_equal(np.sort(origins), np.flatnonzero(mask))
  np.testing.assert_array_equal(
    packing.unpack(rows.targets, rows, rollout.completions.shape),
    np.where(mask, rollout.completions, 0),
  )
  for row, slot in np.argwhere(rows.origin >= 0):
    p, g, t = np.unravel_index(rows.origin[row, slot], mask.shape)
    prompt = rollout.prompts[p, : rollout.prompt_lengths[p]]
    before = [*prompt, *rollout.completions[p, g, :t]]
    assert seen(rows, row, slot)[0] == before


def test_a_group_is_laid_out_with_its_prompt_once_if_there_is_room():
  prompts, answers = [[*range(1, 9)]], [[50] * 3] * 4
  (placement,), (rows,) = packed(prompts, answers, widths=[19], rows=1)
  assert placement.shared.all()
  assert (rows.positions >= 0).sum() == 7 + 4 * 3
  assert len(packed(prompts, answers, widths=[18], rows=1)[0]) == 2


def test_groups_stay_together_where_their_prompts_are_long():
  lengths = np.array([[3, 2, 2, 1], [2, 2, 2, 2], [4, 2, 1, 1], [1, 1, 3, 3]])
  (one,) = packing.pack(np.full(4, 9), lengths, widths=[16], rows=4)
  assert one.shared.all() and one.used.tolist() == [16] * 4


def test_unpack_keeps_the_dtype():
  rows = packed_rows.of_texts([([1], [2, 2])], 3, rows=1)
  values = np.full((1, 3), 0.5, np.float32)
  got = packing.unpack(values, rows, (1, 3))
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got, [[0.5, 0.5, 0.0]])
