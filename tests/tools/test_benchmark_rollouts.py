"""The benchmark of the engine forces what it says, and counts all of it."""

import numpy as np
import pytest

from benchmarks import rollouts, timing


def test_lengths_are_log_uniform():
  lengths = rollouts.log_uniform(np.random.default_rng(0), 13, 128, (20_000,))
  assert lengths.min() == 13 and lengths.max() == 128
  for low, high in ((13, 25), (26, 51), (52, 103)):  # Each a factor of two.
    share = np.mean((low <= lengths) & (lengths <= high))
    assert share == pytest.approx(
      np.log((high + 1) / low) / np.log(129 / 13), abs=0.01
    )


@pytest.mark.parametrize(
  "lengths, slots, expected",
  [([5, 1, 1, 1, 1], 2, 5), ([1, 1, 1, 1, 5], 2, 7), ([3, 4, 5], 8, 5)],
)
def test_ideal_slots_never_wait(lengths, slots, expected):
  assert rollouts.ideal_steps(np.array(lengths), slots) == expected


@pytest.mark.parametrize("bad", [dict(requests=100), dict(group_size=3)])
def test_batches_that_are_not_whole_are_refused(bad):
  with pytest.raises(ValueError, match="multiple"):
    rollouts.rollouts(**bad)


@pytest.mark.slow
def test_both_sides_write_the_same_tokens(monkeypatch):
  monkeypatch.setattr(timing, "REPEATS", 1)
  monkeypatch.setattr(timing, "machine", dict)
  sizes = dict(requests=16, slots=4, group_size=2, prompt=4)
  report = rollouts.rollouts(**sizes, shortest=2, longest=9)
  for name, steps in report["steps"].items():
    share = report["tokens"] / (4 * steps)
    assert report["occupancy"][name] == pytest.approx(share, abs=1e-3)
  occupancy = report["occupancy"]
  assert occupancy["static"] <= occupancy["refilled"]
  assert occupancy["refilled"] <= report["ideal_occupancy"] <= 1
