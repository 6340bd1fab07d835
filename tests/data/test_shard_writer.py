"""A shard appears whole, in the same bytes, or not at all."""

import os

import pytest

from r1jax.data import rows, shard_writer

ROWS = [
  {
    "id": "0",
    "messages": [{"role": "user", "content": "多少\u2028?"}],
    "n": None,
  },
  {"id": "1", "messages": [], "n": 1.5},
]


@pytest.fixture(params=shard_writer.FORMATS)
def format(request):
  if request.param == "parquet":
    pytest.importorskip("pyarrow")
  return request.param


def read(folder, number, format):
  return [
    row for _, row in rows.read(shard_writer.path_of(folder, number, format))
  ]


def test_rows_come_back_and_bytes_are_the_same(tmp_path, format):
  for name in ("a", "b"):
    shard_writer.write(tmp_path / name, 3, ROWS, format)
  assert read(tmp_path / "a", 3, format) == ROWS
  first, second = (
    shard_writer.path_of(tmp_path / name, 3, format).read_bytes()
    for name in "ab"
  )
  assert first == second


def test_a_shard_without_rows_is_a_shard(tmp_path, format):
  shard_writer.write(tmp_path, 0, [], format)
  assert read(tmp_path, 0, format) == []
  assert shard_writer.finished(tmp_path, format) == 1


def test_what_cannot_be_finished_leaves_the_old_file(tmp_path, monkeypatch):
  shard_writer.write(tmp_path, 0, ROWS[:1], "jsonl")

  def die(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(os, "replace", die)
    for number in (0, 1):
      with pytest.raises(KeyboardInterrupt):
        shard_writer.write(tmp_path, number, ROWS, "jsonl")
  assert read(tmp_path, 0, "jsonl") == ROWS[:1]
  assert shard_writer.finished(tmp_path, "jsonl") == 1
  shard_writer.write(tmp_path, 1, ROWS, "jsonl")
  assert shard_writer.finished(tmp_path, "jsonl") == 2


def test_shards_are_counted_up_to_the_first_that_is_missing(tmp_path):
  for number in (0, 1, 3):
    shard_writer.write(tmp_path, number, ROWS, "jsonl")
  assert shard_writer.finished(tmp_path, "jsonl") == 2
  assert shard_writer.finished(tmp_path / "nowhere", "jsonl") == 0


def test_a_format_that_does_not_exist_is_refused(tmp_path):
  with pytest.raises(ValueError, match="'csv'; there is jsonl, parquet"):
    shard_writer.write(tmp_path, 0, ROWS, "csv")
