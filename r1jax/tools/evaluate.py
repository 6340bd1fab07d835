"""Evaluate a model on files of problems.

    r1jax evaluate --model=DIRECTORY --workdir=runs/math \\
        --tasks=math500=math500.jsonl,aime24=aime24.jsonl

The model is a directory in Hugging Face layout, the workdir of a run, or a GGUF
file. With `--base_url=URL`, it is the name of a model behind an endpoint that
speaks as OpenAI's.

A task is the name of a published evaluation and a file of its problems: JSON
lines, a JSON array or Parquet, which may be compressed (.gz). The name decides
how a question is asked and how many completions of it are sampled, by the
convention of the DeepSeek-R1 paper or another. `--samples` and `--count` make
it quicker.

    WORKDIR/results.json      pass@1 with its standard error, pass@k, cons@k,
                              lengths, and more, of each task
    WORKDIR/items/TASK.jsonl  every completion with its rewards

The same command goes on after a stop. Another model or other settings need
another workdir.
"""

import math
import pathlib

from absl import flags

from r1jax.data import benchmarks
from r1jax.runtime import process

SETTINGS = (  # Flags that a workdir is for.
  *("model", "base_url", "tasks", "convention", "samples", "count"),
  "template",
  *("temperature", "top_p", "max_tokens", "seed"),
)


def define_flags() -> None:
  """Defines the flags that `main` reads."""
  flags.DEFINE_string(
    "model", None, "A directory in Hugging Face layout, or a name; see above."
  )
  flags.DEFINE_string(
    "base_url", None, "Of an OpenAI-compatible server, such as .../v1."
  )
  flags.DEFINE_list(
    "tasks", None, f"NAME=FILE, ...: of {', '.join(benchmarks.BENCHMARKS)}."
  )
  flags.DEFINE_string("workdir", None, "The folder of all output.")
  flags.DEFINE_string(
    "convention",
    "paper",
    f"Whose prompts to ask with: {', '.join(benchmarks.CONVENTIONS)}.",
  )
  flags.DEFINE_integer(
    "samples", None, "Completions of a problem; by default the task's own."
  )
  flags.DEFINE_integer("count", 1_000_000, "The most problems of a task.")
  flags.DEFINE_string(
    "template", None, "By default the tokenizer's, or else that of R1-Zero."
  )
  flags.DEFINE_float("temperature", 0.6, "Of sampling; 0 for greedy.")
  flags.DEFINE_float("top_p", 0.95, "Share of the probability to draw from.")
  flags.DEFINE_integer(
    "max_tokens",
    32_768,
    "Of a completion; at most what the model was made for.",
  )
  flags.DEFINE_integer("seed", 0, "Of the samples.")
  flags.DEFINE_integer("workers", process.cores(), "Processes that grade.")


def main() -> None:
  """Evaluates the model, and prints the metrics of each task."""
  flag = flags.FLAGS
  for name in ("model", "tasks", "workdir"):
    if not flag[name].value:
      raise ValueError(f"--{name} is not set; see r1jax evaluate --help")
  for name in ("samples", "count", "max_tokens", "workers"):
    value = flag[name].value
    if value is not None and value < 1:
      raise ValueError(f"--{name}={value}: it must be at least 1")
  if not (math.isfinite(flag.temperature) and flag.temperature >= 0):
    raise ValueError(f"--temperature={flag.temperature}: it must be at least 0")
  if not 0 < flag.top_p <= 1:
    raise ValueError(f"--top_p={flag.top_p}: it must be in (0, 1]")
  if flag.base_url and flag.template:
    raise ValueError("--template: the server of --base_url has its own")
  sets = sections(
    flag.tasks,
    convention=flag.convention,
    samples=flag.samples,
    count=flag.count,
  )
  # Imported late, so that wrong flags are reported without waiting for JAX.
  from r1jax.rewards.pool.pool import GraderPool
  from r1jax.runtime.console import Console
  from r1jax.runtime.workdir import claim, prepare
  from r1jax.training import evaluate

  problems = evaluate.problem_sets(sets=sets)
  settings = {name: flag[name].value for name in SETTINGS}
  prepare(flag.workdir)
  claim(flag.workdir, settings, evaluate.checksums(problems))
  parts = dict(accuracy=1.0, format=0.0, language=0.0)
  console = Console()
  with GraderPool(num_workers=flag.workers, timeout=10.0) as pool:
    draw = (
      at_endpoint(pool, parts)
      if flag.base_url
      else in_memory(problems, pool, parts, console)
    )
    evaluate.evaluate_sets(
      flag.workdir, problems, draw, parts=parts, console=console
    )
  print(pathlib.Path(flag.workdir) / evaluate.RESULTS)


def in_memory(problems, pool, parts, console):
  """Samples from the model in a directory or a file; see `evaluate.Draw`.

  Raises ValueError for a prompt that does not fit the model.
  """
  from r1jax.data import chat
  from r1jax.tools import model as models
  from r1jax.training import evaluate

  flag = flags.FLAGS
  model = models.load(flag.model, cpu_devices=process.cores())
  template = flag.template or model.template
  prompts = [
    prompt
    for asked in problems
    for prompt in chat.encode_prompts(asked.examples, template, model.tokenizer)
  ]
  longest, limit = max(map(len, prompts)), model.config.max_length
  if longest >= limit:
    raise ValueError(
      f"the longest prompt has {longest:,} tokens, and the model was made for "
      f"{limit:,}"
    )
  engine = model.engine(
    template,
    prompts,
    max(asked.samples for asked in problems),
    max_tokens=min(flag.max_tokens, limit - longest),
    temperature=flag.temperature,
    top_p=flag.top_p,
  )
  return evaluate.with_engine(
    engine,
    lambda: model.params,
    model.tokenizer,
    pool,
    parts=parts,
    template=template,
    seed=flag.seed,
    console=console,
  )


def at_endpoint(pool, parts):
  """Samples from a model behind an endpoint; see `evaluate.Draw`."""
  from r1jax.training import evaluate, external_teacher

  flag = flags.FLAGS
  teacher = external_teacher.make_teacher(
    base_url=flag.base_url,
    model=flag.model,
    deadline=3_600.0,
    parameters=dict(
      temperature=flag.temperature,
      top_p=flag.top_p,
      max_tokens=flag.max_tokens,
    ),
  )
  replies = pathlib.Path(flag.workdir) / "replies"
  return evaluate.with_endpoint(teacher, pool, parts=parts, replies=replies)


def sections(
  tasks: list[str], *, convention: str, samples: int | None, count: int
) -> dict[str, dict]:
  """The sets of the tasks "NAME=FILE", by name; see `benchmarks.section`.

  Raises ValueError for a task without a file, or that occurs twice.
  """
  made = {}
  for task in tasks:
    name, _, path = task.partition("=")
    if not path:
      raise ValueError(
        f"--tasks={task}: name a file of problems, as in {name}=FILE"
      )
    if name in made:
      raise ValueError(f"--tasks: {name!r} occurs twice")
    made[name] = benchmarks.section(
      name, path, convention=convention, samples=samples, count=count
    )
  return made
