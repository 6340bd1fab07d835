"""Groups move whole, and every token's share is fixed before the update."""

import numpy as np
import pytest

from r1jax.data.packing import lay_out_rollout
from r1jax.losses.kl import KLS
from r1jax.parallel.mesh import make_mesh
from r1jax.training.batch import (
  add_advantages,
  completion_kl,
  deal_prompts,
  groups_with_signal,
  make_batch,
  pack_prompts,
  trained_completions,
)
from r1jax.types import FINISH_LENGTH, FINISH_STOP, Rollout, within_lengths

P, G, T = 6, 3, 5
RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, T + 1, (P, G)).astype(np.int32)
ROLLOUT = Rollout(
  prompts=RNG.integers(0, 9, (P, 4)).astype(np.int32),
  prompt_lengths=np.full(P, 4, np.int32),
  completions=RNG.integers(0, 9, (P, G, T)).astype(np.int32),
  lengths=LENGTHS,
  finish=np.ones((P, G), np.int32),
  sampled_mask=within_lengths(LENGTHS, T),
  logprobs=RNG.normal(size=(P, G, T)).astype(np.float32),
)


def test_minibatches_are_disjoint_equal_and_all():
  parts = deal_prompts(3, np.ones(P, bool), seed=1, round=2)
  assert [len(part) for part in parts] == [2, 2, 2]
  assert sorted(np.concatenate(parts)) == [*range(P)]


def test_minibatches_are_functions_of_seed_and_round():
  draw = lambda seed, round: np.concatenate(
    deal_prompts(2, np.ones(100, bool), seed=seed, round=round)
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
      parts = deal_prompts(count, teach, seed=0, round=teaching)
      assert sorted(np.concatenate(parts)) == [*range(16)]
      assert {len(part) for part in parts} == {16 // count}
      dealt = [teach[part].sum() for part in parts]
      assert max(dealt) - min(dealt) <= 1


def test_a_group_teaches_by_what_counts_and_moves():
  advantages = np.array([[0.0, 0, 0], [1, -1, 0], [1, -1, 0], [1, 0, 0]])
  counted = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]], bool)
  assert groups_with_signal(advantages, counted).tolist() == [
    False,
    True,
    False,
    False,
  ]


def test_what_is_not_graded_is_not_learned_from():
  total = np.ones((P, G))
  total[4, 1] = np.nan
  counted = trained_completions(ROLLOUT, total, mask_truncated=False)
  assert not counted[4, 1] and counted.sum() == P * G - 1
  cut = ROLLOUT.replace(finish=np.full((P, G), FINISH_STOP))
  cut.finish[2, 0] = FINISH_LENGTH
  assert trained_completions(cut, total, mask_truncated=False)[2, 0]
  assert not trained_completions(cut, total, mask_truncated=True)[2, 0]


def test_a_minibatch_holds_all_completions_of_its_prompts():
  mesh = make_mesh(data=2)
  placements = pack_prompts(ROLLOUT, [5, 1], mesh, widths=(16, 8), shard_rows=1)
  assert {(x.rows, x.width) for x in placements} <= {(2, 16), (2, 8)}
  packed = [lay_out_rollout(ROLLOUT, x) for x in placements]
  origins = np.concatenate([x.origin[x.origin >= 0] for x in packed])
  mask = np.zeros((P, G, T), bool)
  mask[[5, 1]] = ROLLOUT.sampled_mask[[5, 1]]
  assert sorted(origins) == np.flatnonzero(mask).tolist()


def packed_batch(rollout=ROLLOUT, prompts=(5, 1, 3)):
  """The rows of a microbatch, and the same on a device."""
  (placement,) = pack_prompts(
    rollout, prompts, make_mesh(data=1), widths=(24,), shard_rows=4
  )
  packed = lay_out_rollout(rollout, placement)
  return packed, make_batch(rollout, placement, make_mesh(data=1))


def test_what_the_loss_reads_lies_where_origin_says():
  packed, batch = packed_batch()
  weights = np.arange(P * G) / 7.0
  batch = add_advantages(batch, np.arange(P * G) - 9.0, weights, 3)
  filled = packed.origin >= 0
  p, g, t = np.unravel_index(packed.origin[filled], (P, G, T))
  expected = dict(
    advantages=p * G + g - 9.0,
    completions=p * G + g,
    sampler_logprobs=ROLLOUT.logprobs[p, g, t],
    old_logprobs=ROLLOUT.logprobs[p, g, t],
    weights=weights[p * G + g],
  )
  for name, values in expected.items():
    array = np.asarray(batch[name])
    assert array.shape == packed.tokens.shape
    np.testing.assert_allclose(array[filled], values, rtol=1e-6)
  assert not np.any(np.asarray(batch.weights)[~filled])
  assert batch.num_targets == 3 and batch.reference_logprobs is None


def test_tokens_that_the_policy_did_not_choose_have_no_weight():
  mask = ROLLOUT.sampled_mask.copy()
  mask[1, :, 0] = False  # A tool wrote it.
  rollout = ROLLOUT.replace(sampled_mask=mask)
  packed, batch = packed_batch(rollout, [1])
  batch = add_advantages(batch, np.ones(P * G), np.ones(P * G), 1)
  weights = np.asarray(batch.weights)
  assert weights.sum() == mask[1].sum() < (packed.origin >= 0).sum()
  first = np.isin(
    packed.origin, np.ravel_multi_index((1, range(G), 0), (P, G, T))
  )
  assert first.sum() == G and not weights[first].any()


@pytest.mark.parametrize("name", sorted(KLS))
def test_completions_of_a_batch_pay_for_their_distance(name):
  packed, batch = packed_batch()
  apart = np.float32(0.25)
  batch = batch.replace(reference_logprobs=batch.old_logprobs - apart)
  got = completion_kl(batch, P * G, name=name, coefficient=2.0)
  one = {
    "k1": apart,
    "k2": apart**2 / 2,
    "k3": np.exp(-apart) + apart - 1,
  }[name.removesuffix("_importance")]
  expected = np.zeros((P, G))
  expected[[5, 1, 3]] = 2.0 * one * LENGTHS[[5, 1, 3]]
  np.testing.assert_allclose(got, expected.reshape(-1), rtol=1e-5)
