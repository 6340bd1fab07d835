"""The command that evaluates a model on files of problems."""

import json

import pytest
import serving

EVALUATE = ("-m", "r1jax", "evaluate")


@pytest.fixture
def files(tmp_path):
  for name in ("a", "b"):
    rows = [
      {"problem": f"State the answer: {i} + 1 =", "answer": str(i + 1)}
      for i in range(3)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / f"{name}.jsonl").write_text(text)
  return tmp_path


def arguments(files, *more, tasks=("gsm8k=a.jsonl", "math500=b.jsonl")):
  paths = [t.replace("=", f"={files}/", 1) for t in tasks]
  return (
    *EVALUATE,
    "--model=r1jax/base",
    f"--tasks={','.join(paths)}",
    f"--workdir={files / 'run'}",
    "--max_tokens=24",
    "--samples=2",
    "--workers=1",
    *more,
  )


@pytest.mark.slow
def test_tasks_are_evaluated_and_a_second_start_adds_what_is_missing(
  files, python
):
  done = python(*arguments(files))
  assert done.returncode == 0, done.stderr
  assert "gsm8k" in done.stdout and "pass@1" in done.stdout
  results = json.loads((files / "run" / "results.json").read_text())
  assert results.keys() == {"gsm8k", "math500"}
  assert 0 <= results["gsm8k"]["pass@1"] <= 1
  items = files / "run" / "items" / "gsm8k.jsonl"
  assert len(items.read_text().splitlines()) == 6
  before = items.stat().st_mtime_ns
  (files / "run" / "items" / "math500.jsonl").unlink()
  again = python(*arguments(files))
  assert json.loads((files / "run" / "results.json").read_text()) == results
  assert "math500: 3 problems" in again.stdout
  assert "gsm8k: 3 problems" not in again.stdout
  assert items.stat().st_mtime_ns == before
  other = python(*arguments(files, "--temperature=0.9"))
  assert other.returncode == 2
  assert "belongs to another config: temperature was 0.6" in other.stderr


@pytest.mark.slow
def test_a_model_behind_an_endpoint_is_evaluated_alike(files, python):
  """Behind our own server; what it has said is not asked again."""
  pytest.importorskip("uvicorn")
  from r1jax.tools import model

  with serving.running(model.load("r1jax/base", cpu_devices=1)) as server:
    more = ("--model=demo", f"--base_url={server.url}")
    done = python(*arguments(files, *more))
    assert done.returncode == 0, done.stderr
    results = json.loads((files / "run" / "results.json").read_text())
    assert 0 < results["gsm8k"]["mean_length"] <= 24
    lines = (files / "run/items/gsm8k.jsonl").read_text().splitlines()
    assert len(lines) == 6
    texts = [json.loads(line)["completion"]["text"] for line in lines]
    assert all(isinstance(text, str) for text in texts)
    assert any("<think>" in text for text in texts)  # Kept apart by the server.
  (files / "run" / "items" / "math500.jsonl").unlink()
  # The server is gone, and not needed.
  again = python(*arguments(files, *more))
  assert again.returncode == 0, again.stderr
  assert json.loads((files / "run" / "results.json").read_text()) == results


@pytest.mark.parametrize(
  "more, message",
  [
    (("--tasks=gsm=f.jsonl",), "unknown benchmark 'gsm'"),
    (("--tasks=gsm8k",), "name a file of problems, as in gsm8k=FILE"),
    (("--tasks=gsm8k=a,gsm8k=b",), "'gsm8k' occurs twice"),
    (("--samples=0",), "--samples=0: it must be at least 1"),
    (("--top_p=0",), "--top_p=0.0: it must be in (0, 1]"),
    (("--temperature=-1",), "--temperature=-1.0: it must be at least 0"),
    (("--convention=papr",), "did you mean 'paper'"),
    (("--modl=x",), "did you mean --model"),
    (("--model=",), "--model is not set"),
    (("--base_url=http://x", "--template=chat"), "--template: the server of"),
  ],
)
def test_what_is_wrong_is_one_line(files, python, more, message):
  done = python(*arguments(files, *more))
  assert done.returncode == 2
  assert message in done.stderr and done.stderr.count("\n") == 1


def test_a_file_that_is_missing_is_named(files, python):
  done = python(*arguments(files, tasks=("gsm8k=none.jsonl",)))
  assert done.returncode == 2
  assert "none.jsonl" in done.stderr and done.stderr.count("\n") == 1
