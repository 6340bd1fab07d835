"""Rows of files of every kind are read in any order, and a bad one is named."""

import json
import random
import tracemalloc

import pytest

from r1jax.data import shards

ROWS = [dict(id=str(i), text="\u00e9\n" * (i % 7)) for i in range(200)]


def write(path, rows):
  """Writes rows to a file of the kind that its name ends in."""
  if path.suffix == ".jsonl":
    path.write_text("\n".join(map(json.dumps, rows)))
  elif path.suffix == ".parquet":
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, path, row_group_size=70)
  else:
    record = pytest.importorskip("array_record.python.array_record_module")
    writer = record.ArrayRecordWriter(str(path), "group_size:1")
    for row in rows:
      writer.write(json.dumps(row).encode())
    writer.close()
  return path


@pytest.mark.parametrize("kind", [*shards.FORMATS])
def test_rows_of_every_kind_of_file_are_read_in_any_order(tmp_path, kind):
  path = write(tmp_path / f"a{kind}", ROWS)
  found = shards.Shards(path)
  assert len(found) == len(ROWS)
  for i in random.Random(0).sample(range(len(ROWS)), len(ROWS)):
    assert found[i] == shards.Row(ROWS[i], f"{path}:{i + 1}")
  assert found[-1].fields == ROWS[-1]
  with pytest.raises(IndexError, match="200 of 200"):
    found[200]


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path):
  for name, part in ("b.jsonl", ROWS[5:9]), ("a.jsonl", ROWS[:5]):
    write(tmp_path / name, part)
  write(tmp_path / "c.array_record", ROWS[9:20])
  (tmp_path / "report.txt").write_text("not rows")
  found = shards.Shards(tmp_path)
  assert [row.fields for row in found] == ROWS[:20]
  assert found[6].where == f"{tmp_path / 'b.jsonl'}:2"


def test_blank_lines_are_no_rows_and_count_as_lines(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'\xef\xbb\xbf{"i": 0}\r\n\n  \n{"i": 1}\n\n{"i": 2}')
  found = shards.Shards(path)
  assert [row.fields["i"] for row in found] == [0, 1, 2]
  assert [row.where for row in found] == [f"{path}:{i}" for i in (1, 4, 6)]


@pytest.mark.parametrize(
  "line, message",
  [
    (b'{"a": 1', "a.jsonl:2: not JSON"),
    (b"[1]", "a.jsonl:2: must be a JSON object, got a list"),
    (b'{"a": "\xff"}', "a.jsonl:2: not JSON.*utf-8"),
    (b'{"a": NaN}', "a.jsonl:2: not JSON: NaN"),
  ],
)
def test_a_bad_line_is_named_when_it_is_read(tmp_path, line, message):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'{"a": 0}\n' + line + b'\n{"a": 2}\n')
  found = shards.Shards(path)
  assert found[2].fields == {"a": 2}
  with pytest.raises(ValueError, match=message):
    found[1]


@pytest.mark.parametrize("kind", [".parquet", ".array_record"])
def test_a_file_that_is_not_of_its_kind_is_named(tmp_path, kind):
  if kind == ".parquet":
    pytest.importorskip("pyarrow")
  path = tmp_path / f"a{kind}"
  path.write_text("something else")
  with pytest.raises(ValueError, match=f"a{kind}: not "):
    shards.Shards(path)


def test_paths_without_rows_are_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match="none.jsonl: no such file"):
    shards.Shards(tmp_path / "none.jsonl")
  with pytest.raises(ValueError, match="no file in this folder ends in .jsonl"):
    shards.Shards(tmp_path)
  (tmp_path / "a.jsonl").write_text("\n \n")
  with pytest.raises(ValueError, match="a.jsonl: no rows"):
    shards.Shards(tmp_path / "a.jsonl")
  (tmp_path / "a.jsonl.gz").write_bytes(b"")
  with pytest.raises(ValueError, match="gz: .*convert it, or decompress it"):
    shards.Shards(tmp_path / "a.jsonl.gz")


def test_the_checksum_is_of_the_content_and_not_of_the_path(tmp_path):
  one, same, other = (tmp_path / name for name in "abc")
  for folder, name, rows in (
    (one, "x.jsonl", ROWS),
    (same, "y.jsonl", ROWS),
    (other, "x.jsonl", [*ROWS[:100], {}, *ROWS[101:]]),
  ):
    folder.mkdir()
    write(folder / name, rows)
  checksum = lambda path: shards.Shards(path).checksum()
  assert checksum(one) == checksum(same) != checksum(other)


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".array_record"])
def test_rows_of_any_length_take_no_memory(tmp_path, kind):
  text = "x" * 20_000
  path = write(
    tmp_path / f"a{kind}", [dict(id=str(i), text=text) for i in range(1000)]
  )
  tracemalloc.start()
  found = shards.Shards(path)
  for i in range(0, 1000, 7):
    assert len(found[i].fields["text"]) == 20_000
  held, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert held < 1e6 and peak < 4e6  # Of 20 MB.
