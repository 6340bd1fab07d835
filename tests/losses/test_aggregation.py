"""Weights against the papers' sums, and known mistakes with denominators."""

import numpy as np
import pytest

from r1jax.losses.aggregation import AGGREGATIONS, token_weights

P, G, T = 3, 4, 6
RNG = np.random.default_rng(0)
LENGTHS = np.array([[6, 1, 3, 2], [4, 4, 6, 5], [2, 6, 1, 1]])
MASK = np.arange(T) < LENGTHS[..., None]
EVERY = np.ones((P, G), bool)
LOSSES = RNG.normal(size=(P, G, T))
SETTINGS = [
  dict(name="completion_mean"),
  dict(name="token_mean"),
  dict(name="constant", divisor=8),
]
each = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s["name"])


def reference_loss(losses, mask, counted, *, name, divisor=0):
  """The loss of an update, completion by completion."""
  sums, lengths = [], []
  for p, g in np.ndindex(*counted.shape):
    tokens = [
      float(losses[p, g, t]) for t in range(mask.shape[-1]) if mask[p, g, t]
    ]
    if counted[p, g] and tokens:
      sums.append(sum(tokens))
      lengths.append(len(tokens))
  if name == "completion_mean":
    means = [total / length for total, length in zip(sums, lengths)]
    return sum(means) / len(means)
  if name == "token_mean":
    return sum(sums) / sum(lengths)
  return sum(sums) / (len(sums) * divisor)


def weight_per_token(mask, trained, **settings):
  """The weight of every token [P, G, T]."""
  return token_weights(mask.sum(-1), trained, **settings)[..., None] * mask


def test_every_entry_of_the_table_is_tested():
  assert {settings["name"] for settings in SETTINGS} == set(AGGREGATIONS)


@each
def test_weighted_sums_equal_the_papers_losses(settings):
  counted = EVERY.copy()
  for drop in ((), (1, 2), (0, slice(None))):
    if drop:
      counted[drop] = False
    weights = weight_per_token(MASK, counted, **settings)
    assert weights.dtype == np.float64
    expected = reference_loss(LOSSES, MASK, counted, **settings)
    assert np.sum(weights * LOSSES) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_array_equal(weights[~MASK], 0.0)
    np.testing.assert_array_equal(weights[~counted], 0.0)


# Two completions with token losses [2] and [1, 1, 1]: golden numbers.
GOLDEN = [
  (dict(name="completion_mean"), 1.5),
  (dict(name="token_mean"), 1.25),
  (dict(name="constant", divisor=1), 2.5),
  (dict(name="constant", divisor=4), 0.625),
]


@pytest.mark.parametrize("settings, expected", GOLDEN)
def test_losses_of_a_short_and_a_long_completion(settings, expected):
  mask = np.array([[[1, 0, 0], [1, 1, 1]]], bool)
  losses = np.array([[[2.0, 0, 0], [1, 1, 1]]])
  weights = weight_per_token(mask, np.ones((1, 2), bool), **settings)
  assert np.sum(weights * losses) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("settings, expected", GOLDEN)
def test_parts_of_an_update_do_not_have_denominators_of_their_own(
  settings, expected
):
  """A mean of the token means of two microbatches would be 1.5, not 1.25."""
  mask = np.array([[[1, 0, 0], [1, 1, 1]]], bool)
  losses = np.array([[[2.0, 0, 0], [1, 1, 1]]])
  weights = weight_per_token(mask, np.ones((1, 2), bool), **settings)
  parts = [np.sum(weights[:, g] * losses[:, g]) for g in range(2)]
  assert sum(parts) == pytest.approx(expected, rel=1e-12)


@each
def test_the_padded_length_is_in_no_denominator(settings):
  weights = weight_per_token(MASK, EVERY, **settings)
  padded = np.pad(MASK, ((0, 0), (0, 0), (0, 100)))
  longer = weight_per_token(padded, EVERY, **settings)
  np.testing.assert_array_equal(longer[..., :T], weights)
  np.testing.assert_array_equal(longer[..., T:], 0.0)


@each
def test_completions_that_are_not_trained_on_have_no_effect(settings):
  """Neither on the numerator nor on the denominator."""
  counted = EVERY.copy()
  counted[:, 3] = False
  weights = weight_per_token(MASK, counted, **settings)
  without = weight_per_token(MASK[:, :3], EVERY[:, :3], **settings)
  np.testing.assert_array_equal(weights[:, :3], without)


@each
def test_no_trained_completion_causes_no_division_by_zero(settings):
  for mask, counted in ((MASK, ~EVERY), (np.zeros_like(MASK), EVERY)):
    weights = weight_per_token(mask, counted, **settings)
    np.testing.assert_array_equal(weights, 0.0)


@each
def test_tokens_that_were_not_sampled_are_in_no_denominator(settings):
  """Such as the output of a tool within a completion."""
  mask = MASK.copy()
  mask[0, 0, 2:4] = False
  weights = weight_per_token(mask, EVERY, **settings)
  expected = reference_loss(LOSSES, mask, EVERY, **settings)
  assert np.sum(weights * LOSSES) == pytest.approx(expected, rel=1e-12)
  np.testing.assert_array_equal(weights[0, 0, 2:4], 0.0)


def test_all_trained_completions_have_the_same_weight():
  counted = EVERY.copy()
  counted[1, 2] = False
  weights = weight_per_token(MASK, counted, name="completion_mean")
  np.testing.assert_allclose(weights.sum(-1), counted / 11)
  for p, g in np.ndindex(P, G):
    tokens = weights[p, g, : LENGTHS[p, g]]
    np.testing.assert_array_equal(tokens, tokens[0])


def test_settings_that_do_not_exist_are_refused():
  for settings, words in (
    (dict(name="token_maen"), "unknown aggregation 'token_maen'.*'token_mean'"),
    (dict(name="token_mean", divisor=3), "'token_mean': 'divisor'"),
    (dict(name="constant"), "'constant' needs the key 'divisor'"),
    (dict(name="constant", divisor=0), "divisor is 0"),
  ):
    with pytest.raises(ValueError, match=words):
      weight_per_token(MASK, EVERY, **settings)
