"""The report of a pipeline."""

import json
import math
import re

import pytest

from r1jax.tools.report import stages

RECORD = {
  "stage": "score_zero",
  "experiment": "experiments/evaluate.py:tiny",
  "config": {},
  "code": {},
  "inputs": {
    "model.path": {"path": "zero/model", "sha256": "ab" * 32, "bytes": 8_400}
  },
  "outputs": {"results.json": {"sha256": "cd" * 32, "bytes": 999}},
  "seconds": 61.0,
}
RESULTS = {
  "sums": {"pass@1": 0.5, "pass@1_stderr": 0.03, "mean_length": 40.0},
  "words": {"pass@1": 0.75, "pass@1_stderr": 0.04, "mean_length": 20.0},
  "sums+1": {"pass@1": 0.0, "pass@1_stderr": 0.0, "mean_length": 60.0},
}


@pytest.fixture
def workdir(tmp_path):
  names = ["zero", "score_zero", "student"]
  (tmp_path / "pipeline.json").write_text(json.dumps(names))
  folder = tmp_path / "score_zero"
  folder.mkdir()
  (folder / "artefact.json").write_text(json.dumps(RECORD))
  (folder / "results.json").write_text(json.dumps(RESULTS))
  (tmp_path / "zero").mkdir()
  (tmp_path / "zero" / "artefact.json").write_text(
    json.dumps({k: v for k, v in RECORD.items() if k != "outputs"})
  )
  return tmp_path


def test_the_page_shows_every_stage_and_every_model(workdir):
  page = stages.build(workdir).read_text()
  states = re.findall(r"<td>(finished|stopped|waiting)</td>", page)
  assert states == ["stopped", "finished", "waiting"]
  assert "model.path: zero/model abababab, 8.4 kB" in page
  assert "results.json cdcdcdcd, 999 B" in page
  assert '<th scope="col">zero</th>' in page
  assert "50.0 ± 3.0" in page and "40.0" in page
  assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_a_mean_over_tasks_has_the_error_of_independent_tasks():
  accuracy, length = stages.tables({"zero": RESULTS})
  assert accuracy.models == ["zero"]
  error = 100 * math.hypot(0.03, 0.04) / 2
  assert accuracy.rows == [
    ("sums", ["50.0 ± 3.0"]),
    ("words", ["75.0 ± 4.0"]),
    ("sums+1", ["0.0 ± 0.0"]),
    ("mean", [f"62.5 ± {error:.1f}"]),
  ]
  assert length.rows[-1] == ("mean", ["30.0"])


def test_a_reward_without_a_table_of_its_own_gets_one():
  general = {
    "general": {"quality": 0.25, "quality_stderr": 0.125, "count": 3.0}
  }
  made = stages.tables({"base": RESULTS, "r1": general})
  assert [table.title for table in made] == ["Accuracy", "Length", "Quality"]
  assert made[-1].models == ["r1"]  # The others were not asked.
  assert made[-1].rows == [("general", ["0.250 ± 0.125"])]
  assert made[0].models == ["base"]
  assert made[0].rows[0] == ("sums", ["50.0 ± 3.0"])


def test_a_column_is_named_by_what_was_measured(workdir):
  """A model that is given, and a reward model that begins from another."""
  for name, path, output in (
    ("student", "given/base", "results.json"),
    ("judge", "zero/model", "model"),
  ):
    folder = workdir / name
    folder.mkdir()
    taken = {**RECORD["inputs"]["model.path"], "path": path}
    made = {output: RECORD["outputs"]["results.json"]}
    record = RECORD | {"inputs": {"model.path": taken}, "outputs": made}
    (folder / "artefact.json").write_text(json.dumps(record))
    (folder / "results.json").write_text(json.dumps(RESULTS))
  names = ["zero", "score_zero", "student", "judge"]
  (workdir / "pipeline.json").write_text(json.dumps(names))
  page = stages.build(workdir).read_text()
  columns = re.findall(r'<th scope="col">(zero|base|judge)</th>', page)
  assert columns[:3] == ["zero", "base", "judge"]


def test_results_that_are_malformed_are_named(workdir):
  file = workdir / "score_zero" / "results.json"
  for text in ("{", "[]", '{"sums": 3}'):
    file.write_text(text)
    with pytest.raises(ValueError, match=r"results.json: .* delete it"):
      stages.build(workdir)
