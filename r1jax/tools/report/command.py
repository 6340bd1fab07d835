"""Report one or several runs as one self-contained HTML page.

    r1jax report WORKDIR [WORKDIR ...] [--output=PAGE.html]

It writes `report.html` to the first workdir (or to --output), and every chart
as a PNG to `figures/` beside the page. The page loads no other files. It reads
`metrics.jsonl` and, if they exist, `completions.jsonl`, `summary.json` and
`config.json`. The same files give the same page, byte for byte. For the workdir
of a pipeline, the page has its stages and compares their models.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from absl import flags
from markupsafe import Markup

from r1jax.tools.report import charts, figures
from r1jax.tools.report.figures import Curve

FIXED_COLUMNS = ("run", "step", "task", "prompt", "completion", "answer")
LAST_COLUMNS = ("reward", "advantage", "length", "finish")
MIXED, MAX_MIXED = 0.95, 6  # See `mixed_completions`.


class Run(NamedTuple):
  """The files of a training run, parsed."""

  name: str
  curves: Mapping[str, Curve]
  completions: Sequence[Mapping[str, Any]]
  summary: Mapping[str, Any]
  config: Mapping[str, Any]


class Change(NamedTuple):
  """One headline: a quantity before and after training."""

  label: str
  before: str  # "" if there is no value before training.
  after: str
  note: str


def read(workdir: Path, name: str) -> Run:
  """The run in `workdir`.

  Raises:
    ValueError: there is no such run, or one of its files is malformed.
  """
  if not workdir.is_dir():
    raise ValueError(f"{workdir} is not a directory; use the workdir of a run")
  metrics = workdir / "metrics.jsonl"
  if not metrics.exists():
    raise ValueError(
      f"{metrics} is missing; use the --workdir of a run that has trained"
    )
  rows = list(read_lines(metrics))
  if not rows:
    raise ValueError(f"{metrics} has no rows; wait for the first round")
  return Run(
    name,
    charts.curves(rows),
    list(read_lines(workdir / "completions.jsonl")),
    _read_object(workdir / "summary.json"),
    _read_object(workdir / "config.json"),
  )


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
  """The JSON objects of `path`, each with a "step"; none if it is missing.

  A malformed last line, which a killed run leaves, is skipped.

  Raises:
    ValueError: another line is malformed; the error names it.
  """
  if not path.exists():
    return
  lines = path.read_bytes().splitlines()
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise ValueError('not a JSON object with an integer "step"')
    except ValueError as error:
      if number == len(lines):
        return
      raise ValueError(
        f"{path}:{number}: {error}; fix or delete the line"
      ) from None
    yield row


def _read_object(path: Path) -> dict[str, Any]:
  if not path.exists():
    return {}
  try:
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
      raise ValueError("not a JSON object")
  except ValueError as error:
    raise ValueError(f"{path}: {error}; fix or delete the file") from None
  return value


def outcomes(run: Run) -> dict[str, dict[str, float]]:
  """The numbers of each evaluated task, from summary.json or the metrics.

  Tasks with problems larger than any trained on, whose name has a "+", are
  last.
  """
  result: dict[str, dict[str, float]] = {}
  for task in charts.tasks(run.curves):
    row = result.setdefault(task, {})
    prefix = f"eval/{task}/"
    for name in (key for key in run.curves if key.startswith(prefix)):
      values = run.curves[name].values
      if values.ndim == 1 and not name.endswith("_stderr"):
        short = name.removeprefix(prefix).replace("@", "_at_")
        row[f"base_{short}"] = float(values[0])
        row[f"zero_{short}"] = float(values[-1])
  larger = run.summary.get("larger", {})
  for part in (run.summary, larger):
    for task, numbers in part.get("tasks", {}).items():
      known = task in result or "+" in task or part is run.summary
      name = task if known else f"{task}+"
      result.setdefault(name, {}).update(
        {k: v for k, v in numbers.items() if isinstance(v, (int, float))}
      )
  return dict(sorted(result.items(), key=lambda item: ("+" in item[0], item)))


def headlines(run: Run) -> list[Change]:
  """The main changes between the first and the last step."""
  trained = [v for task, v in outcomes(run).items() if "+" not in task]

  def mean(name: str) -> float | None:
    if isinstance(run.summary.get(name), (int, float)):
      return run.summary[name]
    values = [row[name] for row in trained if name in row]
    return float(np.mean(values)) if values else None

  def ends(name: str, label: str, form: str, note: str) -> list[Change]:
    before, after = mean(f"base_{name}"), mean(f"zero_{name}")
    if before is None or after is None:
      return []
    if name == "mean_length" and before > 0:
      note = f"{after / before:.2f} times as long, in tokens"
    return [Change(label, format(before, form), format(after, form), note)]

  over = f"mean of {len(trained)} tasks" if len(trained) > 1 else "held out"
  result = ends("pass_at_1", "Accuracy, pass@1", ".1%", over)
  votes = {k for row in trained for k in row if k.startswith("zero_cons_at_")}
  for vote in sorted(votes, key=lambda name: -int(name.rpartition("_")[2]))[:1]:
    k = vote.rpartition("_")[2]
    note = f"vote of {k} samples, {over}"
    result += ends(f"cons_at_{k}", f"Accuracy, cons@{k}", ".1%", note)
  result += ends("mean_length", "Response length", ".0f", "")
  if "loss/nll" in run.curves:
    values = run.curves["loss/nll"].values
    first, last = f"{values[0]:.3f}", f"{values[-1]:.3f}"
    result.append(Change("Loss", first, last, "nats per token"))
  steps = run.summary.get("rl_steps", _last_step(run))
  seconds = run.summary.get("seconds_rl", _last(run, "time"))
  note = _duration(seconds) if seconds else ""
  speed = run.summary.get("completion_tokens_per_second")
  if speed:
    note += f", {speed:,.0f} tokens/s"
  return [*result, Change("Optimizer steps", "", f"{steps:,}", note)]


def _last_step(run: Run) -> int:
  return max((int(c.steps[-1]) for c in run.curves.values()), default=0)


def _last(run: Run, key: str) -> float | None:
  curve = run.curves.get(key)
  return float(curve.values[-1]) if curve else None


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours} h {minutes} min"
  return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def completions_json(runs: Sequence[Run]) -> Markup:
  """The completions of `runs` as JSON that is safe inside a script element.

  Rows are lists in the order of `columns`. Because the completions of a group
  share a prompt, prompts are indices into the list `prompts`.
  """
  parts: dict[str, None] = {}
  prompts: dict[str, int] = {}
  for run in runs:
    for row in run.completions:
      parts.update(dict.fromkeys(row.get("rewards") or {}))
  rows = []
  for i, run in enumerate(runs):
    for row in run.completions:
      rewards = row.get("rewards") or {}
      prompt = str(row.get("prompt", ""))
      rows.append([
        i, row["step"], str(row.get("task", "")),
        prompts.setdefault(prompt, len(prompts)),
        str(row.get("completion", "")), str(row.get("answer", "")),
        *(_rounded(rewards.get(part)) for part in parts),
        *(_rounded(row.get(name)) for name in LAST_COLUMNS),
      ])  # fmt: skip
  data = {
    "runs": [run.name for run in runs],
    "columns": [*FIXED_COLUMNS, *parts, *LAST_COLUMNS],
    "rewards": [*parts, "reward"],
    "prompts": list(prompts),
    "rows": rows,
  }
  text = json.dumps(data, separators=(",", ":"), allow_nan=False)
  for character in "<>&":  # Prevents "</script>" and "<!--".
    text = text.replace(character, f"\\u{ord(character):04x}")
  return Markup(text)


def _rounded(value: Any) -> Any:
  if isinstance(value, float):
    return round(value, 4) if np.isfinite(value) else None
  return value if isinstance(value, (int, str)) else None


def config_rows(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
  """(key, value per run, whether the runs differ) of every config field."""
  flat = [dict(_flatten(run.config)) for run in runs]
  keys = dict.fromkeys(key for fields in flat for key in fields)
  rows = []
  for key in keys:
    values = [fields.get(key, "") for fields in flat]
    rows.append((key, values, len(set(values)) > 1))
  return rows


def _flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
  if isinstance(config, dict) and config:
    for key, value in config.items():
      yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
  else:
    yield prefix, json.dumps(config, ensure_ascii=False)


def other_metrics(runs: Sequence[Run], drawn: set[str]) -> list[tuple]:
  """(run, key, first, last, min, max) of each metric that is in no chart."""
  rows = []
  for run in runs:
    for key, (_, values) in sorted(run.curves.items()):
      if key not in drawn | {"time", "round"} and values.ndim == 1:
        ends = values[0], values[-1], values.min(), values.max()
        rows.append((run.name, key, *(f"{value:.4g}" for value in ends)))
  return rows


def mixed_completions(runs: Sequence[Run]) -> list[tuple]:
  """(run, step, task, share, prompt, completion) of thoughts that mix.

  Those are of which a part, at most `MIXED`, is in the language of the
  question: up to `MAX_MIXED` of each run, at even distances in training.
  """
  rows = []
  for run in runs:
    found = []
    for row in run.completions:
      share = (row.get("rewards") or {}).get("language")
      if isinstance(share, float) and 0 < share < MIXED:
        texts = (str(row.get(key, "")) for key in ("prompt", "completion"))
        task = str(row.get("task", ""))
        found.append((run.name, row["step"], task, f"{share:.0%}", *texts))
    chosen = np.linspace(0, len(found) - 1, min(len(found), MAX_MIXED))
    rows += [found[round(i)] for i in chosen]
  return rows


def _names(workdirs: Sequence[Path]) -> list[str]:
  """A name for each workdir, with as many parents as make it unique."""
  paths = [path.resolve() for path in workdirs]
  for depth in range(1, 1 + max(len(path.parts) for path in paths)):
    names = ["/".join(path.parts[-depth:]) for path in paths]
    if len(set(names)) == len(names):
      return names
  raise ValueError(f"{workdirs[0]} occurs twice; name each workdir once")


def build(
  workdirs: Sequence[str | Path], output: str | Path | None = None
) -> Path:
  """Writes the report on `workdirs` and its PNGs; returns the page's path.

  Raises:
    ValueError: a workdir has no run, or one of its files is malformed.
  """
  workdirs = [Path(workdir) for workdir in workdirs]
  runs = [read(*pair) for pair in zip(workdirs, _names(workdirs), strict=True)]
  output = Path(output) if output else workdirs[0] / "report.html"
  folder = output.parent / "figures"
  folder.mkdir(parents=True, exist_ok=True)
  page_charts = []
  chosen = charts.charts({run.name: run.curves for run in runs})
  for number, chart in enumerate(chosen, 1):
    figures.png(figures.figure(chart.panels), folder / f"{chart.name}.png")
    panels, legend = [], {}
    for i, panel in enumerate(chart.panels):
      figure = figures.figure([panel], legend=False)
      legend.update({entry[0]: entry for entry in figures.legend(figure)})
      label = f"{chart.title}: {panel.title}, against optimizer steps"
      panels.append(Markup(figures.svg(figure, f"f{number}-{i}", label)))
    page_charts.append((number, chart, panels, legend.values()))
  page = _page(
    runs=runs,
    headlines=[headlines(run) for run in runs],
    outcomes=[outcomes(run) for run in runs],
    charts=page_charts,
    completions=completions_json(runs),
    num_completions=sum(len(run.completions) for run in runs),
    mixed=mixed_completions(runs),
    config=config_rows(runs),
    others=other_metrics(
      runs, {key for c in chosen for panel in c.panels for key in panel.keys}
    ),
  )
  output.write_bytes(page.encode("utf-8", "replace"))
  return output


def _page(**fields: Any) -> str:
  folder = resources.files("r1jax.tools.report") / "page"
  html, style, script = (
    (folder / f"report.{kind}").read_text("utf-8")
    for kind in ("html", "css", "js")
  )
  environment = jinja2.Environment(
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  digest = hashlib.sha256(script.encode()).digest()
  return environment.from_string(html).render(
    style=Markup(style),
    script=Markup(script),
    script_hash=base64.b64encode(digest).decode(),
    **fields,
  )


def define_flags() -> None:
  """Defines the flags that `main` reads."""
  flags.DEFINE_string(
    "output", None, "Path of the page; by default in the first workdir."
  )


def main(workdirs: list[str]) -> None:
  """Writes the page, and prints its path."""
  if not workdirs:
    raise ValueError("no workdir; name the workdirs of one or several runs")
  # Imported late, because it reads this module.
  from r1jax.tools.report import stages

  if stages.is_pipeline(workdirs[0]):
    if len(workdirs) > 1 or flags.FLAGS.output:
      raise ValueError(
        f"{workdirs[0]} holds a pipeline; report on it alone, without --output"
      )
    print(stages.build(workdirs[0]))
    return
  print(build(workdirs, flags.FLAGS.output))
