"""GSM8K in both of its forms."""

import json
from pathlib import Path

import pytest

from r1jax.data import gsm8k
from r1jax.rewards import accuracy

DATA = Path(__file__).parents[2] / "../shared/data"


def write(tmp_path, *rows):
  path = tmp_path / "problems.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_both_forms_are_read(tmp_path):
  path = write(
    tmp_path,
    dict(problem=" 1+1? ", answer="2"),
    dict(question="Half?", answer="Take <<2/2=1>>1.\n#### 1,000"),
    dict(problem="1?", answer=1),
  )
  examples = gsm8k.load(path=path)
  assert [e.prompt for e in examples] == ["1+1?", "Half?", "1?"]
  assert [e.answer for e in examples] == ["2", "1000", "1"]
  assert examples[1].id == "problems.jsonl:2"
  assert examples[1].domain == "math/gsm8k"
  assert accuracy.verify_golds(examples) == []


def test_two_splits_make_the_whole(tmp_path):
  rows = [dict(problem=f"{i}+1?", answer=str(i + 1)) for i in range(300)]
  path = write(tmp_path, *rows)
  train, test = (
    {e.id for e in gsm8k.load(path=path, split=split)}
    for split in ("train", "test")
  )
  assert not train & test
  assert len(train | test) == 300
  assert 10 < len(test) < 60


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    (
      [dict(problem="a", answer="1"), dict(answer="1")],
      ":2: no field 'problem'",
    ),
    ([dict(problem="a", answer="so\n####")], ":1: nothing follows ####"),
    ([dict(problem="a", answer=None)], ":1: 'answer' must be text"),
    ([], "no problems in it"),
  ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
  with pytest.raises(ValueError, match=message):
    gsm8k.load(path=write(tmp_path, *rows))


def test_an_unknown_split_is_named(tmp_path):
  with pytest.raises(ValueError, match="got 'valid'"):
    gsm8k.load(
      path=write(tmp_path, dict(problem="a", answer="1")), split="valid"
    )


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
def test_every_gold_of_gsm8k_verifies_against_itself():
  for name, size in (
    ("train/math_gsm8k_train", 7473),
    ("eval/math_gsm8k_test", 1319),
  ):
    examples = gsm8k.load(path=DATA / f"{name}.jsonl")
    assert len(examples) == size
    assert accuracy.verify_golds(examples) == []
