"""Broken files are named, with their line."""

import gzip

import pytest

from r1jax.data import jsonl


def write(tmp_path, content: bytes):
  path = tmp_path / "file.jsonl"
  path.write_bytes(content)
  return path


def test_lines_are_counted_from_one_and_blank_ones_skipped(tmp_path):
  path = write(
    tmp_path, b'\xef\xbb\xbf{"a": 1}\n\n  \r\n{"a": "\xc3\xa9\xe2\x80\xa8"}'
  )
  assert [*jsonl.read(path)] == [(1, {"a": 1}), (4, {"a": "é\u2028"})]


def test_a_missing_file_is_named_at_once(tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere.jsonl.*give the path"):
    jsonl.read(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize(
  ("line", "message"),
  [
    (b'{"a": ', "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b"[1]", "must be a JSON object, got a list"),
    (b"[" * 100_000, "not JSON"),
  ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
  path = write(tmp_path, b'{"a": 1}\n' + line + b"\n")
  rows = jsonl.read(path)
  assert next(rows) == (1, {"a": 1})
  with pytest.raises(ValueError, match=f"file.jsonl:2: {message}"):
    next(rows)


def test_fields_are_text_under_any_of_their_names():
  row = dict(b="x", c=12, d=None, e=True, f=" ")
  assert jsonl.text(row, "a", "b", where="f:1") == "x"
  assert jsonl.text(row, "c", where="f:1") == "12"
  with pytest.raises(ValueError, match="f:1: no field 'a' or 'z'; it has"):
    jsonl.text(row, "a", "z", where="f:1")
  for name in "def":
    with pytest.raises(ValueError, match=f"f:1: '{name}' must be text"):
      jsonl.text(row, name, where="f:1")


def test_gzip_is_read_and_a_cut_is_named(tmp_path):
  path = tmp_path / "file.jsonl.gz"
  whole = gzip.compress(b'{"a": 1}\n' + b'{"b": 2}\n' * 9)
  path.write_bytes(whole)
  assert len([*jsonl.read(path)]) == 10
  path.write_bytes(whole[:-4])
  with pytest.raises(ValueError, match="file.jsonl.gz:11: not gzip"):
    list(jsonl.read(path))
  path.write_bytes(b"plain")
  with pytest.raises(ValueError, match="file.jsonl.gz:1: not gzip"):
    list(jsonl.read(path))
