"""The benchmark of the kernels: what it measures, and its deadlines."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import kernels


@pytest.mark.slow
def test_every_implementation_is_within_the_error_of_its_dtype():
  rows = [*kernels.numbers()]
  named = {(row["op"], row["impl"], row["dtype"]) for row in rows}
  assert len(named) == len(rows) == 8
  assert all(row["ok"] for row in rows), rows


def test_a_wrong_result_is_told(monkeypatch):
  wrong = lambda x, w, sizes, impl: 1.1 * jax.lax.ragged_dot(x, w, sizes)
  monkeypatch.setattr(kernels.grouped, "grouped_matmul", wrong)
  monkeypatch.setattr(kernels, "attention_error", lambda *_: (0.0,))
  monkeypatch.setattr(kernels, "implementations", lambda: ["xla"])
  rows = [row for row in kernels.numbers() if row["op"] == "grouped"]
  assert [row["ok"] for row in rows] == [False, False]


def test_an_implementation_that_fails_costs_its_own_row(monkeypatch):
  def fail(x):
    raise NotImplementedError("no such\nshape")

  sides = {"good": lambda x: x * 2, "bad": fail}
  monkeypatch.setattr(
    kernels, "measure", lambda fn, arrays: (fn(*arrays), 2)[1]
  )
  rows = [*kernels.timed("twice", "3", sides, [jnp.ones(3)], {"forward": 4e12})]
  assert rows[0]["impl"] == "good" and rows[0]["tflops_per_s"] == 2.0
  assert rows[1]["failed"] == "no such shape"


def test_what_a_family_has_measured_by_its_deadline_is_kept():
  """Its process is ended while it imports JAX, or compiles."""
  result = kernels.collect("attention", 0.5)
  assert result["ended_early"] == "not finished after 0 s"
  assert result["rows"] == [] and result["seconds"] < 60


@pytest.mark.soak
def test_all_families_run_at_toy_size():
  result = kernels.kernels(deadline=10.0)
  assert result.keys() == kernels.FAMILIES.keys()
  for name, family in result.items():
    assert not family["ended_early"], name
    assert len(family["rows"]) > 1, name
    assert not any("failed" in row for row in family["rows"]), name


def test_an_unknown_family_is_refused():
  with pytest.raises(ValueError, match="'atention' is none of numbers"):
    kernels.kernels(family="atention")
