"""A pipeline of experiments, each of which reads what earlier ones made.

    r1jax train --config=experiments/r1/pipeline.py:tiny --workdir=runs/r1

Every stage is an experiment of its own, in the folder WORKDIR/STAGE. What it
reads from other stages is named in its inputs:

    c.stages = (
      dict(name="cold_start", config="experiments/r1/cold_start.py"),
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
import hashlib
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

OUTPUTS = ("model", "kept", "results.json")  # What later stages may read.
RECORD, STAGES = "artefact.json", "pipeline.json"


class Stage(NamedTuple):
  """One experiment of a pipeline."""

  name: str  # Of its folder in the workdir.
  config: str  # File of the experiment, as "experiments/r1/sft.py:tiny".
  # Key of the config, and the path below the workdir that it is set to.
  inputs: Mapping[str, str] = {}
  overrides: Mapping[str, Any] = {}  # Other values of the config, by key.


def read_stages(stages: Sequence[Mapping[str, Any]]) -> list[Stage]:
  """The stages of a config, in their order.

  Raises ValueError for a stage that is incomplete or occurs twice, or whose
  input is not made by an earlier stage.
  """
  result, names = [], []
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
      if output not in OUTPUTS:
        raise ValueError(
          f"stage {stage.name!r}: {key} = {path!r}: "
          + configs.unknown("output", output, OUTPUTS)
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
  stages, root = read_stages(config.stages), pathlib.Path(workdir)
  console = Console(quiet=not distributed.is_first())
  names = [stage.name for stage in stages]
  if distributed.is_first():
    _write(root / STAGES, names)
  for number, stage in enumerate(stages, 1):
    if config.only and stage.name != config.only:
      continue
    distributed.raise_if_interrupted()
    settings = load(stage, root)
    reason = distributed.from_first(lambda s=stage: prepare(s, root))
    if reason is None:
      console.note(f"stage {number} of {len(stages)}, {stage.name}: finished")
      continue
    console.note(f"stage {number} of {len(stages)}, {stage.name}: {reason}")
    console.note(f"  {command(stage, root)}")
    began = time.monotonic()
    run(settings, root, stage.name)
    seconds = time.monotonic() - began
    distributed.from_first(lambda s=stage, t=seconds: finish(s, root, t))
    console.note(f"  {stage.name} took {duration(seconds)}")
  if distributed.is_first():
    console.note(table(root))


def command(stage: Stage, root: pathlib.Path) -> str:
  """The command that runs the stage alone."""
  values = {
    key: str(root / path) for key, path in stage.inputs.items()
  } | stage.overrides
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
    record = read(root / name)
    if record and "outputs" not in record:
      return root / name
  return None


def load(stage: Stage, root: pathlib.Path) -> ml_collections.ConfigDict:
  """The config of a stage, with its inputs; it is checked."""
  paths = {key: str(root / path) for key, path in stage.inputs.items()}
  try:
    settings = configs.load(stage.config, {**stage.overrides, **paths})
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


def prepare(stage: Stage, root: pathlib.Path) -> str | None:
  """Records what makes a stage's folder; returns why it is to be run.

  None if the stage has finished. An outdated folder is renamed first.

  Raises ValueError if an input is missing.
  """
  folder = root / stage.name
  inputs = {}
  for key, path in stage.inputs.items():
    if not (root / path).exists():
      maker, _, _ = path.partition("/")
      raise ValueError(
        f"stage {stage.name!r} reads {root / path}, which does not exist; run "
        f"the stage {maker!r} first, or delete {root / maker} to run it again"
      )
    maker, _, output = path.partition("/")
    known = read(root / maker).get("outputs", {}).get(output)
    inputs[key] = {"path": path} | checksum(root / path, known)
  settings = configs.load(stage.config, stage.overrides).to_dict()
  record = {
    "stage": stage.name,
    "experiment": stage.config,
    "config": json.loads(json.dumps(settings, default=str)),
    "inputs": inputs,
    "code": process.versions(),
  }
  before = read(folder)
  reason = "not run before"
  if before:
    changes = differences(before, record)
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
  _write(folder / RECORD, record)
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
    name: checksum(folder / name)
    for name in OUTPUTS
    if (folder / name).exists()
  }
  record = read(folder) | {"outputs": outputs, "seconds": round(seconds, 1)}
  _write(folder / RECORD, record)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """What has changed between two records, in words; [] if nothing has.

  Periods and limits of a stage, and the way in which it is computed, may
  change on a resume (see `workdir.claim`); here they make another artefact.
  """
  changes = [
    *workdirs.describe_changes(before["config"], now["config"]).values()
  ]
  was = {key: each["sha256"] for key, each in before["inputs"].items()}
  for key, each in now["inputs"].items():
    if was.get(key) != each["sha256"]:
      changes.append(f"its input {each['path']} ({key}) has changed")
  for key in before["inputs"].keys() - now["inputs"].keys():
    changes.append(f"it reads no {key} any more")
  return changes


def read(folder: pathlib.Path) -> dict[str, Any]:
  """The record of a stage; {} if it was never begun.

  Raises ValueError for a damaged record.
  """
  file = folder / RECORD
  if not file.exists():
    return {}
  try:
    return json.loads(file.read_bytes())
  except ValueError as error:
    raise ValueError(
      f"{file} is damaged ({error}); delete {folder} to run the stage again"
    ) from None


def checksum(
  path: pathlib.Path, known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """SHA-256, size and time of a file, or of all files below a folder.

  The SHA-256 covers contents, and names relative to the path.

  Args:
    path: of the file or folder.
    known: what this function returned earlier. Files of the same total size
      that have not been written since are not read again.
  """
  files = [path]
  if path.is_dir():
    files = sorted(file for file in path.rglob("*") if file.is_file())
  stats = [file.stat() for file in files]
  facts = {
    "files": len(files),
    "bytes": sum(stat.st_size for stat in stats),
    "modified_ns": max((stat.st_mtime_ns for stat in stats), default=0),
  }
  if known and facts == {key: known.get(key) for key in facts}:
    return dict(known)
  digest = hashlib.sha256()
  for file in files:
    with open(file, "rb") as stream:
      content = hashlib.file_digest(stream, "sha256").hexdigest()
    digest.update(f"{file.relative_to(path)} {content}\n".encode())
  return {"sha256": digest.hexdigest()} | facts


def table(root: pathlib.Path) -> str:
  """The state of every stage as a table: one line each.

  Raises ValueError if the folder holds no pipeline.
  """
  names = stage_names(root)
  width = max(map(len, names))
  lines = [f"{'stage':{width}}  state       time      outputs"]
  for name in names:
    record = read(root / name)
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
  stages = read_stages(config.stages)
  names = [stage.name for stage in stages]
  if config.only and config.only not in names:
    raise ValueError(configs.unknown("stage", config.only, names))
  for stage in stages:
    settings = load(stage, pathlib.Path("WORKDIR"))
    if settings.get("cpu_devices") != config.cpu_devices:
      raise ValueError(
        f"stage {stage.name!r} has cpu_devices {settings.get('cpu_devices')}, "
        f"and the pipeline {config.cpu_devices}; all stages run in one process"
      )


def _write(file: pathlib.Path, value: Any) -> None:
  """Replaces a JSON file atomically."""
  draft = file.with_name(file.name + ".tmp")
  draft.write_text(json.dumps(value, indent=2) + "\n")
  os.replace(draft, file)


SECTIONS: dict[str, Any] = {}
FIELDS = ("stages", "only", "cpu_devices")
