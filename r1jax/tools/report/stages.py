"""The report of a pipeline: the state of its stages, and their models compared.

The models are the columns of the tables, as in the paper's table of stages
(arXiv:2501.12948v2, Table 3). A number is a mean over problems with its
standard error.
"""

import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from r1jax.runtime.console import duration
from r1jax.tools.report import command
from r1jax.training import artefacts, pipeline

PAGE = "report.html"
# (title, metric, factor, format, what it is)
TABLES = (
  ("Accuracy", "pass@1", 100.0, ".1f", "pass@1 in percent"),
  (
    "Language consistency",
    "language",
    100.0,
    ".1f",
    "words of the thought in the language of the question, in percent",
  ),
  ("Format", "format", 100.0, ".1f", "completions in the format, in percent"),
  ("Length", "mean_length", 1.0, ".1f", "mean tokens of a completion"),
  ("Truncated", "truncated", 100.0, ".1f", "cut at the limit, in percent"),
)
MEAN = "mean"


class Row(NamedTuple):
  """One stage, for the table of states."""

  name: str
  experiment: str
  state: str
  time: str
  inputs: list[str]
  outputs: list[str]
  report: str | None  # Path of the stage's own report, relative to the page.


class Table(NamedTuple):
  """One metric of all models."""

  title: str
  caption: str
  models: list[str]
  rows: list[tuple[str, list[str]]]  # A task, and a cell for each model.


def is_pipeline(workdir: str | Path) -> bool:
  """Whether a workdir is that of a pipeline."""
  return (Path(workdir) / pipeline.STAGES).exists()


def build(workdir: str | Path) -> Path:
  """Writes the report of a pipeline, and those of its stages.

  Returns the page's path. Raises ValueError for files that are malformed.
  """
  root = Path(workdir)
  names = pipeline.stage_names(root)
  rows = [_row(root, name) for name in names]
  results = {}
  for name in names:
    file = root / name / "results.json"
    if file.exists():
      results[_model(root, name)] = read_results(file)
  page = _page(name=root.resolve().name, stages=rows, tables=tables(results))
  (root / PAGE).write_bytes(page.encode("utf-8", "replace"))
  return root / PAGE


def tables(
  results: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> list[Table]:
  """A table for every metric that any model has.

  Args:
    results: metrics by model and task, as evaluations write them.
  """
  models = [*results.values()]
  tasks = list(dict.fromkeys(task for model in models for task in model))
  measured = {
    metric for model in models for task in model.values() for metric in task
  }
  known = {metric for _, metric, *_ in TABLES}
  others = sorted(
    name
    for name in measured - known
    if f"{name}_stderr" in measured  # Rewards; a count has no error.
  )
  made = []
  for title, metric, factor, form, caption in (
    *TABLES,
    *((_title(name), name, 1.0, ".3f", "mean") for name in others),
  ):
    has = lambda model, task, metric=metric: metric in model.get(task, {})
    columns = {
      name: model
      for name, model in results.items()
      if any(has(model, task) for task in tasks)
    }
    models = [*columns.values()]
    rows = {
      task: [model.get(task, {}) for model in models]
      for task in tasks
      if any(has(model, task) for model in models)
    }
    trained = [task for task in rows if not task.endswith("+1")]
    if len(trained) > 1:
      rows[MEAN] = [_mean(model, trained, metric) for model in models]
    if rows:
      cells = {
        task: [_cell(numbers, metric, factor, form) for numbers in row]
        for task, row in rows.items()
      }
      made.append(Table(title, caption, [*columns], [*cells.items()]))
  return made


def _title(metric: str) -> str:
  return metric.capitalize().replace("_", " ")


def read_results(file: Path) -> dict[str, dict[str, float]]:
  """The metrics of each task. Raises ValueError if the file is malformed."""
  try:
    results = json.loads(file.read_bytes())
    for task in results.values():
      _ = {**task}
  except (ValueError, AttributeError, TypeError) as error:
    raise ValueError(
      f"{file}: {error}; delete it, and run the pipeline again"
    ) from None
  return results


def _model(root: Path, name: str) -> str:
  """The model that a stage has measured: its own, or that of another stage."""
  record = artefacts.read(root / name)
  taken = record.get("inputs", {}).get("model.path", {}).get("path", name)
  if "model" in record.get("outputs", {}):
    return name
  maker, _, output = taken.partition("/")
  return output if maker == pipeline.GIVEN else maker


def _mean(
  model: Mapping[str, Mapping[str, float]], tasks: Sequence[str], metric: str
) -> dict[str, float]:
  """The mean over tasks, which are independent samples of problems."""
  if any(metric not in model.get(task, {}) for task in tasks):
    return {}
  values = [model[task][metric] for task in tasks]
  errors = [model[task].get(f"{metric}_stderr", math.nan) for task in tasks]
  return {
    metric: float(np.mean(values)),
    f"{metric}_stderr": math.sqrt(sum(e * e for e in errors)) / len(tasks),
  }


def _cell(
  numbers: Mapping[str, float], metric: str, factor: float, form: str
) -> str:
  value = numbers.get(metric)
  if value is None or math.isnan(value):
    return "–"
  error = numbers.get(f"{metric}_stderr", math.nan)
  text = format(value * factor, form)
  return text if math.isnan(error) else f"{text} ± {error * factor:{form}}"


def _row(root: Path, name: str) -> Row:
  record = artefacts.read(root / name)
  finished = "outputs" in record
  state = "finished" if finished else "stopped" if record else "waiting"
  report = None
  if (root / name / "metrics.jsonl").exists():
    command.build([root / name])
    report = f"{name}/{PAGE}"
  describe = lambda label, each: (
    f"{label} {each['sha256'][:8]}, {_bytes(each['bytes'])}"
  )
  return Row(
    name,
    str(record.get("experiment", "")),
    state,
    duration(record["seconds"]) if finished else "",
    [
      f"{key}: {describe(each['path'], each)}"
      for key, each in record.get("inputs", {}).items()
    ],
    [describe(name, each) for name, each in record.get("outputs", {}).items()],
    report,
  )


def _bytes(count: int) -> str:
  for unit in ("B", "kB", "MB", "GB"):
    if count < 1000:
      return f"{count:.3g} {unit}"
    count /= 1000
  return f"{count:.3g} TB"


def _page(**fields: Any) -> str:
  folder = resources.files("r1jax.tools.report") / "page"
  environment = jinja2.Environment(
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  style = (folder / "report.css").read_text("utf-8")
  page = (folder / "stages.html").read_text("utf-8")
  return environment.from_string(page).render(style=Markup(style), **fields)
