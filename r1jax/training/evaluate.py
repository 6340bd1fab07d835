"""The evaluation of a model as a run of its own.

Every completion is kept with its rewards, so that other metrics can be computed
later without sampling again.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
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
from r1jax.rollouts.engine import make_engine
from r1jax.runtime import distributed, metrics
from r1jax.runtime.workdir import claim
from r1jax.training import inspection, models
from r1jax.training.evaluator import Problems, by_task, sample_set
from r1jax.training.measures import measure
from r1jax.training.state import contents, make_params
from r1jax.types import Completion

RESULTS = "results.json"


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  *,
  sinks: Sequence[str] = ("tensorboard",),
) -> dict[str, dict[str, float]]:
  """Evaluates a model; the metrics of every task, which results.json holds.

  WORKDIR/items/TASK.jsonl holds every completion with its rewards. A task is
  not evaluated again on a second start.

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
  parts = config.rewards.to_dict()
  rewards.check(examples, **parts)
  claim(workdir, config.to_dict(), contents(config, examples))
  shared = chat.shared_tokens(config.template, tokenizer)
  engine = make_engine(model, tokenizer, mesh, shared, **config.sampling)
  root = pathlib.Path(workdir)
  is_done = lambda name: distributed.from_first(_items(root, name).exists)
  with (
    metrics.Writer(workdir, step=None, sinks=sinks) as writer,
    GraderPool(**config.grader) as pool,
  ):
    params = engine.prepare(make_params(mesh, initial))
    for index, asked in enumerate(sets):
      if is_done(asked.name):
        continue
      distributed.raise_if_interrupted()
      writer.console.note(
        f"{asked.name}: {len(asked.examples):,} problems, {asked.samples} "
        "completions each"
      )
      graded = sample_set(
        engine,
        params,
        asked,
        tokenizer,
        pool,
        parts,
        template=config.template,
        seed=config.seed,
        round=index,
        progress=lambda done, tokens: writer.console.phase(
          f"evaluating, {done} completions, {tokens:,} tokens"
        ),
      )
      if graded is not None:
        write_items(_items(root, asked.name), asked, *graded)
    if not distributed.is_first():
      return {}
    results = {
      asked.name: measure(asked.examples, *read_items(_items(root, asked.name)))
      for asked in sets
    }
    writer.write(
      0,
      **{
        f"eval/{task}/{key}": value
        for task, measured in results.items()
        for key, value in measured.items()
      },
    )
    for task, measured in results.items():
      writer.console.note(
        f"  {task:20} pass@1 {measured['pass@1']:.3f} "
        f"+- {measured['pass@1_stderr']:.3f}  "
        f"length {measured['mean_length']:.1f}"
      )
    draft = root / f"{RESULTS}.tmp"
    draft.write_text(json.dumps(results, indent=2, default=float) + "\n")
    os.replace(draft, root / RESULTS)
  return results


def problem_sets(
  *, count: int, samples: int, sets: Mapping[str, Mapping[str, Any]]
) -> list[Problems]:
  """The first problems of every task in the datasets.

  Args:
    count: the most problems of a task.
    samples: completions of each problem.
    sets: sections of datasets by label. A task is named as the last part of its
      examples' domain, with "+1" if the label is "larger".
  """
  result = []
  for label, section in sets.items():
    suffix = "+1" if label == "larger" else ""
    for name, examples in by_task(data.load(**section), count).items():
      result.append(Problems(name + suffix, examples, samples))
  return result


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
  for label, section in config.problems.sets.to_dict().items():
    bind(f"problems.sets.{label}", section, data.DATASETS)
  parts = config.rewards.to_dict()
  rewards.check(**parts)
  if "accuracy" not in parts:
    raise ValueError("rewards.accuracy is missing; set it to 1.0")


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
