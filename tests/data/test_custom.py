"""Datasets of users' own modules, by "module:function"."""

import sys

import pytest

from r1jax import config, data

MODULE = """
from collections.abc import Sequence
from r1jax import Example

def load(size, domain="math", *, start=0):
  for n in range(start, start + size):
    yield Example(f"{n} + {n}?", str(2 * n), domain, "" if n else "first")

class Endless(Sequence):
  def __len__(self):
    return 10**9
  def __getitem__(self, i):
    return Example(str(i), str(i))

def made(): return Endless()
def nothing(): return []
def none(): return None
def rows(): return [{"prompt": "a"}]
def numbers(): return [Example("a", 1)]
value = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
  (tmp_path / "own_data.py").write_text(MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  yield
  sys.modules.pop("own_data", None)


def check(**section):
  config.bind("dataset", section, data.DATASETS)


def test_a_function_of_ones_own_is_a_dataset():
  check(name="own_data:load", size=3)
  examples = data.load("own_data:load", size=3)
  assert isinstance(examples, list)
  assert [e.answer for e in examples] == ["0", "2", "4"]
  assert [e.id for e in examples] == ["first", "own_data:load:1"] + [
    "own_data:load:2"
  ]


def test_what_has_random_access_is_left_as_it_is():
  examples = data.load("own_data:made")
  assert len(examples) == 10**9
  assert data.draw(examples, 2, seed=0, step=5)[0].prompt.isdigit()


def test_it_may_be_a_part_of_a_mixture():
  mixture = {
    "own_data:load": dict(weight=1.0, size=3),
    "more": dict(name="own_data:load", weight=3.0, size=5, start=2),
  }
  check(mixture=mixture)
  drawn = data.draw(data.load(mixture=mixture), 4, seed=0, step=0)
  assert len(drawn) == 4


@pytest.mark.parametrize(
  "section, message",
  [
    (dict(name="own_data:lod", size=3), "'own_data:lod' is no function of"),
    (dict(name="own_dat:load", size=3), "No module named 'own_dat'"),
    (dict(name="own_data:value"), "'own_data:value' is 3, and no function"),
    (dict(name="own_data:load"), "key 'dataset.size' is missing"),
    (dict(name="own_data:load", sise=3), "did you mean 'dataset.size'"),
    (dict(mixture={"own_data:load": dict(size=3)}), "weight' is missing"),
    (dict(name="problem"), "did you mean 'problems'"),
  ],
)
def test_what_does_not_fit_is_one_line(section, message):
  with pytest.raises(ValueError, match=message) as raised:
    check(**section)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  "name, message",
  [
    ("nothing", "own_data:nothing returned no examples"),
    ("none", "own_data:none must return Examples, got None"),
    ("rows", "own_data:rows:0 must be an r1jax.Example, got {'prompt': 'a'}"),
    ("numbers", "own_data:numbers:0: answer must be text, got 1"),
  ],
)
def test_what_is_no_dataset_is_refused(name, message):
  with pytest.raises(ValueError, match=message):
    data.load(f"own_data:{name}")
