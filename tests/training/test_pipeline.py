"""The order of stages, and what is run again after a change or a stop."""

import json
import pathlib
import sys
import types

import pytest

from r1jax import config as configs
from r1jax.runtime import interrupt
from r1jax.training import artefacts, pipeline

EXPERIMENT = """
from ml_collections import ConfigDict

def get_config(variant="one"):
  c = ConfigDict()
  c.loop = "toy"
  c.cpu_devices = 1
  c.seed = 0
  c.letter = variant[0]
  c.model = dict(path="")
  return c
"""


def section(*, path):
  del path


@pytest.fixture
def toy(monkeypatch):
  """A loop whose model is that of its input and a letter; its runs, in order.

  It stops once in the stages that `toy.stops` names, after it has saved.
  """
  toy = types.ModuleType("toy")
  toy.runs, toy.stops = [], []

  def train(config, workdir):
    folder = pathlib.Path(workdir)
    toy.runs.append(folder.name)
    (folder / "saved").write_text("half")
    if folder.name in toy.stops:
      toy.stops.remove(folder.name)
      raise interrupt.Interrupted(15)
    before = ""
    if config.model.path:
      before = pathlib.Path(config.model.path, "weights").read_text()
    (folder / "model").mkdir(exist_ok=True)
    weights = f"{before}{config.letter}{config.seed}"
    (folder / "model" / "weights").write_text(weights)

  toy.train, toy.SECTIONS = train, {"model": section}
  toy.FIELDS = ("cpu_devices", "seed", "letter")
  monkeypatch.setitem(sys.modules, "toy", toy)
  monkeypatch.setitem(configs.LOOPS, "toy", "toy")
  return toy


@pytest.fixture
def make(tmp_path, toy):
  """`make(*stages, only="", given={})`: the config of a pipeline of toys."""
  file = tmp_path / "toy_experiment.py"
  file.write_text(EXPERIMENT)

  def make(*stages, only="", given={}):
    config = tmp_path / "pipeline_experiment.py"
    config.write_text(
      "from ml_collections import ConfigDict\n"
      "def get_config():\n"
      f"  return ConfigDict(dict(loop='pipeline', cpu_devices=1, "
      f"only={only!r}, given={given!r}, stages={stages!r}))\n"
    )
    return configs.load(str(config))

  make.file = str(file)
  return make


def stage(make, name, variant="a", reads=None, **overrides):
  inputs = {"model.path": f"{reads}/model"} if reads else {}
  return dict(
    name=name,
    config=f"{make.file}:{variant}",
    inputs=inputs,
    overrides=overrides,
  )


def three(make, **of_second):
  return (
    stage(make, "base"),
    stage(make, "zero", "b", "base", **of_second),
    stage(make, "student", "c", "base"),
  )


def run(config, workdir):
  configs.check(config)
  pipeline.train(config, str(workdir))


def test_each_stage_reads_what_earlier_ones_made(make, toy, tmp_path):
  run(make(*three(make)), tmp_path / "r1")
  assert toy.runs == ["base", "zero", "student"]
  weights = lambda name: (tmp_path / f"r1/{name}/model/weights").read_text()
  assert [*map(weights, toy.runs)] == ["a0", "a0b0", "a0c0"]


def test_a_stage_reads_what_is_given(make, toy, tmp_path, capsys):
  """From elsewhere; a change of it runs the stage again."""
  outside = tmp_path / "outside"
  outside.mkdir()
  (outside / "weights").write_text("x")
  begin = stage(make, "base") | dict(inputs={"model.path": "given/start"})
  config = make(begin, given=dict(start=str(outside)))
  for expected in ("xa0", "xa0", "yya0"):
    if expected == "yya0":
      (outside / "weights").write_text("yy")
    run(config, tmp_path / "r1")
    weights = tmp_path / "r1" / "base" / "model" / "weights"
    assert weights.read_text() == expected
  assert toy.runs == ["base", "base"]
  text = capsys.readouterr().out
  assert "its input given/start (model.path) has changed" in text
  assert f"--config.model.path={outside}" in text


@pytest.mark.parametrize(
  "given, message",
  [
    (dict(start=""), "given.start is not set, which the stage 'base' reads"),
    (dict(strat="a"), "unknown output 'start'; did you mean 'strat'"),
    (
      dict(start="/none"),
      "reads /none, which does not exist; set --config.giv",
    ),
  ],
)
def test_what_is_not_given_is_named(make, toy, tmp_path, given, message):
  begin = stage(make, "base") | dict(inputs={"model.path": "given/start"})
  with pytest.raises(ValueError, match=message):
    run(make(begin, given=given), tmp_path / "r1")


def test_a_finished_stage_is_not_run_again(make, toy, tmp_path, capsys):
  run(make(*three(make)), tmp_path / "r1")
  run(make(*three(make)), tmp_path / "r1")
  assert toy.runs == ["base", "zero", "student"]
  assert "stage 2 of 3, zero: finished" in capsys.readouterr().out


def test_a_change_runs_again_what_depends_on_it_and_says_why(
  make, toy, tmp_path, capsys
):
  run(make(*three(make)), tmp_path / "r1")
  toy.runs.clear()
  run(make(*three(make, seed=1)), tmp_path / "r1")
  assert toy.runs == ["zero"]
  out = capsys.readouterr().out
  assert "zero: run anew: seed was 0, is 1; what it made before is in" in out
  assert (tmp_path / "r1/zero.1/model/weights").read_text() == "a0b0"
  toy.runs.clear()
  changed = stage(make, "base", "x"), *three(make, seed=1)[1:]
  run(make(*changed), tmp_path / "r1")
  assert toy.runs == ["base", "zero", "student"]
  out = capsys.readouterr().out
  assert "base: run anew: letter was 'a', is 'x'" in out
  why = "run anew: its input base/model (model.path) has changed"
  assert f"zero: {why}" in out and f"student: {why}" in out


def test_an_output_that_was_changed_by_hand_is_noticed(make, toy, tmp_path):
  run(make(*three(make)), tmp_path / "r1")
  toy.runs.clear()
  (tmp_path / "r1/base/model/weights").write_text("??")
  run(make(*three(make)), tmp_path / "r1")
  assert toy.runs == ["zero", "student"]


def test_an_input_that_is_made_again_alike_changes_nothing(make, toy, tmp_path):
  """Contents count, not times; nor does the place of the workdir."""
  run(make(*three(make)), tmp_path / "r1")
  (tmp_path / "r1").rename(tmp_path / "moved")
  (tmp_path / "moved/base/model/weights").write_text("a0")
  toy.runs.clear()
  run(make(*three(make)), tmp_path / "moved")
  assert toy.runs == []


@pytest.mark.parametrize("where", ["base", "zero", "student"])
def test_a_stopped_pipeline_ends_as_the_straight_one(
  make, toy, tmp_path, where, capsys
):
  run(make(*three(make)), tmp_path / "straight")
  toy.stops.append(where)
  with pytest.raises(interrupt.Interrupted):
    run(make(*three(make)), tmp_path / "stopped")
  assert pipeline.under_way(tmp_path / "stopped").name == where
  run(make(*three(make)), tmp_path / "stopped")
  assert f"{where}: resumes" in capsys.readouterr().out
  assert toy.runs.count(where) == 3
  assert pipeline.under_way(tmp_path / "stopped") is None
  outputs = lambda place, name: {
    key: value["sha256"]
    for key, value in artefacts.read(tmp_path / place / name)["outputs"].items()
  }
  for name in ("base", "zero", "student"):
    assert outputs("stopped", name) == outputs("straight", name) != {}


def test_a_record_says_what_made_the_artefact(make, toy, tmp_path):
  run(make(*three(make)), tmp_path / "r1")
  base, zero = (artefacts.read(tmp_path / "r1" / n) for n in ("base", "zero"))
  assert zero["config"]["letter"] == "b" and zero["config"]["seed"] == 0
  assert zero["code"].keys() == {"r1jax", "jax"}
  made, taken = base["outputs"]["model"], zero["inputs"]["model.path"]
  assert taken == {"path": "base/model"} | made
  assert made["bytes"] == 2 and len(made["sha256"]) == 64


def test_one_stage_can_be_run_alone(make, toy, tmp_path):
  with pytest.raises(ValueError, match="run the stage 'base' first"):
    run(make(*three(make), only="zero"), tmp_path / "r1")
  run(make(*three(make), only="base"), tmp_path / "r1")
  run(make(*three(make), only="student"), tmp_path / "r1")
  assert toy.runs == ["base", "student"]
  states = [
    line.split()[:2] for line in pipeline.table(tmp_path / "r1").split("\n")
  ]
  assert states[1:] == [
    ["base", "finished"],
    ["zero", "waiting"],
    ["student", "finished"],
  ]


def test_the_command_of_a_stage_is_shown(make, toy, tmp_path, capsys):
  run(make(*three(make, seed=3)), tmp_path / "r1")
  assert (
    f"r1jax train --config={make.file}:b --workdir={tmp_path}/r1/zero "
    f"--config.model.path={tmp_path}/r1/base/model --config.seed=3"
  ) in capsys.readouterr().out


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(reads="bas"), "unknown earlier stage 'bas'; did you mean 'base'"),
    (dict(inputs={"model.path": "base/modle"}), "did you mean 'model'"),
    (dict(inputs={"model.path": "zero/model"}), "unknown earlier stage 'zero'"),
    (dict(inputs={"model.pat": "base/model"}), "did you mean 'model.path'"),
    (dict(overrides={"sed": 1}), "stage 'zero': unknown config key 'sed'"),
    (dict(name="base"), "two stages are named 'base'"),
    (dict(name="a/b"), "names a folder"),
    (dict(confg=""), "unknown key 'stages.1..confg'; did you mean"),
    (dict(config=""), "stage 2 of the pipeline has no 'config'"),
    (dict(overrides={"cpu_devices": 2}), "all stages run in one process"),
  ],
)
def test_what_is_wrong_with_a_stage_is_said(make, toy, change, message):
  second = stage(make, "zero", "b", change.pop("reads", "base")) | change
  with pytest.raises(ValueError, match=message):
    configs.check(make(stage(make, "base"), second))


def test_a_damaged_record_says_what_to_do(make, toy, tmp_path):
  run(make(*three(make)), tmp_path / "r1")
  (tmp_path / "r1/zero/artefact.json").write_text('{"stage": "ze')
  with pytest.raises(ValueError, match=r"artefact.json is damaged .* delete"):
    run(make(*three(make)), tmp_path / "r1")


def test_records_are_json(make, toy, tmp_path):
  run(make(*three(make)), tmp_path / "r1")
  assert json.loads((tmp_path / "r1/pipeline.json").read_text()) == [
    "base", "zero", "student",
  ]  # fmt: skip
