"""A mixture keeps its proportions, and every part its own order."""

import collections
import dataclasses
import io
import json
import math

import ml_collections
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax import config, data
from r1jax.data import mixture, pass_rates
from r1jax.data.mixture import Mixture, Part
from r1jax.runtime.console import Console
from r1jax.training import inspection
from r1jax.types import Example

WEIGHTS = st.lists(
  st.one_of(st.integers(1, 9), st.sampled_from([0.1, 0.25, 1 / 3, 2.5])),
  min_size=1,
  max_size=5,
)


def part(label, size, weight, left_out=()):
  examples = [
    Example(f"{label} {i}", str(i), label, f"{i}") for i in range(size)
  ]
  return Part(examples, weight, [*{*range(size)} - {*left_out}], {})


def drawn(dataset, label, rounds, count=8, seed=0):
  """What a part gave in so many rounds, by number."""
  return [
    int(example.id)
    for step in range(rounds)
    for example in data.draw(dataset, count, seed=seed, step=step)
    if example.domain == label
  ]


@given(WEIGHTS, st.integers(1, 20), st.integers(0, 10**9))
@settings(deadline=None, max_examples=50)
def test_each_round_has_the_proportions(weights, count, step):
  whole = mixture.integer_weights(weights)
  parts = mixture.quotas(whole, count, step)
  assert sum(number for _, number in parts) == count
  assert sum(first for first, _ in parts) == count * step
  for unit, (first, number) in zip(whole, parts):
    exact = count * unit / sum(whole)
    assert math.floor(exact) <= number <= math.ceil(exact)
    assert abs(first - step * exact) < 12  # It grows as a logarithm.


@given(WEIGHTS, st.integers(1, 20))
@settings(deadline=None, max_examples=20)
def test_a_step_goes_on_where_the_last_ended(weights, count):
  whole, seen = mixture.integer_weights(weights), [0] * len(weights)
  for step in range(12):
    parts = mixture.quotas(whole, count, step)
    assert [first for first, _ in parts] == seen
    seen = [first + number for first, number in parts]


def test_in_the_long_run_the_proportions_are_exact():
  whole = mixture.integer_weights([2.5, 1.25, 0.1])
  rounds = sum(whole)
  parts = mixture.quotas(whole, 3, rounds)
  assert whole == [50, 25, 2]
  assert [first for first, _ in parts] == [3 * unit for unit in whole]


@given(*[st.integers(0, 60)] * 3, st.integers(1, 60))
@settings(deadline=None, max_examples=50)
def test_the_sum_of_floors_is_that_of_a_loop(n, a, b, m):
  expected = sum((a * i + b) // m for i in range(n))
  assert mixture.floor_sum(n, a, b, m) == expected


SIZE = 300  # Grain takes long to shuffle few.


def test_every_part_has_its_own_epochs():
  both = Mixture({"a": part("a", SIZE, 2), "b": part("b", SIZE, 1)})
  a, b = (drawn(both, label, 12, count=75) for label in "ab")
  assert (len(a), len(b)) == (2 * SIZE, SIZE)
  first, second = a[:SIZE], a[SIZE:]
  assert sorted(first) == sorted(second) == sorted(b) == [*range(SIZE)]
  assert first != second
  assert first != b
  assert drawn(both, "a", 1, seed=1) != drawn(both, "a", 1)


def test_a_parts_order_does_not_depend_on_other_parts():
  alone = Mixture({"a": part("a", SIZE, 1)})
  beside = Mixture({"b": part("b", SIZE, 3), "a": part("a", SIZE, 4)})
  short = drawn(beside, "a", 9)
  assert drawn(alone, "a", 9)[: len(short)] == short


def test_a_part_enters_at_its_first_round():
  whole = Mixture(
    {
      "a": part("a", SIZE, 3),
      "late": dataclasses.replace(part("late", SIZE, 1), first_round=5),
    }
  )
  numbers = [
    collections.Counter(e.domain for e in data.draw(whole, 8, seed=0, step=i))
    for i in range(9)
  ]
  assert numbers == [{"a": 8}] * 5 + [{"a": 6, "late": 2}] * 4
  a, late = (drawn(whole, label, 9) for label in ("a", "late"))
  assert len({*a}) == len(a) == 5 * 8 + 4 * 6  # No example repeats.
  assert len({*late}) == len(late) == 8
  assert whole.epochs(8, 9) == {"a": 64 / SIZE, "late": 8 / SIZE}
  assert "from round 5 on" in whole.describe()[1]


def test_a_negative_first_round_is_refused():
  load = mixture.part_loader(lambda: [])
  with pytest.raises(ValueError, match="first_round must be at least 0"):
    load(weight=1, first_round=-1)


def test_some_part_is_there_from_the_beginning():
  late = dataclasses.replace(part("a", SIZE, 1), first_round=1)
  with pytest.raises(ValueError, match="nothing to draw from before"):
    Mixture({"a": late})


def test_leaving_examples_out_keeps_the_order_of_the_others():
  left_out = (3, 7)
  whole = Mixture({"a": part("a", SIZE, 1)})
  less = Mixture({"a": part("a", SIZE, 1, left_out)})
  rest = [i for i in drawn(whole, "a", 4, count=SIZE // 2) if i not in left_out]
  assert drawn(less, "a", 2, count=SIZE - 2) == rest
  assert [e.id for e in less] == [
    str(i) for i in range(SIZE) if i not in left_out
  ]


def test_another_attempt_does_not_change_other_steps():
  for dataset in (
    Mixture({"a": part("a", SIZE, 1), "b": part("b", SIZE, 1)}),
    part("a", SIZE, 1).dataset,
  ):
    draw = lambda step, attempt=0, dataset=dataset: data.draw(
      dataset, 8, seed=3, step=step, attempt=attempt
    )
    first, second = draw(2), draw(3)
    assert draw(2, 1) != first
    assert draw(2, 1) != draw(2, 2)
    assert collections.Counter(e.domain for e in draw(2, 1)) == (
      collections.Counter(e.domain for e in first)
    )
    assert (draw(2), draw(3)) == (first, second)


def test_epochs_are_counted_by_part():
  both = Mixture({"a": part("a", 10, 3), "b": part("b", 5, 1)})
  assert data.epochs(both, 4, step=5) == {
    "data/epoch": 20 / 15,
    "data/epoch/a": 1.5,
    "data/epoch/b": 1.0,
  }
  assert data.epochs([*both], 3, step=5) == {"data/epoch": 1.0}


@pytest.fixture
def problems(tmp_path):
  path = tmp_path / "train.jsonl"
  rows = (dict(problem=f"{i}+0?", answer=str(i)) for i in range(8))
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def record(tmp_path, *rows, name="rates.jsonl"):
  path = tmp_path / name
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def test_a_section_is_checked_to_its_leaves(problems):
  loose = {
    "mixture": {
      "problems": dict(weight=2.0, path=problems),
      "more": dict(name="problems", weight=1, path=problems, split="test"),
    }
  }
  bind = lambda section: config.bind("dataset", section, data.DATASETS)
  bind(loose)

  def change(label, **changes):
    own = loose["mixture"].get(label, {}) | changes
    own = {k: v for k, v in own.items() if v is not None}
    return {"mixture": loose["mixture"] | {label: own}}

  for section, message in (
    (dict(mixtur={}), "unknown config key 'dataset.mixtur'; did you mean"),
    (
      change("problem", weight=1),
      "unknown config key 'dataset.mixture.problem'; "
      "did you mean 'dataset.mixture.problems'?",
    ),
    (
      change("more", name="problem"),
      "unknown dataset.mixture.more.name 'problem'; did you mean 'problems'?",
    ),
    (
      change("problems", wieght=1.0),
      "unknown config key 'dataset.mixture.problems.wieght'; did you mean",
    ),
    (
      change("more", paht=""),
      "unknown config key 'dataset.mixture.more.paht'; did you mean",
    ),
    (
      change("problems", min_pas_rate=0.1),
      "unknown config key 'dataset.mixture.problems.min_pas_rate'; did you ",
    ),
    (
      change("problems", path=None),
      "config key 'dataset.mixture.problems.path' is missing",
    ),
    (
      change("problems", weight=None),
      "config key 'dataset.mixture.problems.weight' is missing",
    ),
    (
      dict(name="problems", mixture={}),
      "unknown config key 'dataset.mixture'",
    ),
  ):
    with pytest.raises(ValueError) as error:
      bind(section)
    assert str(error.value).startswith(message)


def test_a_config_loads_a_mixture(problems):
  section = ml_collections.ConfigDict(
    dict(
      mixture=dict(
        problems=dict(weight=2.0, path=problems),
        again=dict(name="problems", weight=1.0, path=problems),
      )
    )
  )
  loaded = data.load(**section)
  assert len(loaded) == 16
  assert loaded[0] == loaded[8] == loaded[-8]
  assert len(inspection.in_memory(loaded)) == 16
  assert [len(p.dataset) for p in loaded.parts.values()] == [8, 8]
  assert loaded.describe() == [
    "again: 33.3% of each round, from 8 examples",
    "problems: 66.7% of each round, from 8 examples",
  ]
  with pytest.raises(IndexError):
    loaded[16]


@pytest.mark.parametrize(
  ("section", "message"),
  [
    (dict(), "dataset.name is '', with"),
    (dict(mixture={}, path="x"), "set dataset.mixture and nothing else"),
    (dict(mixture={}), "names no dataset"),
    (
      dict(mixture=dict(problems=dict(weight=0, path=""))),
      "dataset.mixture.problems: weight must be a number above 0, got 0",
    ),
    (
      dict(mixture=dict(problems=dict(weight=1, path=""))),
      "dataset.mixture.problems: dataset.path is not set",
    ),
  ],
  ids=str,
)
def test_an_invalid_mixture_is_refused(section, message):
  with pytest.raises(ValueError, match=message):
    data.load(**section)


def test_problems_that_are_never_or_always_solved_are_left_out(
  tmp_path, problems
):
  # Of ten completions each: problem 1 never right, 2 always, 3 half of them.
  rows = [
    dict(
      id=f"train.jsonl:{number}",
      domain="math",
      rewards=dict(accuracy=value, format=1.0),
    )
    for number, value in [(1, 0.0), (2, 1.0), (3, 1.0), (3, 0.0), (3, None)]
  ]
  rows += [
    dict(id="train.jsonl:4", pass_rate=0.9),
    dict(id="train.jsonl:5", pass_rate=0.91),
    dict(id="train.jsonl:6", domain="code", pass_rate=0.0),
  ]
  loaded = data.load(
    mixture=dict(
      problems=dict(
        weight=1,
        path=problems,
        pass_rates=record(tmp_path, *rows),
        min_pass_rate=0.1,
        max_pass_rate=0.9,
      )
    )
  )
  assert [e.answer for e in loaded] == ["2", "3", "5", "6", "7"]
  told = io.StringIO()
  inspection.report_mixture(loaded, Console(file=told))
  inspection.report_mixture([*loaded], Console(file=told))
  assert told.getvalue() == (
    "problems: 100.0% of each round, from 5 examples; left out 1 below and 2 "
    "above the range of pass rates; 3 have no pass rate\n"
  )


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (dict(id="other:1", pass_rate=0.5), "none of its 1 ids, such as 'other:1'"),
    (dict(id="0", rewards=dict(format=1.0)), "rates.jsonl:1: neither"),
    (dict(id="0", pass_rate=30), "rates.jsonl:1: a pass rate is within 0..1"),
    (dict(pass_rate=0.5), "rates.jsonl:1: no field 'id'"),
    (dict(id="0", pass_rate=None), "no pass rate is recorded"),
  ],
)
def test_an_invalid_pass_rate_is_refused_by_line(tmp_path, row, message):
  path = record(tmp_path, row)
  with pytest.raises(ValueError, match=message):
    pass_rates.select(part("a", 3, 1).dataset, path, 0.0, 1.0)


def test_a_range_that_keeps_nothing_is_refused(tmp_path):
  path = record(tmp_path, *(dict(id=str(i), pass_rate=1.0) for i in range(3)))
  examples = part("a", 3, 1).dataset
  with pytest.raises(ValueError, match=r"no example.*within 0\.0\.\.0\.5"):
    pass_rates.select(examples, path, 0.0, 0.5)
  with pytest.raises(ValueError, match="are not a range"):
    pass_rates.select(examples, path, 0.5, 0.4)


def test_a_directory_of_records_is_read_whole(tmp_path):
  record(tmp_path, dict(id="0", pass_rate=0.0), name="a.jsonl")
  record(tmp_path, dict(id="0", pass_rate=1.0), name="b.jsonl")
  assert pass_rates.read(tmp_path) == {("0", ""): 0.5}
