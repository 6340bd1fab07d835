"""Groups move whole, and every token's share is fixed before the update."""

import numpy as np
import pytest

from r1jax.training.experience import (
  minibatch_weights,
  minibatches,
  pack_minibatch,
  token_arrays,
)
from r1jax.types import Experience, Rollout

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
  parts = minibatches(3, P, seed=1, round=2)
  assert [len(part) for part in parts] == [2, 2, 2]
  assert sorted(np.concatenate(parts)) == [*range(P)]


def test_minibatches_are_functions_of_seed_and_round():
  draw = lambda seed, round: np.concatenate(
    minibatches(2, 100, seed=seed, round=round)
  ).tolist()
  assert draw(1, 2) == draw(1, 2)
  assert len({tuple(draw(s, r)) for s in range(3) for r in range(3)}) == 9


def test_weights_of_a_minibatch_sum_to_one_over_its_own_tokens():
  graded = np.ones((P, G), bool)
  graded[4, 1] = graded[0, 0] = False
  weights = minibatch_weights(ROLLOUT, graded, [4, 2])
  assert weights.dtype == np.float32
  assert weights.sum() == pytest.approx(1.0)
  assert not weights[[0, 1, 3, 5]].any()
  assert not weights[4, 1].any()
  assert not weights[~ROLLOUT.sampled_mask].any()
  np.testing.assert_allclose(weights[2].sum(-1), 1 / 5, rtol=1e-6)


def test_a_minibatch_without_a_grade_has_no_weights():
  graded = np.zeros((P, G), bool)
  assert not minibatch_weights(ROLLOUT, graded, [4, 2]).any()


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


@pytest.mark.parametrize("reference", [True, False])
def test_what_the_loss_gathers_lies_where_origin_says(reference):
  experience = Experience(
    rollout=ROLLOUT,
    old_logprobs=ROLLOUT.logprobs,
    reference_logprobs=2 * ROLLOUT.logprobs if reference else None,
    advantages=np.arange(P * G, dtype=np.float64).reshape(P, G),
    weights=np.float32(ROLLOUT.sampled_mask),
  )
  arrays = token_arrays(experience)
  p, g, t = 3, 1, 2
  at = np.ravel_multi_index((p, g, t), (P, G, T))
  assert arrays["advantages"][at] == p * G + g
  assert arrays["old_logprobs"][at] == ROLLOUT.logprobs[p, g, t]
  assert arrays["weights"][at] == ROLLOUT.sampled_mask[p, g, t]
  if reference:
    assert arrays["reference_logprobs"][at] == 2 * ROLLOUT.logprobs[p, g, t]
  else:
    assert arrays["reference_logprobs"] is None
