"""A round comes back from its file as it was."""

import functools
import gzip
import json
import operator
import os

import jax
import numpy as np
import pytest

from r1jax.data import pass_rates
from r1jax.parallel.mesh import make_mesh
from r1jax.rewards import Scores
from r1jax.rollouts import records, replay
from r1jax.types import Completion, Example, Rollout, within_lengths


def make_round(seed=0, experts=False):
  """Two prompts, three completions of each."""
  rng = np.random.default_rng(seed)
  lengths = np.int32([[1, 4, 5], [3, 5, 2]])
  sampled = np.arange(5) < lengths[..., None]
  noise = rng.integers(0, 2**32, sampled.shape, np.uint32).view(np.float32)
  noise[0, 2, :4] = [-0.0, 1e-45, -1 / 3, -np.inf]
  draw = lambda *shape: rng.integers(0, 99, shape).astype(np.int16)
  rollout = Rollout(
    prompts=np.int32([[5, 6, 0], [7, 8, 9]]),
    prompt_lengths=np.int32([2, 3]),
    completions=np.where(sampled, rng.integers(0, 99, (2, 3, 5)), 0).astype(
      np.int32
    ),
    lengths=lengths,
    finish=np.int32([[1, 1, 2], [1, 2, 1]]),
    sampled_mask=within_lengths(lengths, 5),
    logprobs=np.where(sampled, noise, 0).astype(np.float32),
    experts=replay.from_host(draw(2, 3, 5, 4, 2), draw(2, 3, 4, 2))
    if experts
    else None,
  )
  examples = [
    Example(f"What?\n\u2028{i // 3}", "1/3", "math/gsm8k", f"f.jsonl:{i // 3}")
    for i in range(6)
  ]
  written = [
    Completion(
      f"é\ud800 {i}", int(n), 5, "stop" if finish == 1 else "length", "<think>"
    )
    for i, (n, finish) in enumerate(zip(lengths.flat, rollout.finish.flat))
  ]
  scores = Scores(
    total=np.array([0.1 + 0.2, np.nan, 0, 1, 1, 1 / 3]),
    parts={
      "accuracy": np.array([1, np.nan, 0, 1, 1, 0.0]),
      "format": rng.random(6),
    },
    counts={"timeouts": 1, "crashes": 0},
    feedback=["", "test 1: é\ud800", "", "", "", ""],
  )
  return dict(
    step=8,
    rollout=rollout,
    examples=examples,
    written=written,
    scores=scores,
    advantages=rng.normal(size=(2, 3)),
    facts={"teaching": None, "batches": 2},
  )


def same_bits(a, b):
  a, b = np.asarray(a), np.asarray(b)
  return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("experts", [True, False])
def test_a_round_comes_back_bit_for_bit(tmp_path, compress, experts):
  made = make_round(experts=experts)
  rollout, mesh = made["rollout"], make_mesh(data=4, expert=2)
  placed = replay.to_device(rollout.experts, mesh)
  placed = made | {"rollout": rollout.replace(experts=placed)}
  records.dump(tmp_path, 4, **placed, compress=compress)
  read = records.load(tmp_path, 4)
  arrays = [read.rollout, *read.scores[:2], read.advantages]
  expected = [made["rollout"], *made["scores"][:2], made["advantages"]]
  assert jax.tree.all(jax.tree.map(same_bits, arrays, expected))
  for name in ("step", "examples", "written", "facts"):
    assert getattr(read, name) == made[name]
  assert read.scores.counts == made["scores"].counts
  assert read.scores.feedback == made["scores"].feedback


def test_forced_tokens_come_back_as_forced(tmp_path):
  made = make_round()
  made["rollout"].sampled_mask[0, 2, 1:3] = False
  made["rollout"].logprobs[0, 2, 1:3] = 0
  records.dump(tmp_path, 4, **made)
  read = records.load(tmp_path, 4).rollout
  assert same_bits(read.sampled_mask, made["rollout"].sampled_mask)
  assert same_bits(read.completions, made["rollout"].completions)


def test_the_same_round_is_the_same_bytes(tmp_path):
  for compress in (True, False):
    written = []
    for workdir in (tmp_path / "a", tmp_path / "b", tmp_path / "a"):
      records.dump(workdir, 4, **make_round(), compress=compress)
      (file,) = (workdir / "rollouts").iterdir()  # The other form is gone.
      written.append((file.name, file.read_bytes()))
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("compress", [True, False])
def test_a_write_that_is_cut_short_leaves_the_old_file(
  tmp_path, monkeypatch, compress
):
  records.dump(tmp_path, 4, **make_round(), compress=compress)
  (file,) = (tmp_path / "rollouts").iterdir()
  before = file.read_bytes()

  def killed(descriptor):
    raise SystemExit

  monkeypatch.setattr(os, "fsync", killed)
  for round in (4, 5):
    with pytest.raises(SystemExit):
      records.dump(tmp_path, round, **make_round(1), compress=compress)
  assert file.read_bytes() == before
  with pytest.raises(FileNotFoundError, match="no rollouts of round 5"):
    records.load(tmp_path, 5)


def test_a_line_tells_the_reader_what_happened(tmp_path):
  made = make_round()
  records.dump(tmp_path, 4, **made)
  (file,) = (tmp_path / "rollouts").glob("000004.jsonl.gz")
  lines = [json.loads(line) for line in gzip.open(file)]
  assert len(lines) == 6
  line = lines[5]
  assert (line["round"], line["step"], line["row"]) == (4, 8, [1, 2])
  assert (line["id"], line["domain"]) == ("f.jsonl:1", "math/gsm8k")
  assert (
    line["completion_tokens"] == made["rollout"].completions[1, 2, :2].tolist()
  )
  assert line["prompt_tokens"] == [7, 8, 9]
  assert (line["finish"], line["length"]) == ("stop", 2)
  assert (line["reward"], line["rewards"]["accuracy"]) == (1 / 3, 0)
  assert lines[1]["reward"] is None


def test_a_dump_is_a_record_of_pass_rates(tmp_path):
  records.dump(tmp_path, 0, **make_round())
  assert pass_rates.read(tmp_path / "rollouts") == {
    ("f.jsonl:0", "math/gsm8k"): 0.5,  # One of three was not graded.
    ("f.jsonl:1", "math/gsm8k"): 2 / 3,
  }


def change(lines, at, **changes):
  line = json.loads(lines[at]) | changes
  kept = {k: v for k, v in line.items() if v is not ...}
  return [*lines[:at], json.dumps(kept), *lines[at + 1 :]]


def dump_as(monkeypatch, workdir, count, of, seed=0, **options):
  """Dumps a round as `count` processes do, of which `of(p)` has prompt p."""
  monkeypatch.setattr(jax, "process_count", lambda: count)
  for process in range(count):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    made = make_round(seed)
    made["written"] = [
      text if of(i // 3) == process else None
      for i, text in enumerate(made["written"])
    ]
    records.dump(workdir, 4, **made, **options)


@pytest.mark.parametrize("compress", [True, False])
def test_each_process_writes_its_share(tmp_path, monkeypatch, compress):
  """A process that reads no completions writes nothing."""
  records.dump(tmp_path / "whole", 4, **make_round(), compress=compress)
  whole = records.load(tmp_path / "whole", 4)
  for of in (lambda p: 1 - p, lambda p: 2 * p, lambda p: 2):
    dump_as(monkeypatch, tmp_path, 3, of, compress=compress)
    files = {file.name.partition(".")[0]: file for file in names(tmp_path)}
    assert sorted(files) == [
      f"000004-{process:05}-of-00003" for process in sorted({of(0), of(1)})
    ]
    read = records.load(tmp_path, 4)
    assert jax.tree.all(jax.tree.map(same_bits, read.rollout, whole.rollout))
    assert read.examples == whole.examples and read.written == whole.written
    assert same_bits(read.scores.total, whole.scores.total)
    assert same_bits(read.advantages, whole.advantages)
    assert read.facts == whole.facts
  rates = pass_rates.read(tmp_path / "rollouts")
  assert rates == pass_rates.read(tmp_path / "whole" / "rollouts")


def names(workdir):
  return sorted((workdir / "rollouts").iterdir())


def test_files_of_another_number_of_processes_are_deleted(
  tmp_path, monkeypatch
):
  """A run that resumes may have more or fewer of them, in any order."""
  records.dump(tmp_path, 3, **make_round())
  for count in (4, 2, 1, 2):
    share = functools.partial(operator.mul, count > 1)
    dump_as(monkeypatch, tmp_path, count, share, seed=count)
    expected = make_round(count)
    read = records.load(tmp_path, 4)
    assert same_bits(read.rollout.logprobs, expected["rollout"].logprobs)
    assert len(names(tmp_path)) == 1 + min(count, 2)
  assert records.load(tmp_path, 3).step == 8


def test_a_share_that_is_missing_is_named(tmp_path, monkeypatch):
  dump_as(monkeypatch, tmp_path, 2, lambda p: p)
  names(tmp_path)[0].unlink()
  with pytest.raises(
    ValueError, match=r"of-00002\S*:3: .* 3 of 6 .* row \[0, 0\] is missing; "
  ):
    records.load(tmp_path, 4)
  # Of two starts, neither of which has ended with the round.
  dump_as(monkeypatch, tmp_path / "b", 3, lambda p: 2 * p)
  for file in names(tmp_path / "b"):
    file.rename(tmp_path / "rollouts" / file.name)
  with pytest.raises(ValueError, match=r"row \[1, 0\] is there twice"):
    records.load(tmp_path, 4)


BROKEN = {
  "cut": (lambda x: [*x[:2], x[2][:40]], ":3: not JSON"),
  "short": (lambda x: x[:4], r":4: .* 4 of 6 completions, and row \[1, 1\]"),
  "empty": (lambda x: [], ": no records in it"),
  "doubled": (lambda x: [x[0], *x], r":2: no record.*row \[0, 0\] .* twice"),
  "lost": (lambda x: [x[0], *x[2:]], r":5: .* 5 of 6 .* row \[0, 1\] is miss"),
  "beyond": (lambda x: change(x, 5, row=[2, 2]), r":6: no record.*\[2, 2\]"),
  "other": (lambda x: change(x, 5, shape=[3, 3, 3, 5]), r":6: .*\[3, 3, 3, 5"),
  "missing": (lambda x: change(x, 1, logprobs=...), ":2:.*no 'logprobs'"),
  "bytes": (
    lambda x: change(
      x, 1, logprobs=dict(dtype="float32", shape=[4], base64="AAAA")
    ),
    ":2: no record",
  ),
  "fewer": (lambda x: change(x, 3, completion_tokens=[1]), ":4:.*3 log-prob"),
  "finish": (lambda x: change(x, 3, finish="stopped"), ":4:.*'stopped'"),
  "reward": (lambda x: change(x, 0, reward="high"), ":1: no record"),
  "text": (lambda x: change(x, 5, completion=None), ":6:.*should be text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_record_is_named(tmp_path, name):
  breaks, message = BROKEN[name]
  records.dump(tmp_path, 4, **make_round(), compress=False)
  (file,) = (tmp_path / "rollouts").iterdir()
  lines = breaks(file.read_text().splitlines())
  file.write_text("".join(line + "\n" for line in lines))
  with pytest.raises(ValueError, match=f"000004.jsonl{message}"):
    records.load(tmp_path, 4)


def test_what_is_new_in_a_line_does_no_harm(tmp_path):
  records.dump(tmp_path, 4, **make_round(), compress=False)
  (file,) = (tmp_path / "rollouts").iterdir()
  lines = file.read_text().splitlines()
  for at in range(6):
    lines = change(lines, at, tools=["search"])
  file.write_text("\n".join(lines))
  assert records.load(tmp_path, 4).step == 8


def test_a_round_that_was_not_dumped_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="round 2, there is none"):
    records.load(tmp_path, 2)
  records.dump(tmp_path, 0, **make_round())
  with pytest.raises(FileNotFoundError, match=r"from 000000\.jsonl\.gz to"):
    records.load(tmp_path, 2)


def test_a_round_of_another_size_is_refused(tmp_path):
  records.dump(tmp_path, 0, **make_round())
  assert records.load(tmp_path, 0, size=(2, 3)).step == 8
  with pytest.raises(ValueError, match="2 prompts and 3 .* group_size 4"):
    records.load(tmp_path, 0, size=(2, 4))


def test_what_would_be_lost_is_refused(tmp_path):
  made = make_round()
  made["rollout"].logprobs[0, 0, 3] = -1.0  # Beyond its length of 1.
  with pytest.raises(ValueError, match="not 0 beyond the ends"):
    records.dump(tmp_path, 0, **made)
