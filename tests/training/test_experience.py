"""Groups move whole, and every token's share is fixed before the update."""

import ml_collections
import numpy as np
import pytest

from r1jax.training.experience import (
  minibatches,
  pack_minibatch,
  place,
  spread,
  token_arrays,
  which_count,
  which_teach,
  within,
)
from r1jax.training.inspection import rows_needed
from r1jax.types import FINISH_LENGTH, FINISH_STOP, Experience, Rollout

P, G, T = 6, 3, 5
RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, T + 1, (P, G)).astype(np.int32)
ROLLOUT = Rollout(
  prompts=RNG.integers(0, 9, (P, 4)).astype(np.int32),
  prompt_lengths=np.full(P, 4, np.int32),
  completions=RNG.integers(0, 9, (P, G, T)).astype(np.int32),
  lengths=LENGTHS,
  finish=np.ones((P, G), np.int32),
  logprobs=RNG.normal(size=(P, G, T)).astype(np.float32),
)


def test_minibatches_are_disjoint_equal_and_all():
  parts = minibatches(3, np.ones(P, bool), seed=1, round=2)
  assert [len(part) for part in parts] == [2, 2, 2]
  assert sorted(np.concatenate(parts)) == [*range(P)]


def test_minibatches_are_functions_of_seed_and_round():
  draw = lambda seed, round: np.concatenate(
    minibatches(2, np.ones(100, bool), seed=seed, round=round)
  ).tolist()
  assert draw(1, 2) == draw(1, 2)
  assert len({tuple(draw(s, r)) for s in range(3) for r in range(3)}) == 9


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_groups_that_teach_are_dealt_evenly(count):
  """Wherever they are, as DAPO's are: at the front."""
  for teaching in range(17):
    first = np.arange(16) < teaching
    anywhere = np.random.default_rng(teaching).permutation(first)
    for teach in (first, anywhere):
      parts = minibatches(count, teach, seed=0, round=teaching)
      assert sorted(np.concatenate(parts)) == [*range(16)]
      assert {len(part) for part in parts} == {16 // count}
      dealt = [teach[part].sum() for part in parts]
      assert max(dealt) - min(dealt) <= 1


def test_a_group_teaches_by_what_counts_and_moves():
  advantages = np.array([[0.0, 0, 0], [1, -1, 0], [1, -1, 0], [1, 0, 0]])
  counted = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]], bool)
  assert which_teach(advantages, counted).tolist() == [
    False,
    True,
    False,
    False,
  ]


def test_what_is_not_graded_is_not_learned_from():
  total = np.ones((P, G))
  total[4, 1] = np.nan
  counted = which_count(ROLLOUT, total, mask_truncated=False)
  assert not counted[4, 1] and counted.sum() == P * G - 1
  cut = ROLLOUT.replace(finish=np.full((P, G), FINISH_STOP))
  cut.finish[2, 0] = FINISH_LENGTH
  assert which_count(cut, total, mask_truncated=False)[2, 0]
  assert not which_count(cut, total, mask_truncated=True)[2, 0]
  inside = within(counted, np.array([4, 2]))
  assert inside.sum() == 2 * G - 1 and inside[[4, 2]].sum() == 2 * G - 1


def test_a_minibatch_holds_all_completions_of_its_prompts():
  packed, count = pack_minibatch(
    ROLLOUT, [5, 1], width=16, max_rows=8, microbatch_rows=2
  )
  assert packed.tokens.shape == (2, 4, 16)  # [B, M, T]
  origins = packed.origin[packed.origin >= 0]
  mask = np.zeros((P, G, T), bool)
  mask[[5, 1]] = ROLLOUT.sampled_mask[[5, 1]]
  assert sorted(origins) == np.flatnonzero(mask).tolist()
  used = (packed.positions >= 0).any(axis=(0, 2))
  assert count == used.sum() and used[:count].all()


@pytest.mark.parametrize("width", [10, 12, 16, 23, 40])
def test_rows_for_the_worst_case_are_enough_for_any(width):
  """And the longest completions need all of them, unless what is left over
  from several prompts fits one row, as in rows of 16."""
  config = ml_collections.ConfigDict(
    dict(
      rows=dict(width=width),
      sampling=dict(max_tokens=T),
      prompts_per_round=2 * P,
      minibatches=2,
      group_size=G,
    )
  )
  needed = rows_needed(config, 4)
  fill = lambda lengths, rows: pack_minibatch(
    ROLLOUT.replace(lengths=lengths),
    range(P),
    width=width,
    max_rows=rows,
    microbatch_rows=1,
  )
  for seed in range(50):
    draw = np.random.default_rng(seed).integers
    fill(draw(draw(1, T + 1), T + 1, (P, G)), needed)
  longest = np.full((P, G), T)
  fill(longest, needed)
  if width != 16:
    with pytest.raises(ValueError, match=f"{needed} rows of {width} are need"):
      fill(longest, needed - 1)
  assert rows_needed(config, width - T + 2) == 0


@pytest.mark.parametrize("reference", [True, False])
def test_what_the_loss_reads_lies_where_origin_says(reference):
  experience = Experience(
    rollout=ROLLOUT,
    old_logprobs=3 * ROLLOUT.logprobs,
    reference_logprobs=2 * ROLLOUT.logprobs if reference else None,
    advantages=np.arange(P * G, dtype=np.float64).reshape(P, G),
    weights=np.where(ROLLOUT.sampled_mask, ROLLOUT.logprobs, 0.0),
  )
  packed, _ = pack_minibatch(
    ROLLOUT, [5, 1, 3], width=16, max_rows=8, microbatch_rows=2
  )
  arrays = token_arrays(experience, packed)
  filled = packed.origin >= 0
  p, g, t = np.unravel_index(packed.origin[filled], (P, G, T))
  said = ROLLOUT.logprobs[p, g, t]
  expected = dict(
    advantages=p * G + g,
    completion=p * G + g,
    sampler_logprobs=said,
    old_logprobs=3 * said,
    weights=said,
  )
  if reference:
    expected["reference_logprobs"] = 2 * said
  else:
    assert arrays["reference_logprobs"] is None
  for name, values in expected.items():
    assert arrays[name].shape == packed.tokens.shape
    np.testing.assert_allclose(arrays[name][filled], values, rtol=1e-6)
  assert not arrays["weights"][~filled].any()


def test_values_come_back_to_their_places():
  packed, _ = pack_minibatch(
    ROLLOUT, [5, 1, 3], width=16, max_rows=8, microbatch_rows=2
  )
  out = np.full((P, G, T), -1.0)
  place(packed.origin.astype(float), packed, out)
  mask = np.zeros((P, G, T), bool)
  mask[[5, 1, 3]] = ROLLOUT.sampled_mask[[5, 1, 3]]
  np.testing.assert_array_equal(out[mask], np.flatnonzero(mask))
  np.testing.assert_array_equal(out[~mask], -1)


def test_how_full_and_how_uneven_rows_are():
  packed, count = pack_minibatch(
    ROLLOUT, range(P), width=16, max_rows=16, microbatch_rows=1
  )
  share, unevenness = spread(packed, count)
  used = (packed.positions[:, :count] >= 0).sum(-1)
  assert share == pytest.approx(used.mean() / 16)
  assert unevenness == pytest.approx(used.max() / used.mean()) and share > 0.6
