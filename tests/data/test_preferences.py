"""Preferences from files: pairs, labels, and rows that are neither."""

import json
import pathlib

import pytest

from r1jax import data
from r1jax.data import preferences

ROOT = pathlib.Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "train"
USER = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Hello"}


@pytest.fixture
def load(tmp_path):
  def load(*rows):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return preferences.load(path=str(file))

  return load


def test_a_pair_of_texts_and_a_labelled_response_are_examples(load):
  pair, labelled = load(
    dict(prompt="1 + 1", chosen="2", rejected="3", domain="sums", id=7),
    dict(prompt="1 + 1", response="2", label="unsafe"),
  )
  assert pair.prompt == "1 + 1" and pair.answer == "2"
  assert pair.id == "7" and pair.domain == "sums"
  assert pair.metadata["rejected"] == "3"
  assert pair.metadata["messages"] == [dict(role="user", content="1 + 1")]
  assert labelled.answer == "2" and labelled.metadata["label"] == 0.0
  assert labelled.id.endswith("pairs.jsonl:2")


def test_whole_conversations_hold_their_prompt(load):
  worse = {"role": "assistant", "content": "Go away"}
  (pair,) = load(dict(chosen=[USER, SAID], rejected=[USER, worse]))
  assert pair.prompt == "Hi" and pair.answer == "Hello"
  assert pair.metadata["messages"] == [USER]
  assert pair.metadata["rejected"] == "Go away"


@pytest.mark.parametrize("label, expected", [(True, 1), (0, 0), ("safe", 1)])
def test_labels_have_several_forms(load, label, expected):
  (example,) = load(dict(prompt="a", response="b", label=label))
  assert example.metadata["label"] == expected


@pytest.mark.parametrize(
  "row, message",
  [
    (dict(prompt="a", chosen="b"), "no field 'rejected'"),
    (dict(prompt="a", response="b"), "no field 'label'"),
    (dict(prompt="a"), "no field 'response'"),
    (dict(prompt="a", response="b", label=0.5), "'label' must be true or fal"),
    (dict(prompt=[SAID], chosen="b", rejected="c"), "end with a user's mess"),
    (dict(prompt=[], chosen="b", rejected="c"), "must be a text or messages"),
    (dict(prompt="a", chosen=[USER], rejected="c"), "'chosen' is not an ans"),
    (dict(prompt="a", chosen=["b"], rejected="c"), "a message that is no obj"),
    (dict(chosen="b", rejected="c"), "'prompt' must be a text or messages"),
    (dict(prompt="a", chosen="b", rejected=3), "'rejected' must be a text"),
  ],
)
def test_a_row_that_is_none_is_named_by_its_line(load, row, message):
  rows = load(dict(prompt="a", chosen="b", rejected="c"), row)
  with pytest.raises(ValueError, match=rf"pairs.jsonl:2: .*{message}"):
    rows[1]


def test_the_checksum_is_that_of_the_file(load):
  row = dict(prompt="a", chosen="b", rejected="c")
  before = data.content_hash(load(row))
  assert data.content_hash(load(row)) == before
  assert data.content_hash(load(row | dict(rejected="d"))) != before


@pytest.mark.skipif(not SHARED.exists(), reason="needs shared data")
@pytest.mark.parametrize(
  "name, count", [("dpo_demo_en_zh", 450), ("hh_harmless", 1061)]
)
def test_published_pairs_are_read(name, count):
  file = SHARED / f"preference_{name}.jsonl"
  dataset = data.load("preferences", path=str(file))
  raw = [json.loads(line) for line in file.read_text().splitlines()]
  assert len(dataset) == count
  for example, row in zip(dataset, raw, strict=True):
    assert example.metadata["messages"] == row["prompt"]
    assert example.answer == row["chosen"]
    assert example.metadata["rejected"] == row["rejected"]
