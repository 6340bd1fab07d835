"""One token: drawn with its probability, by a key that is its own."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.ops import mask_padding
from r1jax.rollouts.sampling import (
  Needs,
  Settings,
  completion_keys,
  inverse_cdf,
  most_probable,
  nucleus,
  sample,
  token_keys,
)

RNG = np.random.default_rng(0)
BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
draw_inverse = jax.jit(inverse_cdf)


def distributions(rows, size, zeros=0.5):
  """Random probabilities, many of them exactly 0, never all."""
  weights = RNG.exponential(size=(rows, size)) ** 2
  weights *= RNG.uniform(size=(rows, size)) > zeros
  weights[np.arange(rows), RNG.integers(0, size, rows)] += 0.1
  return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 33, 191])
def test_inverse_cdf_is_a_search_in_the_cumulative_sum(size):
  probabilities = distributions(500, size)
  uniform = RNG.uniform(size=500).astype(np.float32)
  got = draw_inverse(jnp.asarray(probabilities), jnp.asarray(uniform))
  exact = np.cumsum(np.float64(probabilities), axis=1)
  level = np.float64(uniform) * exact[:, -1]
  compared = 0
  for row in range(500):
    assert probabilities[row, got[row]] > 0
    if np.abs(exact[row] - level[row]).min() > 1e-6:
      expected = np.searchsorted(exact[row], level[row], side="right")
      assert got[row] == expected
      compared += 1
  assert compared > 450


def test_the_ends_of_the_unit_interval_are_tokens_that_can_be_drawn():
  probabilities = distributions(300, 100, zeros=0.9)
  for uniform, pick in ((0, 0), (1e-45, 0), (BELOW_ONE, -1), (1, -1)):
    got = draw_inverse(
      jnp.asarray(probabilities), jnp.full(300, uniform, jnp.float32)
    )
    expected = [np.flatnonzero(row)[pick] for row in probabilities]
    np.testing.assert_array_equal(got, expected)


def test_tiny_probabilities_do_not_push_past_the_end():
  """Sums that rounding makes longer or shorter than their parts."""
  probabilities = np.full((64, 4096), 1e-9, np.float32)
  probabilities[:, 0] = 1.0
  probabilities[:, 2000:] = 0.0
  uniform = np.linspace(0.9999, BELOW_ONE, 64).astype(np.float32)
  got = draw_inverse(jnp.asarray(probabilities), jnp.asarray(uniform))
  assert np.all(np.asarray(got) < 2000)


def draw(logits, count, temperature, top_p=1.0, top_k=0):
  """`count` tokens from one row of logits, and their log-probabilities."""
  keys = token_keys(
    completion_keys(0, 0, jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)),
    jnp.zeros(1, jnp.int32),
  )
  keys = jax.random.split(keys[0], count)
  rows = jnp.tile(jnp.asarray(logits, jnp.float32)[None], (count, 1))
  settings = Settings(
    np.full(count, temperature, np.float32),
    np.full(count, top_p, np.float32),
    np.full(count, top_k, np.int32),
  )
  choice = jax.jit(sample, static_argnums=3)(
    rows, keys, settings, Needs.of(settings)
  )
  return choice.tokens, choice.logprobs


LOGITS = np.array([2.0, 0.0, -1.0, 1.5, -30.0, 0.5, 1.0])


def softmax(logits):
  weights = np.exp(logits - logits.max())
  return weights / weights.sum()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tokens_come_as_often_as_their_probability(temperature):
  count = 20_000
  tokens, logprobs = draw(LOGITS, count, temperature=temperature)
  expected = softmax(LOGITS / temperature) * count
  observed = np.bincount(tokens, minlength=7)
  assert observed[4] == 0  # One in 10^13.
  seen = [0, 1, 2, 3, 5, 6]
  chi_square = np.sum((observed - expected)[seen] ** 2 / expected[seen])
  assert chi_square < 20.5  # One in a thousand, of 5 degrees of freedom.
  np.testing.assert_allclose(
    logprobs, np.log(softmax(LOGITS / temperature))[tokens], atol=1e-5
  )


def test_below_top_p_nothing_is_drawn_but_logprobs_stay_whole():
  tokens, logprobs = draw(LOGITS, 5000, temperature=1.0, top_p=0.7)
  kept = {0, 3, 6}  # 0.44 + 0.27 reach 0.7 only with 0.16 more.
  assert softmax(LOGITS)[[0, 3]].sum() < 0.7 < softmax(LOGITS)[[0, 3, 6]].sum()
  assert {*np.unique(tokens).tolist()} == kept
  np.testing.assert_allclose(
    logprobs, np.log(softmax(LOGITS))[tokens], atol=1e-5
  )
  share = np.mean(np.asarray(tokens) == 0)
  expected = softmax(LOGITS)[0] / softmax(LOGITS)[[0, 3, 6]].sum()
  assert abs(share - expected) < 0.03


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.95, 0.999])
def test_the_nucleus_is_that_of_a_sort(top_p):
  probabilities = distributions(100, 60, zeros=0.2)
  got = jax.jit(nucleus, static_argnums=1)(jnp.asarray(probabilities), top_p)
  for row, kept in zip(probabilities, np.asarray(got)):
    order = np.argsort(-row)
    before = np.cumsum(np.float64(row[order])) - row[order]
    if np.abs(before - top_p).min() < 1e-6:
      continue  # Rounding decides.
    expected = np.zeros_like(row)
    chosen = order[before < top_p]
    expected[chosen] = row[chosen]
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("top_k", [1, 2, 7, 59, 60, 1000])
def test_the_most_probable_are_those_of_a_sort(top_k):
  probabilities = distributions(100, 60, zeros=0.2)
  # As small as they come, and all of them count.
  probabilities[0] = np.float32(1e-44) * RNG.permutation(60)
  got = jax.jit(most_probable, static_argnums=1)(
    jnp.asarray(probabilities), top_k
  )
  for row, kept in zip(probabilities, np.asarray(got)):
    last = np.sort(row)[::-1][min(top_k, 60) - 1]
    np.testing.assert_array_equal(kept, np.where(row >= last, row, 0))


def test_equally_probable_tokens_stay_together():
  even = jnp.full((1, 8), 0.125)
  np.testing.assert_array_equal(nucleus(even, 0.3), 0.125)
  np.testing.assert_array_equal(most_probable(even, 3), 0.125)


def test_top_p_is_a_share_of_what_top_k_leaves():
  """0.44, 0.27 and 0.16 are left: 0.8 of them are the first two."""
  p = softmax(LOGITS)[[0, 3, 6]]
  assert p[:2].sum() < 0.8 < p[:2].sum() / p.sum()
  tokens, logprobs = draw(LOGITS, 2000, temperature=1.0, top_k=3, top_p=0.8)
  assert {*np.unique(tokens).tolist()} == {0, 3}
  tokens, logprobs = draw(LOGITS, 2000, temperature=1.0, top_k=3)
  assert {*np.unique(tokens).tolist()} == {0, 3, 6}
  np.testing.assert_allclose(
    logprobs, np.log(softmax(LOGITS))[tokens], atol=1e-5
  )


def test_without_temperature_the_most_probable_token_is_taken():
  tokens, logprobs = draw(LOGITS, 50, temperature=0.0)
  np.testing.assert_array_equal(tokens, 0)
  np.testing.assert_allclose(
    logprobs, np.log(softmax(LOGITS))[tokens], atol=1e-5
  )


def test_padding_of_the_vocabulary_is_never_drawn():
  logits = np.zeros(40)
  logits[37:] = 50.0
  masked = mask_padding(jnp.asarray(logits, jnp.float32), 37)
  tokens, logprobs = draw(masked, 2000, temperature=1.0)
  assert np.max(tokens) < 37
  np.testing.assert_allclose(logprobs, -np.log(37), rtol=1e-5)


def test_every_completion_and_every_token_has_a_key_of_its_own():
  bits = set()
  for seed, round in ((0, 0), (0, 1), (1, 0), (1, 1)):
    prompts, members = jnp.repeat(jnp.arange(4), 3), jnp.tile(jnp.arange(3), 4)
    keys = completion_keys(seed, round, prompts, members)
    for position in range(3):
      of_tokens = token_keys(keys, jnp.full(12, position))
      bits |= {tuple(k) for k in jax.random.key_data(of_tokens).tolist()}
  assert len(bits) == 4 * 12 * 3


def test_an_evaluation_shares_no_key_with_any_round():
  prompts, members = jnp.repeat(jnp.arange(4), 3), jnp.tile(jnp.arange(3), 4)
  bits = collections.Counter()
  for round in (*range(21), 2**31 - 1):
    for evaluation in (False, True):
      keys = completion_keys(7, round, prompts, members, evaluation=evaluation)
      bits.update(tuple(key) for key in jax.random.key_data(keys).tolist())
  assert len(bits) == 22 * 2 * 12


def test_a_key_does_not_depend_on_who_else_is_there():
  prompts, members = jnp.arange(5), jnp.arange(5) % 2
  together = jax.random.key_data(completion_keys(7, 3, prompts, members))
  alone = completion_keys(7, 3, prompts[4:], members[4:])
  np.testing.assert_array_equal(together[4:], jax.random.key_data(alone))
