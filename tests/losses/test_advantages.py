"""Advantages against the papers' equations, and mistakes of other code."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.losses.advantages import ADVANTAGES, advantages, zero_signal

RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=(5, 6))
REWARDS[1, 2] = REWARDS[1, 4] = REWARDS[3, 0] = np.nan
REWARDS[2] = 0.3
EVERY = [
  dict(name="group_std"),
  dict(name="group_std", ddof=1),
  dict(name="group_mean"),
  dict(name="leave_one_out"),
]
every = pytest.mark.parametrize(
  "settings", EVERY, ids=lambda s: "-".join(map(str, s.values()))
)


def mean(values):
  return sum(values) / len(values)


def reference_advantages(rewards, *, name, ddof=0):
  """The papers' equations, one completion at a time."""
  out = [[0.0] * len(row) for row in rewards]
  graded = [[r for r in row if not math.isnan(r)] for row in rewards]
  for p, row in enumerate(rewards):
    group = graded[p]
    for g, r in enumerate(row):
      if math.isnan(r) or len(group) < 2 or max(group) == min(group):
        continue
      if name == "group_mean":
        out[p][g] = r - mean(group)
      elif name == "group_std":
        squares = sum((other - mean(group)) ** 2 for other in group)
        deviation = math.sqrt(squares / (len(group) - ddof))
        out[p][g] = (r - mean(group)) / deviation
      elif name == "leave_one_out":
        out[p][g] = r - (sum(group) - r) / (len(group) - 1)
  return np.array(out)


def test_every_entry_of_the_table_is_tested():
  assert {settings["name"] for settings in EVERY} == set(ADVANTAGES)


@every
def test_advantages_equal_the_papers_equations(settings):
  expected = reference_advantages(REWARDS, **settings)
  np.testing.assert_allclose(
    advantages(REWARDS, **settings), expected, rtol=1e-12, atol=1e-14
  )
  assert np.abs(expected).max() > 0.5


# One right in four: golden numbers.
FOUR = [
  (dict(name="group_std"), 1.73205, -0.57735),
  (dict(name="group_std", ddof=1), 1.5, -0.5),
  (dict(name="group_mean"), 0.75, -0.25),
  (dict(name="leave_one_out"), 1.0, -0.33333),
]


@pytest.mark.parametrize("settings, right, wrong", FOUR)
def test_advantages_of_one_right_in_four(settings, right, wrong):
  got = advantages(np.array([[1.0, 0, 0, 0]]), **settings)
  np.testing.assert_allclose(got, [[right, *[wrong] * 3]], atol=1e-5)


@pytest.mark.parametrize(
  "ddof, right, wrong", [(0, 3.87298, -0.25820), (1, 3.75, -0.25)]
)
def test_advantages_of_one_right_in_sixteen(ddof, right, wrong):
  rewards = np.zeros((1, 16))
  rewards[0, 5] = 1
  got = advantages(rewards, name="group_std", ddof=ddof)
  assert got[0, 5] == pytest.approx(right, abs=1e-5)
  np.testing.assert_allclose(np.delete(got[0], 5), wrong, atol=1e-5)


@pytest.mark.parametrize("epsilon, theirs", [(1e-4, 1.49970), (1e-6, 1.499997)])
def test_ddof_1_differs_from_trl_and_verl_only_by_their_epsilon(
  epsilon, theirs
):
  got = advantages(np.array([[1.0, 0, 0, 0]]), name="group_std", ddof=1)
  deviation = 0.5
  assert got[0, 0] * deviation / (deviation + epsilon) == pytest.approx(
    theirs, abs=1e-6
  )


@every
def test_equal_rewards_have_zero_advantages(settings):
  for size in range(2, 65):
    for constant in (0.1, 0.3, 0.35, 0.7, 0.9, 1.1):
      got = advantages(np.full((2, size), constant), **settings)
      assert np.all(got == 0.0), (size, constant)  # Exactly.


@every
def test_a_group_of_equal_rewards_is_exactly_zero_beside_other_groups(settings):
  rewards = np.array([[0.35] * 16, [1.0] + [0.0] * 15])
  got = advantages(rewards, **settings)
  assert np.all(got[0] == 0.0)
  assert np.all(got[1] != 0.0)


def test_zero_signal_is_decided_by_max_and_min():
  rewards = np.array(
    [
      [0.35, 0.35, 0.35],
      [0.35, 0.35, 0.35 + 1e-15],
      [np.nan, 1.0, 1.0],
      [np.nan, np.nan, 1.0],
      [np.nan, np.nan, np.nan],
      [0.0, np.nan, 1.0],
    ]
  )
  np.testing.assert_array_equal(
    zero_signal(rewards), [True, False, True, True, True, False]
  )


def test_the_deviation_is_not_a_difference_of_large_numbers():
  """E[x^2] - E[x]^2 would lose all digits here; the sum of squares does not."""
  rewards = 1e6 + np.array([[0.0, *[1e-3] * 7]])
  got = advantages(rewards, name="group_std")
  expected = advantages(np.array([[0.0, *[1.0] * 7]]), name="group_std")
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  got = advantages(np.array([[0.0, *[0.95] * 7]]), name="group_std", ddof=1)
  assert np.abs(got).max() <= 7 / np.sqrt(8)


def test_leave_one_out_is_never_divided_by_a_deviation():
  """In [1, 0, 0, 0] the others have a deviation of 0."""
  got = advantages(np.array([[1.0, 0, 0, 0]]), name="leave_one_out")
  assert np.abs(got).max() == 1.0
  with pytest.raises(ValueError, match="'leave_one_out': 'ddof'"):
    advantages(REWARDS, name="leave_one_out", ddof=0)


@every
@pytest.mark.parametrize("size", [0, 1])
def test_a_group_of_one_is_refused(settings, size):
  with pytest.raises(ValueError, match=f"group_size is {size}.*at least 2"):
    advantages(np.zeros((3, size)), **settings)


@every
def test_ungraded_completions_are_left_out_of_the_statistics(settings):
  got = advantages(np.array([[1.0, np.nan, 0.0], [np.nan] * 3]), **settings)
  assert got[0, 1] == 0.0 and np.all(got[1] == 0.0)
  expected = advantages(np.array([[1.0, 0.0]]), **settings)
  np.testing.assert_allclose(got[0, [0, 2]], expected[0], rtol=1e-12)
  # One grade alone, or equal ones beside a NaN, teach nothing.
  rewards = np.array([[1.0, np.nan, np.nan], [0.3, 0.3, np.nan]])
  assert np.all(advantages(rewards, **settings) == 0.0)


@every
def test_a_reward_of_zero_is_a_reward(settings):
  assert advantages(np.array([[0.0, 0.0, 1.0]]), **settings)[0, 0] < 0


@every
def test_the_order_of_groups_and_completions_does_not_matter(settings):
  groups, within = RNG.permutation(5), RNG.permutation(6)
  got = advantages(REWARDS[groups][:, within], **settings)
  expected = advantages(REWARDS, **settings)[groups][:, within]
  np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("settings", EVERY[:-1], ids=str)
def test_groups_do_not_affect_each_other(settings):
  """Even if another group has the same prompt and the same rewards."""
  twice = np.concatenate([REWARDS, REWARDS])
  got = advantages(twice, **settings)
  for p in range(10):
    alone = advantages(twice[p : p + 1], **settings)
    np.testing.assert_array_equal(got[p], alone[0])


groups = st.lists(st.floats(-6e4, 6e4, width=16), min_size=2, max_size=64)


@hypothesis.settings(deadline=None)
@given(groups, st.floats(-100, 100), st.sampled_from([0, 1]))
def test_advantages_are_bounded_sum_to_zero_and_ignore_a_shift(
  rewards, shift, ddof
):
  settings = dict(name="group_std", ddof=ddof)
  got = advantages(np.array([rewards]), **settings)
  size = len(rewards)
  bound = (size - 1) / np.sqrt(size) if ddof else np.sqrt(size - 1)
  assert np.abs(got).max() <= bound * (1 + 1e-6)
  assert abs(got.sum()) < 1e-6 * size
  if max(rewards) == min(rewards):
    assert np.all(got == 0.0)
  shifted = advantages(np.array([rewards]) + shift, **settings)
  np.testing.assert_allclose(shifted, got, atol=1e-3)


@hypothesis.settings(deadline=None)
@given(groups, st.integers(1, 5), st.sampled_from(EVERY))
def test_ungraded_completions_change_nothing_for_the_others(
  rewards, more, settings
):
  padded = np.array([[*rewards, *[np.nan] * more]])
  got = advantages(padded, **settings)
  expected = advantages(np.array([rewards]), **settings)
  rounding = 1e-9 * max(1.0, np.abs(expected).max())
  np.testing.assert_allclose(got[:, : len(rewards)], expected, atol=rounding)
  assert np.all(got[:, len(rewards) :] == 0.0)


@every
def test_nearly_equal_rewards_cause_no_division_by_zero(settings):
  got = advantages(np.array([[0.0, 1e-313], [0.0, 1e-200]]), **settings)
  assert np.all(np.isfinite(got))


def test_settings_that_do_not_exist_are_refused():
  for settings, words in (
    (dict(name="group_sdt"), "unknown advantage 'group_sdt'.*'group_std'"),
    (dict(name="group_std", dof=1), "'dof'; did you mean 'ddof'"),
    (dict(name="group_std", ddof=2), "ddof is 2"),
  ):
    with pytest.raises(ValueError, match=words):
      advantages(REWARDS, **settings)
