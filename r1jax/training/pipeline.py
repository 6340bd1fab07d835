"""A pipeline of experiments, each of which reads what earlier ones made.

    r1jax train --config=experiments/r1/pipeline.py:tiny --workdir=runs/r1

Every stage is an experiment of its own, in the folder WORKDIR/STAGE. What it
reads from other stages, or from elsewhere, is named in its inputs:

    c.given = dict(base="DIRECTORY")
    c.stages = (
      dict(
        name="cold_start",
        config="experiments/r1/cold_start.py",
        inputs={"model.path": "given/base"},
      ),
      dict(
        name="reasoning_rl",
        config="experiments/r1/reasoning_rl.py",
        inputs={"model.path": "cold_start/model"},
      ),
    )

WORKDIR/STAGE/artefact.json records what made the folder: the resolved config,
the versions of the code, the checksum of every input and, once the stage has
finished, the checksum of every output. From these records follows what remains
to be done: a stage that finished is not run again, one that was stopped
resumes, and one whose config or inputs have changed is run anew, after its old
folder was renamed to WORKDIR/STAGE.1, .2 and so on. A later version of the code
alone does not cause that.
"""

import gc
import json
import os
import pathlib
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections

from r1jax import config as configs
from r1jax.runtime import distributed, process
from r1jax.runtime import workdir as workdirs
from r1jax.runtime.console import Console, duration
from r1jax.training import artefacts

OUTPUTS = ("model", "kept", "results.json")  # What later stages may read.
STAGES = "pipeline.json"
GIVEN = "given"  # Stands for an earlier stage in inputs from elsewhere.


class Stage(NamedTuple):
  """One experiment of a pipeline."""

  name: str  # Of its folder in the workdir.
  config: str  # File of the experiment, as "experiments/r1/sft.py:tiny".
  # Key of the config, and what it is set to: the path of an output below the
  # workdir, or "given/NAME" for a path that the config of the pipeline names.
  inputs: Mapping[str, str] = {}
  overrides: Mapping[str, Any] = {}  # Other values of the config, by key.


def read_stages(
  stages: Sequence[Mapping[str, Any]], given: Mapping[str, str]
) -> list[Stage]:
  """The stages of a config, in their order.

  Raises ValueError for a stage that is incomplete or occurs twice, or whose
  input is neither given nor made by an earlier stage.
  """
  result, names = [], [GIVEN]
  for number, fields in enumerate(stages, 1):
    for key in fields:
      if key not in Stage._fields:
        raise ValueError(
          configs.unknown("key", key, Stage._fields, f"stages[{number - 1}]")
        )
    for key in ("name", "config"):
      if not isinstance(fields.get(key), str) or not fields[key]:
        raise ValueError(f"stage {number} of the pipeline has no {key!r}")
    stage = Stage(**fields)
    if not stage.name.replace("_", "").isalnum():
      raise ValueError(
        f"the stage {stage.name!r} names a folder: use letters, digits and _"
      )
    if stage.name in names:
      raise ValueError(f"two stages are named {stage.name!r}")
    for key, path in stage.inputs.items():
      maker, _, output = path.partition("/")
      if maker not in names:
        raise ValueError(
          f"stage {stage.name!r}: {key} = {path!r}: "
          + configs.unknown("earlier stage", maker, names)
        )
      known = given if maker == GIVEN else OUTPUTS
      if output not in known:
        raise ValueError(
          f"stage {stage.name!r}: {key} = {path!r}: "
          + configs.unknown("output", output, known)
        )
    names.append(stage.name)
    result.append(stage)
  if not result:
    raise ValueError("the pipeline has no stages")
  return result


def train(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Runs the stages that have not finished, in their order.

  Args:
    config: of the pipeline. With `only`, just that stage is run.
    workdir: in which every stage has a folder.

  Raises Interrupted after a signal, once the stage under way has saved its
  state, and ValueError for what is wrong with a stage.
  """
  workdirs.claim(workdir, {"loop": config.loop})
  root, given = pathlib.Path(workdir), config.given.to_dict()
  stages = read_stages(config.stages, given)
  console = Console(quiet=not distributed.is_first())
  names = [stage.name for stage in stages]
  if distributed.is_first():
    workdirs.write_json(root / STAGES, names)
  for number, stage in enumerate(stages, 1):
    if config.only and stage.name != config.only:
      continue
    distributed.raise_if_interrupted()
    paths = place_inputs(stage, root, given)
    settings = load(stage, paths)
    reason = distributed.from_first(
      lambda s=stage, paths=paths: prepare(s, paths, root)
    )
    if reason is None:
      console.note(f"stage {number} of {len(stages)}, {stage.name}: finished")
      continue
    console.note(f"stage {number} of {len(stages)}, {stage.name}: {reason}")
    console.note(f"  {command(stage, paths, root)}")
    began = time.monotonic()
    run(settings, root, stage.name)
    seconds = time.monotonic() - began
    distributed.from_first(lambda s=stage, t=seconds: finish(s, root, t))
    console.note(f"  {stage.name} took {duration(seconds)}")
  if distributed.is_first():
    console.note(table(root))


def place_inputs(
  stage: Stage, root: pathlib.Path, given: Mapping[str, str]
) -> dict[str, pathlib.Path]:
  """Where the inputs of a stage are, by the key of its config.

  Raises ValueError for a path that is not given.
  """
  places = {}
  for key, path in stage.inputs.items():
    maker, _, output = path.partition("/")
    if maker == GIVEN and not given[output]:
      raise ValueError(
        f"given.{output} is not set, which the stage {stage.name!r} reads as "
        f"{key}; use --config.given.{output}=PATH"
      )
    places[key] = pathlib.Path(given[output]) if maker == GIVEN else root / path
  return places


def command(
  stage: Stage, paths: Mapping[str, pathlib.Path], root: pathlib.Path
) -> str:
  """The command that runs the stage alone."""
  values = {**paths, **stage.overrides}
  flags = [f"--config.{key}={value}" for key, value in values.items()]
  place = f"--workdir={root / stage.name}"
  return shlex.join(
    ["r1jax", "train", f"--config={stage.config}", place, *flags]
  )


def under_way(root: pathlib.Path) -> pathlib.Path | None:
  """The folder of the first stage that was begun and has not finished.

  None if there is none, or if the workdir is not that of a pipeline.
  """
  for name in stage_names(root) if (root / STAGES).exists() else ():
    record = artefacts.read(root / name)
    if record and "outputs" not in record:
      return root / name
  return None


def load(
  stage: Stage, paths: Mapping[str, pathlib.Path]
) -> ml_collections.ConfigDict:
  """The config of a stage, with its inputs; it is checked."""
  values = stage.overrides | {key: str(path) for key, path in paths.items()}
  try:
    settings = configs.load(stage.config, values)
    configs.check(settings)
  except ValueError as error:
    raise ValueError(f"stage {stage.name!r}: {error}") from error
  return settings


def run(
  settings: ml_collections.ConfigDict, root: pathlib.Path, name: str
) -> None:
  """Runs or resumes one experiment in its folder."""
  place = workdirs.checkpoints(root)
  bucket = None
  if workdirs.is_remote(place):
    bucket = f"{place.removesuffix('/' + workdirs.CHECKPOINTS)}/{name}"
  workdirs.prepare(root / name, bucket)
  configs.loop(settings.loop).train(settings, str(root / name))
  # The next stage compiles programs of its own.
  jax.clear_caches()
  gc.collect()


def prepare(
  stage: Stage, paths: Mapping[str, pathlib.Path], root: pathlib.Path
) -> str | None:
  """Records what makes a stage's folder; returns why it is to be run.

  None if the stage has finished. An outdated folder is renamed first.

  Raises ValueError if an input is missing.
  """
  folder = root / stage.name
  before = artefacts.read(folder)
  inputs = {}
  for key, path in stage.inputs.items():
    maker, _, output = path.partition("/")
    if not paths[key].exists():
      remedy = (
        f"set --config.given.{output}"
        if maker == GIVEN
        else f"run the stage {maker!r} first, or delete {root / maker} to run "
        "it again"
      )
      raise ValueError(
        f"stage {stage.name!r} reads {paths[key]}, which does not exist; "
        f"{remedy}"
      )
    known = artefacts.read(root / maker).get("outputs", {}).get(output)
    known = known or before.get("inputs", {}).get(key)
    inputs[key] = {"path": path} | artefacts.checksum(paths[key], known)
  settings = configs.load(stage.config, stage.overrides).to_dict()
  record = {
    "stage": stage.name,
    "experiment": stage.config,
    "config": json.loads(json.dumps(settings, default=str)),
    "inputs": inputs,
    "code": process.versions(),
  }
  reason = "not run before"
  if before:
    changes = artefacts.differences(before, record)
    if not changes and "outputs" in before:
      return None
    reason = "resumes" if not changes else f"run anew: {'; '.join(changes)}"
    if not changes:
      record = before
    else:
      number = 1
      while (kept := root / f"{stage.name}.{number}").exists():
        number += 1
      os.replace(folder, kept)
      reason += f"; what it made before is in {kept}"
  folder.mkdir(parents=True, exist_ok=True)
  workdirs.write_json(folder / artefacts.RECORD, record)
  return reason


def finish(stage: Stage, root: pathlib.Path, seconds: float) -> None:
  """Completes the record of a stage with its outputs.

  Args:
    stage: that has finished.
    root: the workdir of the pipeline.
    seconds: since its last start.
  """
  folder = root / stage.name
  outputs = {
    name: artefacts.checksum(folder / name)
    for name in OUTPUTS
    if (folder / name).exists()
  }
  record = artefacts.read(folder) | {
    "outputs": outputs,
    "seconds": round(seconds, 1),
  }
  workdirs.write_json(folder / artefacts.RECORD, record)


def table(root: pathlib.Path) -> str:
  """The state of every stage as a table: one line each.

  Raises ValueError if the folder holds no pipeline.
  """
  names = stage_names(root)
  width = max(map(len, names))
  lines = [f"{'stage':{width}}  state       time      outputs"]
  for name in names:
    record = artefacts.read(root / name)
    state = "waiting" if not record else "stopped"
    time_taken, outputs = "", ""
    if "outputs" in record:
      state, time_taken = "finished", duration(record["seconds"])
      outputs = ", ".join(
        f"{output} {each['sha256'][:8]}"
        for output, each in record["outputs"].items()
      )
    lines.append(f"{name:{width}}  {state:10}  {time_taken:8}  {outputs}")
  return "\n".join(line.rstrip() for line in lines)


def stage_names(root: pathlib.Path) -> list[str]:
  """The names of the stages in a pipeline's workdir, in their order.

  Raises ValueError if the folder holds no pipeline.
  """
  file = pathlib.Path(root) / STAGES
  if not file.exists():
    raise ValueError(f"{file} is missing; use the --workdir of a pipeline")
  return json.loads(file.read_bytes())


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for stages that do not fit each other."""
  # Paths may be set later.
  paths = {name: path or name for name, path in config.given.items()}
  stages = read_stages(config.stages, paths)
  names = [stage.name for stage in stages]
  if config.only and config.only not in names:
    raise ValueError(configs.unknown("stage", config.only, names))
  for stage in stages:
    settings = load(stage, place_inputs(stage, pathlib.Path("WORKDIR"), paths))
    if settings.get("cpu_devices") != config.cpu_devices:
      raise ValueError(
        f"stage {stage.name!r} has cpu_devices {settings.get('cpu_devices')}, "
        f"and the pipeline {config.cpu_devices}; all stages run in one process"
      )


def given(**paths: str) -> None:
  """The config section: files and folders from elsewhere, by name."""


SECTIONS = {"given": given}
FIELDS = ("stages", "only", "cpu_devices")
