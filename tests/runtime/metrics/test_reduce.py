"""The whole's number comes from its parts, however they are cut."""

import math
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.runtime import metrics
from r1jax.runtime.metrics.reduce import Max, Mean, Min, Sum

VALUES = st.lists(
  st.one_of(st.just(math.nan), st.floats(-1e6, 1e6)), min_size=1, max_size=20
)


def test_the_mean_of_unequal_parts_is_no_mean_of_means():
  # One host has a completion of 1 token with loss 2, another 3 of loss 1.
  parts = [{"x": metrics.mean([2.0])}, {"x": metrics.mean([1.0, 1.0, 1.0])}]
  assert metrics.combine(parts) == {"x": 1.25}


@given(VALUES, st.lists(st.integers(0, 20), max_size=4))
@settings(deadline=None)
def test_any_cut_gives_the_same(values, cuts):
  values = np.array(values)
  known = values[~np.isnan(values)]
  pieces = np.split(values, sorted(cut % len(values) for cut in cuts))
  combined = metrics.combine(
    {"mean": metrics.mean(piece), "std": metrics.deviation(piece)}
    for piece in pieces
  )
  if not known.size:
    assert np.isnan([*combined.values()]).all()
    return
  np.testing.assert_allclose(combined["mean"], known.mean(), 1e-9, 1e-6)
  np.testing.assert_allclose(combined["std"], known.std(), 1e-9, 1e-6)


def test_a_deviation_does_not_cancel():
  values = 1e9 + np.array([0.0, 1.0, 2.0, 3.0])
  parts = [{"x": metrics.deviation(v)} for v in np.split(values, 2)]
  assert metrics.combine(parts)["x"] == pytest.approx(np.sqrt(1.25), rel=1e-6)


def test_sums_and_extremes():
  parts = [
    {"sum": Sum(2), "max": Max(1.0), "min": Min(1.0), "own": Sum(1)},
    {"sum": Sum(3), "max": Max(-4.0), "min": Min(-4.0), "nan": Max(math.nan)},
    {"nan": Max(1.0)},
  ]
  combined = metrics.combine(parts)
  assert math.isnan(combined.pop("nan"))
  assert combined == {"sum": 5, "max": 1, "min": -4, "own": 1}


def test_weights_count_tokens():
  part = metrics.mean([2.0, 1.0, math.nan], [1, 3, 9])
  assert part == Mean(5.0, 4.0)
  assert math.isnan(metrics.combine([{"x": metrics.mean([math.nan])}])["x"])


def test_a_name_is_of_one_kind():
  with pytest.raises(ValueError, match=r"'x' has several types.*Max.*Sum"):
    metrics.combine([{"x": Sum(1)}, {"x": Max(1)}])


def test_each_domain_has_its_own_numbers():
  numbers = metrics.combine(
    [
      metrics.by_domain(
        ["math/gsm8k", "code", "math/gsm8k"],
        reward=np.array([1.0, 0.5, np.nan]),
        length=np.array([4, 5, 6]),
      ),
      metrics.by_domain(["code"], reward=np.array([0.0])),
    ]
  )
  assert numbers == {
    "domain/code/completions": 2,
    "domain/code/reward": 0.25,
    "domain/code/length": 5,
    "domain/math/gsm8k/completions": 2,
    "domain/math/gsm8k/reward": 1,
    "domain/math/gsm8k/length": 5,
  }


HOST = """
  import sys, jax
  jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
  from r1jax.runtime import metrics
  from r1jax.runtime.metrics.reduce import Sum
  own = int(sys.argv[2])
  part = {"x": metrics.mean([2.0] if own else [1.0] * 3), "n": Sum(2.0**40 + 1)}
  part |= {"domain/only/here": Sum(7)} if own else {}
  print(sorted(metrics.over_hosts(part).items()))
"""


@pytest.mark.cluster
def test_hosts_agree_on_what_none_of_them_knows():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{probe.getsockname()[1]}"
  hosts = [
    subprocess.Popen(
      [sys.executable, "-c", textwrap.dedent(HOST), address, str(host)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for host in range(2)
  ]
  try:
    outputs = [host.communicate(timeout=120) for host in hosts]
  finally:
    for host in hosts:
      host.kill()
  wanted = [("domain/only/here", 7.0), ("n", 2.0**41 + 2), ("x", 1.25)]
  for out, error in outputs:
    assert out.splitlines()[-1:] == [str(wanted)], error
