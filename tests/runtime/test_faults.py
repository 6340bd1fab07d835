"""What a run meets: damage, signals, full disks, closed terminals."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import data
from r1jax.runtime import checkpoint, interrupt, metrics, workdir
from r1jax.runtime.metrics.rows import Rows
from r1jax.types import Example

ROOT = pathlib.Path(__file__).parents[2]


def flip(path, position, bit=0):
  data = bytearray(path.read_bytes())
  data[position] ^= 1 << bit
  path.write_bytes(data)


def test_no_flipped_bit_is_restored(tmp_path, python):
  """Wherever in a file of the newest checkpoint: the one before is restored,
  or what was flipped holds no number."""
  like = {"x": np.zeros((40, 50), np.float32), "y": np.zeros(3, np.float32)}
  draw = np.random.default_rng(0).normal
  trees = {
    step: jax.tree.map(lambda a: draw(size=a.shape).astype("f4"), like)
    for step in (1, 2)
  }
  for step, tree in trees.items():
    checkpoint.save(tmp_path / "whole", step, tree, wait=True)
  data = tmp_path / "whole" / "checkpoints" / "2" / "state"
  files = [p.relative_to(data) for p in data.rglob("*") if p.stat().st_size]
  files = sorted(p for p in files if (data / p).is_file())
  torn = [tmp_path / str(i) for i in range(2 * len(files))]
  for i, folder in enumerate(torn):
    shutil.copytree(tmp_path / "whole", folder)
    path = folder / "checkpoints" / "2" / "state" / files[i // 2]
    flip(path, i * 7919 % path.stat().st_size, i % 8)
  # In another process: a failed read leaves threads behind.
  done = python("-c", textwrap.dedent(PRINTS), *torn)
  assert done.returncode == 0, done.stderr
  restored = done.stdout.split()
  one, two = (trees[step]["x"].tobytes().hex() for step in (1, 2))
  assert len(restored) == len(torn) and {*restored} == {one, two}


PRINTS = """
  import sys, numpy as np
  from r1jax.runtime import checkpoint
  like = {"x": np.zeros((40, 50), np.float32), "y": np.zeros(3, np.float32)}
  for workdir in sys.argv[1:]:
    print(checkpoint.restore(workdir, like)["x"].tobytes().hex())
"""


def test_a_wrong_number_is_noticed(tmp_path, monkeypatch, caplog):
  """One that every layer below took for right."""
  like = {"x": jnp.zeros(9), "y": jnp.zeros(3)}
  for step in (1, 2):
    tree = jax.tree.map(lambda x, step=step: x + step, like)
    checkpoint.save(tmp_path, step, tree, wait=True)
  folder = tmp_path / "checkpoints"
  for item in ("state", "about"):  # Right numbers, of another step.
    shutil.copytree(folder / "1" / item, folder / f"0{item}")
  shutil.rmtree(folder / "2" / "state")
  (folder / "0state").rename(folder / "2" / "state")
  shutil.rmtree(folder / "0about")
  back = checkpoint.restore(tmp_path, like)
  assert back["x"].tolist() == [1.0] * 9
  assert "the checksum of x is wrong" in caplog.text
  assert (folder / "2.unreadable").is_dir()


def whole(step):
  """A tree that says everywhere of which step it is."""
  return {"x": np.full((30, 40), step), "y": {"z": jnp.full(5, step)}}


def calls_of_a_save(folder):
  """Calls that Python makes while a checkpoint is saved, in this thread."""
  calls = []
  sys.setprofile(lambda frame, event, _: calls.append(event))
  try:
    checkpoint.save(folder, 1, whole(1))
  finally:
    sys.setprofile(None)
  return len(calls)


def interrupted_after(calls, workdir):
  """The step that a run reports when it is stopped so far into a save."""
  step, left = 0, calls

  def count(*_):
    nonlocal left
    left -= 1
    if left == 0:
      sys.setprofile(None)
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(interrupt.Interrupted), interrupt.guard():
    try:
      while True:
        with interrupt.deferred():
          step += 1
        if step == 2:
          sys.setprofile(count)
        checkpoint.save(workdir, step, whole(step))
    except interrupt.Interrupted:
      sys.setprofile(None)
      checkpoint.save(workdir, step, whole(step), wait=True)
      raise
  return step


def test_a_signal_at_twenty_moments_of_a_save(tmp_path):
  """The newest checkpoint can be read, and is the one that is reported."""
  checkpoint.save(tmp_path / "first", 0, whole(0), wait=True)
  calls = calls_of_a_save(tmp_path / "first")
  assert calls > 200
  for moment in range(20):
    workdir = tmp_path / str(moment)
    step = interrupted_after(1 + calls * moment // 20, workdir)
    assert checkpoint.latest_step(workdir) == step
    back = checkpoint.restore(workdir, whole(0))
    jax.tree.map(np.testing.assert_array_equal, back, whole(step))


def test_a_disk_that_is_full_is_one_line(tmp_path, monkeypatch):
  import orbax.checkpoint as ocp

  def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  checkpoint.save(tmp_path, 1, whole(1), wait=True)
  monkeypatch.setattr(ocp.CheckpointManager, "save", full)
  with pytest.raises(OSError, match="No space left on device; free some"):
    checkpoint.save(tmp_path, 2, whole(2))
  assert checkpoint.latest_step(tmp_path) == 1


def test_there_must_be_space_for_two_checkpoints(tmp_path, monkeypatch):
  like = {"x": np.zeros(1000, np.float32)}  # 4,000 bytes.
  usage = lambda free: lambda _: shutil._ntuple_diskusage(0, 0, free)
  monkeypatch.setattr(shutil, "disk_usage", usage(7999))
  with pytest.raises(ValueError, match="has 8e-06 GB free and needs 8e-06 GB"):
    checkpoint.restore(tmp_path, like)
  monkeypatch.setattr(shutil, "disk_usage", usage(8000))
  assert checkpoint.restore(tmp_path, like) is None
  for step in (1, 2, 3):
    checkpoint.save(tmp_path, step, like, wait=True)
  monkeypatch.setattr(shutil, "disk_usage", usage(4000))  # Two are there.
  checkpoint.restore(tmp_path, like)
  monkeypatch.setattr(shutil, "disk_usage", usage(3999))
  with pytest.raises(ValueError, match="free some space, or choose another"):
    checkpoint.restore(tmp_path, like)


FOREIGN = (
  "not JSON",
  "[1, 2]",
  "{}",
  '{"time": 3.0}',
  '{"step": "3"}',
  '{"step": true}',
  "\x00\x00\x00",
  "[" * 5000,
)


@pytest.mark.parametrize("line", FOREIGN, ids=lambda line: line[:9])
def test_a_foreign_line_costs_no_other(tmp_path, caplog, line):
  file = tmp_path / "metrics.jsonl"
  good = [f'{{"step": {i}, "x": {i}.5}}\n' for i in range(6)]
  file.write_text("".join([*good[:2], line + "\n", *good[2:], '{"step": 9']))
  assert [row["step"] for row in metrics.read(tmp_path)] == [*range(6)]
  assert "metrics.jsonl:3: not a row of a run" in caplog.text
  with metrics.Writer(tmp_path, step=4, sinks=()) as writer:
    writer.write(5, x=7.0)
  assert file.read_text().startswith("".join(good[:5]))
  assert [row["x"] for row in metrics.read(tmp_path)][4:] == [4.5, 7.0]


@pytest.mark.parametrize("fate", ["removed", "moved", "replaced"])
def test_a_run_does_not_write_to_a_file_that_is_gone(tmp_path, fate):
  rows = Rows(tmp_path / "run" / "metrics.jsonl", None)
  (tmp_path / "run").mkdir()
  rows.add([{"step": 1}])
  rows.add([{"step": 2}])
  if fate == "removed":
    shutil.rmtree(tmp_path / "run")
  else:
    (tmp_path / "run").rename(tmp_path / "elsewhere")
  if fate == "replaced":
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
  with pytest.raises(FileNotFoundError, match="removed or replaced while"):
    rows.add([{"step": 3}])
  rows.close()


def test_a_file_in_the_place_of_a_workdir_is_one_line(tmp_path):
  (tmp_path / "file").write_text("mine")
  for place in ("file", "file/run"):
    with pytest.raises(ValueError, match="a file is in its place; choose ano"):
      workdir.prepare(tmp_path / place)
  assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_workdir_that_cannot_be_written_is_one_line(
  tmp_path, monkeypatch, kind
):
  def refuse(path, *_):
    raise OSError(kind, os.strerror(kind), str(path))

  monkeypatch.setattr(pathlib.Path, "write_text", refuse)
  with pytest.raises(ValueError, match=f"{os.strerror(kind)}; (choose|free)"):
    workdir.prepare(tmp_path)
  assert not [*tmp_path.iterdir()]


def test_a_bucket_that_does_not_answer_is_not_remembered(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  bucket = str(tmp_path / "file" / "bucket")
  with pytest.raises(ValueError, match=f"cannot write to {bucket}: .*; check"):
    workdir.prepare(tmp_path / "run", bucket)
  workdir.prepare(tmp_path / "run")
  assert workdir.checkpoints(tmp_path / "run").startswith(str(tmp_path / "run"))
  # One that was there before: the message says how to continue without it.
  workdir.prepare(tmp_path / "run", str(tmp_path / "mount"))
  shutil.rmtree(tmp_path / "mount")
  (tmp_path / "mount").write_text("")
  with pytest.raises(
    ValueError, match=r"delete .*run/checkpoints\.at to continue"
  ):
    workdir.prepare(tmp_path / "run")
  monkeypatch.setattr(workdir, "BUCKET_TIMEOUT", 0.1)
  monkeypatch.setattr(workdir, "_local", lambda _: threading.Event().wait())
  with pytest.raises(ValueError, match="no answer for 0 s; check the name"):
    workdir.prepare(tmp_path / "slow", str(tmp_path / "mounted"))


@pytest.mark.parametrize("name", ["config.json", "contents.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "\x00" * 9])
def test_a_damaged_file_is_named_with_a_remedy(tmp_path, name, text):
  claim = lambda: workdir.claim(tmp_path, {"seed": 0}, {"dataset": "a1"})
  claim()
  (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=f"{name} is damaged .*or delete it"):
    claim()
  (tmp_path / name).unlink()
  claim()
  assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 0}


def test_other_data_are_refused_or_accepted_with_a_word(tmp_path, caplog):
  claim = lambda content: workdir.claim(tmp_path, {}, {"dataset": content})
  claim("a" * 64)
  claim("a" * 64)
  for _ in range(2):
    with pytest.raises(
      ValueError, match=f"was {'a' * 12}, is {'b' * 12}; restore"
    ):
      claim("b" * 64)
  workdir.prepare(tmp_path, accept_other_data=True)
  assert not caplog.text
  claim("b" * 64)
  assert "the dataset has changed" in caplog.text
  claim("b" * 64)
  with pytest.raises(ValueError, match="--accept_other_data"):
    claim("a" * 64)


class Made(Sequence):
  """A dataset that makes what is read."""

  def __len__(self):
    return 1_000_000

  def __getitem__(self, index):
    return Example(str(index), "a")


def test_the_content_of_a_dataset_is_all_of_its_examples(tmp_path):
  file = tmp_path / "train.jsonl"
  rows = [{"problem": f"{i} + 1 = ?", "answer": str(i + 1)} for i in range(40)]

  def content(rows, **mixture):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = dict(name="problems", path=str(file))
    if mixture:
      return data.content_hash(data.load(mixture={"sums": part | mixture}))
    return data.content_hash(data.load(**part))

  contents = [
    content(rows),
    content(rows[:-1]),
    content(rows[::-1]),
    content([*rows[:-1], rows[-1] | {"answer": "41"}]),
    content([*rows[:-1], rows[-1] | {"problem": "39 + 1 is?"}]),
    content(rows, weight=1.0),
    content(rows[1:], weight=1.0),
  ]
  assert len({*contents}) == len(contents)
  assert content(rows) == contents[0]
  made = Made()
  assert data.content_hash(made) == data.content_hash(made)
  lists = [Example("q", "a", metadata={"tests": tests}) for tests in ("x", "y")]
  assert len({data.content_hash([example]) for example in lists}) == 2


OUTLIVES = """
  import os, sys, time
  from absl import logging
  from r1jax.runtime import console
  console.tolerate_closed_streams()
  shown = console.Console()
  for i in range(50):
    shown.note(f"line {i} " + "x" * 2000)
    print("said", flush=True)
    logging.error("logged")
    os.write(1, b"C library\\n") if i > 30 else None
  with open(sys.argv[1], "w") as file:
    file.write("done")
"""


@pytest.mark.parametrize("how", ["| head -1", ">&-", ">&- 2>&- <&-", "2>&-"])
def test_a_run_outlives_who_reads_it(tmp_path, how):
  script, file = tmp_path / "run.py", tmp_path / "done"
  script.write_text(textwrap.dedent(OUTLIVES))
  command = f"set -o pipefail; {sys.executable} {script} {file} {how}"
  done = subprocess.run(
    ["bash", "-c", command],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert file.read_text() == "done", "a stream's number was given to the file"
  assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
