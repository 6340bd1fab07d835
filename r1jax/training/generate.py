"""The loop that makes training data: sample, grade, keep what is good.

It makes DeepSeek-R1's samples for SFT (arXiv:2501.12948v2, appendix B.3): from
a checkpoint by rejection sampling (B.3.3), from traces of R1-Zero that another
model may rewrite, or from a teacher that is shown examples (B.3.2).

    WORKDIR/kept/000003.jsonl      samples that SFT reads
    WORKDIR/dropped/000003.jsonl   the others

The prompts of the dataset, without those that repeat or stand in an evaluation
set, are divided into shards. A shard is a function of the config and its number
alone (and of what the teacher says), its files appear whole, and a run that is
started again goes on with the first shard that is missing. So every sample is
in one of the files, once.

A sample is a JSON object: `id`; `messages` of a user and an assistant, each
`{"role", "content"}`; `domain` and reference `answer` of the problem; and
`provenance`: what made it, what it earned, and which filters it met.
"""

import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from r1jax import config as configs
from r1jax import data, rewards
from r1jax.data import decontamination, shard_writer, templates, tokenizer
from r1jax.parallel.mesh import make_mesh
from r1jax.rewards.judges import learned
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts.engine import make_engine
from r1jax.runtime import distributed, interrupt, metrics
from r1jax.runtime.workdir import claim
from r1jax.training import external_teacher as teachers
from r1jax.training import inspection, models, samples, sources
from r1jax.training.samples import Sample
from r1jax.training.state import contents
from r1jax.types import Example

REPLIES = "replies"  # The folder of what a teacher says, in a workdir.
SAMPLER = ("mesh", "model", "tokenizer", "sampling")  # Sections, or a teacher.


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  *,
  sinks: Sequence[str] = ("tensorboard",),
) -> dict[str, Any]:
  """Writes the samples of all prompts; returns the content of summary.json.

  Args:
    config: of the run; see `SECTIONS` and `FIELDS`.
    workdir: for the samples, metrics and all other output.
    sinks: of metrics, in addition to metrics.jsonl; see `metrics.SINKS`.

  Raises Interrupted after a signal, and ValueError for an invalid config, a
  workdir of another run, and a teacher that does not reply. What was written
  stays.
  """
  dataset = data.load(**config.dataset.to_dict())
  rewards.check(inspection.in_memory(dataset), **config.rewards.to_dict())
  claim(workdir, config.to_dict(), checksums(config, dataset))
  index = evaluation_index(**config.decontamination.to_dict())
  prompts = decontamination.choose(
    (dataset[position].prompt for position in range(len(dataset))), index
  )
  if not prompts.positions:
    raise ValueError(
      f"none of the {len(dataset):,} prompts is left: {prompts.repeated:,} "
      f"repeat others, and {prompts.contaminated:,} stand in the sets of "
      "decontamination.against"
    )
  shard_writer.require(config.format)
  folder, size = pathlib.Path(workdir), config.prompts_per_shard
  total = -(-len(prompts.positions) // size)
  done = distributed.from_first(
    lambda: shard_writer.finished(folder / shard_writer.KEPT, config.format)
  )
  made_by = sources.provenance(config)
  with (
    GraderPool(**config.grader) as pool,
    metrics.Writer(workdir, step=done or None, sinks=sinks) as writer,
  ):
    writer.console.note(
      f"{len(prompts.positions):,} of {len(dataset):,} prompts x "
      f"{config.samples} samples, in {total:,} shards; {prompts.repeated:,} "
      f"prompts repeat others, {prompts.contaminated:,} stand in an evaluation "
      "set"
    )
    if done < total:
      draw = make_draw(config, dataset, prompts, pool, folder, writer)
    for number in range(done, total):
      distributed.raise_if_interrupted()
      began = time.monotonic()
      positions = prompts.positions[number * size : (number + 1) * size]
      examples = [dataset[position] for position in positions]
      completions, scores = draw(examples, number)
      if not distributed.is_first():
        continue
      drawn = [
        Sample(examples[i], positions[i], k, completions[i * n + k], {}, {})
        for n in (config.samples,)
        for i in range(len(examples))
        for k in range(n)
      ]
      graded = samples.judged(
        drawn, scores, keep=config.keep.to_dict(), index=index
      )
      if config.rewriter is not None:
        writer.console.phase("rewriting")
        graded = rewritten(config, graded, index, pool, folder, number)
      graded = samples.distinct(graded)
      with interrupt.deferred():
        write(config, folder, number, graded, made_by, writer, began)
      writer.console.progress(
        number + 1, total, unit="shard", kept=sum(s.kept for s in graded)
      )
    return finish(folder, prompts)


def make_draw(
  config: ml_collections.ConfigDict,
  dataset: Sequence[Example],
  prompts: decontamination.Prompts,
  pool: GraderPool | None,
  folder: pathlib.Path,
  writer: metrics.Writer,
) -> sources.Draw:
  """The function that samples and grades the examples of a shard."""
  say = writer.console.phase
  if config.teacher is not None:
    cache = lambda number: str(replies(folder, number))
    return sources.from_teacher(config, pool, cache, say)
  known = prompts.positions if inspection.is_in_memory(dataset) else ()
  return sources.from_model(config, [dataset[i] for i in known], pool, say)


def rewritten(
  config: ml_collections.ConfigDict,
  graded: Sequence[Sample],
  index: decontamination.Index,
  pool: GraderPool | None,
  folder: pathlib.Path,
  number: int,
) -> list[Sample]:
  """The samples, those that are kept as the rewriter writes and graders see.

  The filter "rewritten" is met by those that the rewriter could rewrite.
  """
  kept = [sample for sample in graded if sample.kept]
  completions = teachers.rewrite(
    teachers.make_rewriter(**config.rewriter.to_dict()),
    [(sample.example, sample.completion.text) for sample in kept],
    cache=str(replies(folder, number)),
  )
  new = [
    sample._replace(completion=completion, original=sample.completion.text)
    for sample, completion in zip(kept, completions)
    if completion is not None
  ]
  scores = rewards.score(
    [sample.example for sample in new],
    [sample.completion for sample in new],
    pool=pool,
    **config.rewards.to_dict(),
  )
  judged = samples.judged(new, scores, keep=config.keep.to_dict(), index=index)
  by_id = {sample.id: sample for sample in judged}
  result = []
  for sample in graded:
    changed = by_id.get(sample.id, sample)
    filters = dict(changed.filters)
    if sample.kept:
      filters["rewritten"] = sample.id in by_id
    result.append(changed._replace(filters=filters))
  return result


def replies(folder: pathlib.Path, number: int) -> pathlib.Path:
  """The folder of a shard's replies, until the shard is written."""
  return folder / REPLIES / f"{number:06}"


def checksums(
  config: ml_collections.ConfigDict, dataset: Sequence[Example]
) -> dict[str, str]:
  """Those of `contents`, and that of the shots of a teacher."""
  sums = contents(config, dataset)
  if config.teacher is not None:
    shots = teachers.read_shots(config.teacher.get("shots"))
    sums["shots"] = hashlib.sha256(json.dumps(shots).encode()).hexdigest()
  return sums


def write(
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  number: int,
  graded: Sequence[Sample],
  made_by: Mapping[str, Any],
  writer: metrics.Writer,
  began: float,
) -> None:
  """Writes a shard: its metrics, then what is dropped, last what is kept.

  The file of what is kept says that the shard is finished.
  """
  seconds = time.monotonic() - began
  numbers = samples.numbers(graded)
  writer.write(
    number + 1,
    **numbers,
    **{"perf/step_time": seconds},
    **{"perf/tokens_per_s": numbers["data/tokens"] / max(seconds, 1e-9)},
  )
  writer.completions(samples.shown(graded, number + 1))
  for name, kept in ((shard_writer.DROPPED, False), (shard_writer.KEPT, True)):
    rows = [samples.row(s, made_by) for s in graded if s.kept == kept]
    shard_writer.write(folder / name, number, rows, config.format)
  shutil.rmtree(replies(folder, number), ignore_errors=True)


def finish(
  folder: pathlib.Path, prompts: decontamination.Prompts
) -> dict[str, Any]:
  """Writes summary.json, and returns its content."""
  if not distributed.is_first():
    return {}
  summary = samples.summarise(metrics.read(folder))
  summary |= dict(
    prompts=len(prompts.positions),
    repeated_prompts=prompts.repeated,
    contaminated_prompts=prompts.contaminated,
  )
  text = json.dumps(summary, indent=2) + "\n"
  (folder / "summary.json").write_text(text)
  return summary


def evaluation_index(
  *, against: Mapping[str, Mapping[str, Any]], size: int = 10
) -> decontamination.Index:
  """The index of evaluation sets.

  Args:
    against: the dataset section of each set, by any label; {} for none.
    size: words of a sequence that no sample may share with a set.
  """
  sets = (data.load(**section) for section in against.values())
  texts = (text for each in sets for text in decontamination.texts_of(each))
  return decontamination.index_of(texts, size=size)


def keep(**least: float) -> None:
  """The config section: the least that a sample must reach in each reward.

  A reward that does not apply to a sample asks nothing of it. One that could
  not be graded drops it.
  """


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for sections that contradict each other."""
  for name in ("samples", "prompts_per_shard"):
    if config[name] < 1:
      raise ValueError(f"{name} is {config[name]}; it must be at least 1")
  shard_writer.check(config.format)
  given = [name for name in SAMPLER if config[name] is not None]
  if config.teacher is None and len(given) < len(SAMPLER):
    missing = [name for name in SAMPLER if name not in given]
    raise ValueError(
      f"{missing[0]} is None, and so is teacher: samples come from a model, "
      f"which needs the sections {', '.join(SAMPLER)}, or from a teacher"
    )
  if config.teacher is not None:
    if given:
      raise ValueError(
        f"teacher is set, and so is {given[0]}: set one of them to None"
      )
    teachers.make_teacher(**config.teacher.to_dict())
    templates.QuestionOnly(config.template)
  for path in learned.paths_of(config.rewards.to_dict()):
    if config.model is None or config.rewriter is not None:
      raise ValueError(
        f"a reward model ({path}) grades samples of the model alone, without "
        "a teacher or a rewriter"
      )
  templates.check(config.template)
  names = {term.name for term in rewards.check(**config.rewards.to_dict())}
  for name in config.keep:
    if name not in names:
      raise ValueError(configs.unknown("reward in keep", name, names))
  against = config.decontamination.to_dict()["against"]
  for label, section in against.items():
    configs.bind(f"decontamination.against.{label}", section, data.DATASETS)


SECTIONS = {
  "mesh": make_mesh,
  "model": models.MODELS,
  "tokenizer": tokenizer.load,
  "sampling": make_engine,
  "teacher": teachers.make_teacher,
  "rewriter": teachers.make_rewriter,
  "dataset": data.DATASETS,
  "decontamination": evaluation_index,
  "rewards": rewards.score,
  "grader": GraderPool,
  "keep": keep,
}
OPTIONAL = (*SAMPLER, "teacher", "rewriter")
FIELDS = (
  "cpu_devices",
  "seed",
  "template",
  "samples",
  "prompts_per_shard",
  "format",
)
