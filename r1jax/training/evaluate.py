"""The evaluation of a model as a run of its own.

Every completion is kept with its rewards, so that other metrics can be computed
later without sampling again.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from r1jax import data, rewards
from r1jax.config import bind
from r1jax.data import chat, templates
from r1jax.data import tokenizer as tokenizers
from r1jax.models import transformer
from r1jax.parallel.mesh import make_mesh
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts.engine import Engine, make_engine
from r1jax.runtime import distributed, metrics
from r1jax.runtime.console import Console
from r1jax.runtime.workdir import claim
from r1jax.training import external_teacher, inspection, models
from r1jax.training.evaluator import (
  Problems,
  by_problem,
  by_task,
  sample_set,
)
from r1jax.training.external_teacher import Teacher
from r1jax.training.measures import measure
from r1jax.training.scorer import with_models
from r1jax.training.state import contents, make_params
from r1jax.types import Completion, Params, Tokenizer

RESULTS = "results.json"
# The completions [P][k] of a set and their rewards [P, k] by name, from the set
# and its number; None on all hosts but the first.
Draw = Callable[
  [Problems, int],
  tuple[list[list[Completion]], dict[str, np.ndarray]] | None,
]


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  *,
  sinks: Sequence[str] = ("tensorboard",),
) -> dict[str, dict[str, float]]:
  """Evaluates a model; the metrics of every set, see `evaluate_sets`.

  Args:
    config: of the evaluation; see `SECTIONS` and `FIELDS`.
    workdir: for results, completions and metrics.
    sinks: of metrics, in addition to metrics.jsonl; see `metrics.SINKS`.

  Raises Interrupted after a signal, and ValueError for an invalid config.
  """
  sets = problem_sets(**config.problems.to_dict())
  mesh = make_mesh(**config.mesh)
  tokenizer = tokenizers.load(**config.tokenizer)
  initial = models.initial(**config.model.to_dict(), mtp=False)
  model = transformer.Transformer(initial.config)
  inspection.check_vocabulary(tokenizer, model.config)
  examples = [example for asked in sets for example in asked.examples]
  claim(workdir, config.to_dict(), contents(config, examples))
  engine = make_engine(
    model,
    tokenizer,
    mesh,
    chat.shared_tokens(config.template, tokenizer),
    **config.sampling,
  )
  with (
    metrics.Writer(workdir, sinks=sinks) as writer,
    GraderPool(**config.grader) as pool,
  ):
    parts = with_models(config.rewards.to_dict(), mesh)
    draw = with_engine(
      engine,
      lambda: make_params(mesh, initial),
      tokenizer,
      pool,
      parts=parts,
      template=config.template,
      seed=config.seed,
      console=writer.console,
    )
    results = evaluate_sets(
      workdir, sets, draw, parts=parts, console=writer.console
    )
    rows = {
      f"eval/{task}/{key}": value
      for task, measured in results.items()
      for key, value in measured.items()
    }
    writer.write(0, **rows)
  return results


def evaluate_sets(
  workdir: str | pathlib.Path,
  sets: Sequence[Problems],
  draw: Draw,
  *,
  parts: Mapping[str, Any],
  console: Console,
) -> dict[str, dict[str, float]]:
  """The metrics of every set; only the first host gets them.

      WORKDIR/items/SET.jsonl   every completion with its rewards
      WORKDIR/results.json      the metrics; see `measures.measure`

  A set whose items are there is not sampled again.

  Args:
    workdir: of the evaluation.
    sets: of problems.
    draw: samples and grades a set, given its number.
    parts: the rewards, as in a config.
    console: shows progress and results.

  Raises Interrupted after a signal, between two sets, and ValueError for
  rewards that cannot grade the problems.
  """
  root = pathlib.Path(workdir)
  rewards.check([e for asked in sets for e in asked.examples], **parts)
  done = distributed.from_first(
    lambda: [asked.name for asked in sets if _items(root, asked.name).exists()]
  )
  for index, asked in enumerate(sets):
    if asked.name in done:
      continue
    distributed.raise_if_interrupted()
    console.note(
      f"{asked.name}: {len(asked.examples):,} problems, {asked.samples} "
      "completions each"
    )
    graded = draw(asked, index)
    if graded is not None:
      write_items(_items(root, asked.name), asked, *graded)
  if not distributed.is_first():
    return {}
  results = {
    asked.name: measure(asked.examples, *read_items(_items(root, asked.name)))
    for asked in sets
  }
  for name, measured in results.items():
    shown = [
      f"{key} {value:.3f} +- {measured[f'{key}_stderr']:.3f}"
      for key, value in measured.items()
      if f"{key}_stderr" in measured
    ]
    console.note(
      f"  {name:20} {'  '.join(shown)}  length {measured['mean_length']:.1f}  "
      f"truncated {measured['truncated']:.3f}"
    )
  draft = root / f"{RESULTS}.tmp"
  draft.write_text(json.dumps(results, indent=2, default=float) + "\n")
  os.replace(draft, root / RESULTS)
  return results


def with_engine(
  engine: Engine,
  make: Callable[[], Params],
  tokenizer: Tokenizer,
  pool: GraderPool,
  *,
  parts: Mapping[str, Any],
  template: str,
  seed: int,
  console: Console,
) -> Draw:
  """Samples sets with our engine.

  Args:
    engine: samples the completions.
    make: makes the parameters of the policy, if any set is to be sampled.
    tokenizer: of the policy.
    pool: grades the completions.
    parts: the rewards, as in a config.
    template: name of the template around each question.
    seed: of the samples.
    console: shows progress.
  """
  prepared = functools.cache(lambda: engine.prepare(make()))

  def draw(asked, index):
    return sample_set(
      engine,
      prepared(),
      asked,
      tokenizer,
      pool,
      parts,
      template=template,
      seed=seed,
      round=index,
      progress=lambda done, tokens: console.phase(
        f"evaluating, {done} completions, {tokens:,} tokens"
      ),
    )

  return draw


def with_endpoint(
  teacher: Teacher,
  pool: GraderPool,
  *,
  parts: Mapping[str, Any],
  replies: pathlib.Path,
) -> Draw:
  """Samples sets from a model behind an OpenAI-compatible endpoint.

  Args:
    teacher: the model.
    pool: grades the completions.
    parts: the rewards, as in a config.
    replies: a folder for what the server says, which is not asked again.
  """

  def draw(asked, index):
    completions = external_teacher.write_samples(
      teacher,
      asked.examples,
      asked.samples,
      template=templates.QUESTION,
      cache=str(replies / asked.name),
    )
    examples = [e for e in asked.examples for _ in range(asked.samples)]
    scores = rewards.score(
      examples, completions, pool=pool, group_size=asked.samples, **parts
    )
    return by_problem(completions, scores, asked.samples)

  return draw


def problem_sets(*, sets: Mapping[str, Mapping[str, Any]]) -> list[Problems]:
  """The sets of problems of an evaluation.

  A dataset of one task is a set, named by its label. One of several tasks makes
  a set of each, named by the last part of its domain.

  Args:
    sets: by label, `dataset`, a section of a dataset; `samples`, the number of
      completions of a problem; and `count`, the most problems of a task.

  Raises ValueError if two sets have the same name.
  """
  result: dict[str, Problems] = {}
  for label, options in sets.items():
    for made in _sets_of(label, **options):
      if made.name in result:
        raise ValueError(f"two sets of problems are named {made.name!r}")
      result[made.name] = made
  return [*result.values()]


def _sets_of(
  label: str, *, dataset: Mapping[str, Any], samples: int, count: int
) -> list[Problems]:
  tasks = by_task(data.load(**dataset), count)
  if len(tasks) == 1:
    tasks = {label: next(iter(tasks.values()))}
  return [Problems(name, examples, samples) for name, examples in tasks.items()]


def checksums(sets: Sequence[Problems]) -> dict[str, str]:
  """The checksum of the examples of each set, by name."""
  return {made.name: data.content_hash(made.examples) for made in sets}


def write_items(
  file: pathlib.Path,
  problems: Problems,
  completions: Sequence[Sequence[Completion]],
  parts: Mapping[str, np.ndarray],
) -> None:
  """Writes a line for each completion, replacing the file atomically."""
  file.parent.mkdir(exist_ok=True)
  draft = file.with_suffix(".tmp")
  with open(draft, "w", encoding="utf-8") as stream:
    for p, example in enumerate(problems.examples):
      for k, completion in enumerate(completions[p]):
        scores = {name: float(values[p, k]) for name, values in parts.items()}
        row = {
          "id": example.id,
          "sample": k,
          "prompt": example.prompt,
          "answer": example.answer,
          "completion": completion._asdict(),
          "rewards": {
            name: None if np.isnan(score) else score
            for name, score in scores.items()
          },
        }
        stream.write(json.dumps(row) + "\n")
  os.replace(draft, file)


def read_items(
  file: pathlib.Path,
) -> tuple[list[list[Completion]], dict[str, np.ndarray]]:
  """What `write_items` has written: completions [P][k] and rewards [P, k]."""
  rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
  samples = 1 + max(row["sample"] for row in rows)
  written = [Completion(**row["completion"]) for row in rows]
  return (
    [written[i : i + samples] for i in range(0, len(written), samples)],
    {
      name: np.array(
        [row["rewards"][name] for row in rows], dtype=float
      ).reshape(-1, samples)
      for name in rows[0]["rewards"]
    },
  )


def _items(root: pathlib.Path, name: str) -> pathlib.Path:
  return root / "items" / f"{name}.jsonl"


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for sections that contradict each other."""
  templates.check(config.template)
  sets = config.problems.to_dict()["sets"]
  if not sets:
    raise ValueError("problems.sets is empty; there is nothing to evaluate")
  for label, options in sets.items():
    path = f"problems.sets.{label}"
    bind(path, options, _sets_of)
    bind(f"{path}.dataset", options["dataset"], data.DATASETS)
    for name in ("samples", "count"):
      if options[name] < 1:
        raise ValueError(f"{path}.{name} is {options[name]}; it is at least 1")
  rewards.check(**config.rewards.to_dict())


SECTIONS = {
  "mesh": make_mesh,
  "model": models.MODELS,
  "tokenizer": tokenizers.load,
  "problems": problem_sets,
  "sampling": make_engine,
  "grader": GraderPool,
  "rewards": rewards.score,
}
FIELDS = ("cpu_devices", "seed", "template")
