"""Where samples come from: the engine with a model, or a teacher."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from r1jax import hf, rewards
from r1jax.data import chat
from r1jax.data import tokenizer as tokenizers
from r1jax.hf.config import read_json
from r1jax.models import transformer
from r1jax.parallel.mesh import make_mesh
from r1jax.rewards import Scores
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts.engine import make_engine
from r1jax.rollouts.grading import sample_graded
from r1jax.runtime import distributed, process
from r1jax.training import external_teacher as teachers
from r1jax.training import inspection, models
from r1jax.training.scorer import with_models
from r1jax.training.state import make_params
from r1jax.types import Completion, Example

# The completions of examples, group after group, and their rewards; None on
# hosts that do not write. It takes the examples and the shard's number.
Draw = Callable[
  [Sequence[Example], int],
  tuple[Sequence[Completion | None] | None, Scores | None],
]


def from_model(
  config: ml_collections.ConfigDict,
  examples: Sequence[Example],
  pool: GraderPool | None,
  say: Callable[[str], None],
) -> Draw:
  """A function that samples from the model of the config, and grades.

  Args:
    config: of the run.
    examples: those in memory that will be sampled: their prompts must fit.
    pool: grades.
    say: shows the progress of a shard.
  """
  mesh = make_mesh(**config.mesh)
  tokenizer = tokenizers.load(**config.tokenizer)
  if examples:
    inspection.check_windows(examples, tokenizer, config)
  initial = models.initial(**config.model, mtp=False)
  model = transformer.Transformer(initial.config)
  inspection.check_vocabulary(tokenizer, model.config)
  shared = chat.shared_tokens(config.template, tokenizer)
  engine = make_engine(model, tokenizer, mesh, shared, **config.sampling)
  params = engine.prepare(make_params(mesh, initial))
  graded = with_models(config.rewards.to_dict(), mesh)

  def draw(examples, number):
    rollout, grader = sample_graded(
      engine,
      params,
      examples,
      config.samples,
      tokenizer,
      pool,
      graded,
      template=config.template,
      max_tokens=engine.max_tokens,
      seed=config.seed,
      round=number,
      progress=lambda done, tokens: say(
        f"sampling, {done} done, {tokens:,} tokens"
      ),
    )
    _, completions = grader.texts(rollout, read_all=True)
    return completions, grader.scores()

  return draw


def from_teacher(
  config: ml_collections.ConfigDict,
  pool: GraderPool | None,
  cache: Callable[[int], str],
  say: Callable[[str], None],
) -> Draw:
  """A function that asks the teacher of the config, and grades.

  Args:
    config: of the run.
    pool: grades.
    cache: the folder of the replies for a shard.
    say: shows the progress of a shard.
  """
  teacher = teachers.make_teacher(**config.teacher.to_dict())

  def draw(examples, number):
    if not distributed.is_first():
      return None, None
    say(f"waiting for {teacher.endpoint.model}")
    completions = teachers.write_samples(
      teacher,
      examples,
      config.samples,
      template=config.template,
      cache=cache(number),
    )
    scores = rewards.score(
      [example for example in examples for _ in range(config.samples)],
      completions,
      pool=pool,
      group_size=config.samples,
      **config.rewards.to_dict(),
    )
    return completions, scores

  return draw


def provenance(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What all samples of a run share: the model, the config, code and seed."""
  settings = config.to_dict()
  made = dict(
    model="",
    step=None,
    config=hashlib.sha256(
      json.dumps(settings, sort_keys=True, default=str).encode()
    ).hexdigest()[:12],
    code=process.versions()["r1jax"],
    seed=config.seed,
  )
  if config.teacher is not None:
    made["model"] = config.teacher.model
  elif path := config.model.get("path"):
    known = pathlib.Path(hf.directory(path)) / "provenance.json"
    made["model"] = f"{path}@{hf.content_hash(path)[:12]}"
    made["step"] = read_json(known).get("step") if known.exists() else None
  else:
    made["model"] = f"{config.model.preset_name}, fresh"
  if config.rewriter is not None:
    made["rewriter"] = config.rewriter.model
  return made
