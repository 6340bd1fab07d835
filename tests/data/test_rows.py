"""Every kind of file gives the same problems, and a broken one is named."""

import gzip
import json
import re
import sys

import pytest

from r1jax.data import problems


def numbered(count):
  return [dict(problem=f"{i}+1?", answer=str(i + 1)) for i in range(count)]


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".json-lines", ".parquet"])
def test_every_kind_of_file_is_read(tmp_path, kind, zipped):
  path = tmp_path / f"problems{kind.replace('-lines', '')}{zipped}"
  if kind == ".parquet":
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    plain = tmp_path / "plain"
    parquet.write_table(pyarrow.Table.from_pylist(numbered(9)), plain)
    content = plain.read_bytes()
  elif kind == ".json":
    content = b"\xef\xbb\xbf\n" + json.dumps(numbered(9), indent=1).encode()
  else:
    content = "\n".join(map(json.dumps, numbered(9))).encode()
  path.write_bytes(gzip.compress(content) if zipped else content)
  examples = problems.load(path=path)
  assert [(e.prompt, e.answer) for e in examples] == [
    (row["problem"], row["answer"]) for row in numbered(9)
  ]
  lines = [
    int(example.id.removeprefix(f"{path.name}:")) for example in examples
  ]
  step, first = (4, 3) if kind == ".json" else (1, 1)
  assert lines == [first + step * i for i in range(9)]
  path.write_bytes(path.read_bytes()[: -len(path.read_bytes()) // 2])
  with pytest.raises(ValueError, match=re.escape(str(path))):
    problems.load(path=path)


def test_nested_columns_of_parquet_are_read(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  rows = [
    dict(
      prompt=[dict(role="user", content=f"{i}?")],
      reward_model=dict(ground_truth=str(i), style="rule"),
      score=float("nan"),
    )
    for i in range(3)
  ]
  rows[1]["reward_model"]["ground_truth"] = None
  path = tmp_path / "verl.parquet"
  parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  with pytest.raises(ValueError, match="verl.parquet:2: .*is null or missing"):
    problems.load(path=path)
  examples = problems.load(path=path, max_skipped=0.4)
  assert [(e.prompt, e.answer) for e in examples] == [("0?", "0"), ("2?", "2")]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  path = tmp_path / "a.parquet"
  path.write_bytes(b"PAR1")
  with pytest.raises(ValueError, match=r"pip install 'r1jax\[parquet\]'"):
    problems.load(path=path)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      '[{"problem": "a", "answer": NaN}]',
      "a.json:1: not JSON: NaN is not JSON",
    ),
    ('[{"problem": "a",\n"answer": 1}\n{}]', "a.json:3: not JSON: a comma"),
    ("[\n\n1]", "a.json:3: must be a JSON object, got a int"),
    ('[{"problem": ', "a.json:1: not JSON"),
    ("[", "a.json:1: not JSON"),
    ("[]", "a.json: no problems in it"),
    ('{"problem": "a"}', "a.json:1: 'answer or"),
  ],
)
def test_a_broken_array_is_named(tmp_path, text, message):
  (tmp_path / "a.json").write_text(text)
  with pytest.raises(ValueError, match=re.escape(message)):
    problems.load(path=tmp_path / "a.json")


def test_a_bad_row_of_an_array_is_skipped_alone(tmp_path):
  rows = ", ".join(map(json.dumps, numbered(11)))
  bad = r'{"problem": "\ud800", "answer": Infinity}'
  (tmp_path / "a.json").write_text(f"[{bad}, {rows}]")
  assert len(problems.load(path=tmp_path / "a.json")) == 11
