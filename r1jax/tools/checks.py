"""What the doctor checks: each check tells its findings, line by line."""

import contextlib
import functools
import io
import json
import math
import os
import pathlib
import resource
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from r1jax import config as configs
from r1jax import data, rewards
from r1jax.data import chat, templates, tokenizer
from r1jax.models import transformer
from r1jax.models.config import ModelConfig
from r1jax.models.presets import preset
from r1jax.models.weights import weights
from r1jax.parallel import sharding
from r1jax.rewards import accuracy
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts.engine import make_engine
from r1jax.runtime import metrics
from r1jax.tools import memory
from r1jax.training import evaluate, grpo, inspection, models, sft

FIRST = 256  # Examples looked at, of a dataset that makes them when read.
PROBLEMS, SAMPLES = 8, 4  # Of each task, to measure the base on.
SHARES = ("embed", "unembed", "dense", "moe", "mtp")  # Of the parameters.
GIB = 2**30

OK, NOTE, WRONG, PLAIN = "ok", "note", "WRONG", ""


class Line(NamedTuple):
  """One finding; PLAIN lines only tell."""

  verdict: str
  text: str


class Context:
  """The config, and what several checks need of it, made when first used."""

  def __init__(self, config: ConfigDict):
    self.config = config
    self.too_large = False  # For this machine's memory.

  @functools.cached_property
  def dataset(self):
    """All that the config trains on."""
    return data.load(**self.config.dataset.to_dict())

  @functools.cached_property
  def examples(self):
    """The whole dataset if it is in memory, its first examples if not."""
    size = min(len(self.dataset), FIRST)
    whole = inspection.in_memory(self.dataset)
    return whole or [self.dataset[i] for i in range(size)]

  @functools.cached_property
  def words(self):
    """The tokenizer."""
    return tokenizer.load(**self.config.tokenizer)

  @functools.cached_property
  def model(self):
    """The model's sizes, and its parameters."""
    return models.load(**self.config.model)

  @functools.cached_property
  def architecture(self) -> ModelConfig:
    """Sizes of the model; supervised fine-tuning starts from these alone."""
    fresh = self.config.loop == "sft"
    return preset(**self.config.model) if fresh else self.model[0]

  @functools.cached_property
  def shared(self):
    """The token ids with which all prompts begin."""
    return chat.shared_tokens(self.config.template, self.words)

  @functools.cached_property
  def sizes(self):
    """Tokens of each example's prompt beyond the shared ones."""
    template = self.config.template
    prompts = chat.encode_prompts(self.examples, template, self.words)
    return [len(ids) - len(self.shared) for ids in prompts]

  @functools.cached_property
  def brief(self):
    """The same run, one round long, at learning rate 0."""
    c = ConfigDict(self.config.to_dict())
    c.num_steps = c.checkpoint_every = c.evaluation.every = c.minibatches
    c.optimizer.learning_rate = c.router_bias_speed = 0.0
    c.evaluation.problems = c.evaluation.problems_between = PROBLEMS
    c.evaluation.samples = c.evaluation.samples_between = SAMPLES
    if "larger" in c.evaluation:
      del c.evaluation.larger
    if "tasks" in c.evaluation.test:  # In turn: no more need be made.
      c.evaluation.test.size = PROBLEMS * len(c.evaluation.test.tasks)
    return c

  @functools.cached_property
  def sets(self) -> list[evaluate.Problems]:
    """All problems that the run measures itself on."""
    return evaluate.evaluation(**self.config.evaluation.to_dict())["whole"]

  @functools.cached_property
  def tested(self):
    """A few test problems of each task."""
    sets = [part for part in self.sets if not part.name.endswith("+1")]
    return [example for part in sets for example in part.examples[:PROBLEMS]]


def resolved(context: Context) -> Iterator[Line]:
  """The config as it would run, and whether it fits its loop."""
  for key, value in context.config.to_dict().items():
    if isinstance(value, Mapping):
      value = "  ".join(f"{k}={v}" for k, v in value.items())
    yield Line(PLAIN, f"{key}: {value}")
  configs.check(context.config)
  yield Line(OK, f"every section fits the loop {context.config.loop!r}")


def batch(context: Context) -> Iterator[Line]:
  """What a round is, and what steps and periods come to in rounds."""
  c = context.config
  count = c.prompts_per_round * c.group_size
  rounds = c.num_steps // c.minibatches
  prompts, problems = rounds * c.prompts_per_round, len(context.dataset)
  yield Line(
    OK,
    f"a round: {c.prompts_per_round} prompts x {c.group_size} = {count:,} "
    f"completions, at most {count * c.sampling.max_tokens:,} tokens, in "
    f"{c.minibatches} updates of {count // c.minibatches:,}",
  )
  yield Line(
    OK,
    f"{c.num_steps:,} steps = {rounds:,} rounds = {prompts:,} prompts, "
    f"{prompts / problems:.3g} of {problems:,} problems; the reference is "
    f"copied every {c.reference_every // c.minibatches:,} rounds",
  )


def prompts(context: Context) -> Iterator[Line]:
  """Three prompts as the model reads them, and EOS."""
  c, words, shared = context.config, context.words, context.shared
  inspection.check_vocabulary(words, context.model[0])
  render = templates.find(c.template, words)
  bare = isinstance(render, templates.QuestionOnly)
  eos = ", ".join(f"{i} {words.piece(i)!r}" for i in words.eos_ids)
  for example in context.examples[:3]:
    turn = templates.user_turn(example.prompt)
    text = render(turn, generation_prompt=True)
    ids = chat.prompt(turn, render, words).ids
    name, begins = example.id, len(words.prefix_ids) if bare else 0
    back = words.decode(ids[begins:])
    at = len(os.path.commonprefix([back, text]))
    if bare and set(ids[begins:]) & set(words.eos_ids):
      yield Line(WRONG, f"{name}: EOS ({eos}) stands in the prompt")
    elif back != text:
      yield Line(
        WRONG,
        f"{name}: {text[at : at + 20]!r} comes back from its tokens as "
        f"{back[at : at + 20]!r}; the tokenizer does not know it",
      )
    elif tuple(ids[: len(shared)]) != shared:
      yield Line(WRONG, f"{name}: does not begin with the template")
    else:
      yield Line(
        OK,
        f"{name}: {len(ids)} tokens, the first {len(shared)} shared by all, "
        "decode to the prompt" + ("; no EOS in it" if bare else ""),
      )
  tags = [f"{tag} {len(words.encode(tag))}" for tag in tokenizer.TAGS]
  yield Line(OK, f"EOS is {eos}; tokens of the tags: {', '.join(tags)}")
  declared = _declared(c.model.get("path"), "config.json").get("eos_token_id")
  ids = declared if isinstance(declared, list) else [declared]
  if declared is not None and not {*ids} & {*words.eos_ids}:
    yield Line(WRONG, f"EOS is {declared} in the model's config.json")
  pieces = ", ".join(f"{i} {words.piece(i)!r}" for i in words.prefix_ids)
  yield Line(OK, f"prompts begin with {pieces or 'no BOS'} (tokenizer.bos)")


def _declared(folder: str | None, name: str) -> dict:
  file = pathlib.Path(folder or os.devnull) / name
  return json.loads(file.read_text()) if file.is_file() else {}


def problems(context: Context) -> Iterator[Line]:
  """Prompts fit the window, and updates their rows."""
  c, sizes = context.config, context.sizes
  evaluated = [example for part in context.sets for example in part.examples]
  inspection.check_prompts([*context.examples, *evaluated], context.words, c)
  window = c.sampling.prompt_tokens
  yield Line(
    OK,
    f"{len(sizes):,} prompts have {min(sizes)} to {max(sizes)} tokens beyond "
    f"the shared {len(context.shared)}; the window has {window}",
  )
  known = inspection.is_in_memory(context.dataset)
  longest = len(context.shared) + (max(sizes) if known else window)
  needed = inspection.rows_needed(c, longest)
  size = c.minibatches * c.rows.max_rows * c.rows.width * 6 * 4 / 2**20
  enough = 0 < needed <= c.rows.max_rows
  yield Line(
    OK if enough else WRONG,
    f"an update of prompts of {longest} tokens and completions of "
    f"{c.sampling.max_tokens} needs {needed or 'wider'} rows, and there are "
    f"{c.rows.max_rows} of {c.rows.width} tokens ({size:.1f} MiB a round)"
    + ("" if enough else "; unused rows cost nothing"),
  )


def answers(context: Context) -> Iterator[Line]:
  """Reference answers are right by themselves, in the tags, and not leaked."""
  tested = context.tested
  trained = {example.prompt for example in context.examples}
  both = [example.id for example in tested if example.prompt in trained]
  yield Line(
    WRONG if both else OK,
    f"{len(both)} of {len(tested)} test problems are trained on"
    + (f", such as {both[0]}" if both else ""),
  )
  wrong = accuracy.verify_golds([*context.examples, *tested])
  for name, answer in wrong[: inspection.SHOWN]:
    yield Line(WRONG, f"{name}: the answer {answer!r} does not verify itself")
  count = len(context.examples) + len(tested)
  yield Line(
    WRONG if wrong else OK,
    f"{count - len(wrong):,} of {count:,} reference answers verify themselves",
  )
  for what, worth in (("the reference answer", 1), ("no answer", 0)):
    written = [tagged(e.answer if worth else "") for e in tested]
    scores = rewards.score(tested, written, **context.config.rewards.to_dict())
    parts = {k: np.nan_to_num(v).mean() for k, v in scores.parts.items()}
    good = parts.get("accuracy", worth) == worth
    shown = ", ".join(f"{k} {v:g}" for k, v in parts.items())
    yield Line(OK if good else WRONG, f"{what} in its tags earns: {shown}")


def tagged(answer: str) -> str:
  """A completion that gives `answer` and thinks of nothing."""
  return f"<think> </think> <answer>{answer}</answer>"


def resources(context: Context) -> Iterator[Line]:
  """Parameters, and roughly the memory of a run."""
  model, tree = context.architecture, weights(context.architecture)
  outer = {name: memory.count(tree.get(name, {})) for name in SHARES}
  shown = ", ".join(f"{n:,} in {name}" for name, n in outer.items() if n)
  yield Line(OK, f"{memory.count(tree):,} parameters: {shown}")
  parts = memory.estimate(context.config, model)
  total, limit = sum(parts.values()), memory.limit()
  context.too_large = total > limit
  each = ", ".join(f"{k} {n / GIB:.2g}" for k, n in parts.items())
  yield Line(
    WRONG if context.too_large else OK,
    f"about {total / GIB:.2g} GiB of {limit / GIB:.1f}: {each}",
  )


def one_round(context: Context) -> Iterator[Line]:
  """The loop's own first round, with nothing to move the parameters."""
  if context.too_large:
    raise ValueError("no round was tried: there is not enough memory for it")
  with tempfile.TemporaryDirectory() as workdir:
    with contextlib.redirect_stdout(io.StringIO()):
      params = grpo.train(context.brief, workdir).train.params
    written = [
      {name: math.nan if value is None else value for name, value in r.items()}
      for r in metrics.read(workdir)
    ]
  (row,) = (r for r in written if "round" in r)
  base, again = (r for r in written if "round" not in r)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  yield Line(
    OK,
    f"one round: {row['data/tokens']:,} tokens sampled in "
    f"{row['perf/gen_time']:.1f} s, learned in {row['perf/train_time']:.1f} s, "
    f"compiling included; {peak / GIB:.2g} GiB at most",
  )
  same = jax.tree.map(np.array_equal, context.model[1], params)
  moved = float(sum(not leaf for leaf in jax.tree.leaves(same)))
  for what, value, most in (
    ("nats between sampler and trainer", row["sampling/logp_diff_max"], 1e-3),
    ("of the mean ratio from 1", row["ratio/mean"] - 1, 1e-5),
    ("nats of KL to the reference", row.get("kl/ref", 0.0), 1e-6),
    ("arrays moved at learning rate 0", moved, 0.0),
    ("of pass@1 measured twice", _pass(again) - _pass(base), 0.0),
  ):
    verdict = OK if abs(value) <= most else WRONG  # WRONG for NaN.
    yield Line(verdict, f"{value:.2g} {what}; {most:g} at most")
  norm, flat = row["optim/grad_norm"], row["reward/frac_zero_std"]
  verdict = OK if norm > 0 and math.isfinite(norm) else WRONG
  yield Line(
    NOTE if flat == 1 and norm == 0 else verdict,
    f"gradient of length {norm:.3g}; {flat:.0%} of the groups are rewarded "
    f"alike, which teaches nothing; mean reward {row['reward/mean']:.3g}",
  )
  ended = row["completions/eos_frac"]
  yield Line(
    OK if ended else NOTE,
    f"{ended:.1%} of the completions end with EOS; mean length "
    f"{row['completions/mean_length']:.1f}",
  )
  for task in sorted({e.domain.rpartition("/")[2] for e in context.tested}):
    first = base[f"eval/{task}/pass@1"]
    some = base[f"eval/{task}/pass@{SAMPLES}"]
    yield Line(
      OK if some else NOTE,
      f"{task}: with the template pass@1 {first:.2f}, pass@{SAMPLES} "
      f"{some:.2f}" + ("" if some else "; there is nothing to reinforce"),
    )


def _pass(row: Mapping[str, Any]) -> float:
  return sum(value for name, value in row.items() if name.endswith("/pass@1"))


def untemplated(context: Context) -> Iterator[Line]:
  """pass@1 of the same problems asked plainly."""
  if context.too_large:
    raise ValueError("no round was tried: there is not enough memory for it")
  c, words, (model, params) = context.config, context.words, context.model
  asked = chat.encode_prompts(context.tested, "plain", words)
  limits = dict(prompt_tokens=max(map(len, asked)))
  engine = make_engine(
    transformer.Transformer(model),
    words,
    sharding.make_mesh(**c.mesh),
    (),
    **c.sampling.to_dict() | limits,
  )
  params = engine.prepare(params)
  rollout = engine(params, asked, SAMPLES, seed=c.evaluation.seed, round=0)
  flat, written = evaluate.completions(
    rollout, context.tested, words, c.sampling.max_tokens
  )
  given = [tagged(last_answer(completion.text)) for completion in written]
  with GraderPool(**c.grader) as pool:
    correct = rewards.score(flat, given, pool=pool, accuracy=1.0).total
  tasks = np.array([e.domain.rpartition("/")[2] for e in flat])
  for task in sorted(set(tasks)):
    share = np.nan_to_num(correct[tasks == task]).mean()
    yield Line(OK, f"{task}: without the template pass@1 {share:.2f}")


def last_answer(text: str) -> str:
  """What follows the last "Answer:", or else the last line."""
  lines = text.rpartition("Answer:")[2].strip().splitlines()
  return lines[-1].strip() if lines else ""


def documents(context: Context) -> Iterator[Line]:
  """Tokenizer and batches of supervised fine-tuning, from the first ones."""
  c, first = context.config, 4
  settings = c.tokenizer.to_dict()
  settings["documents"] = min(settings["documents"], 2000)
  with tempfile.TemporaryDirectory() as folder:
    words = tokenizer.fit_once(
      (example.answer for example in context.dataset),
      pathlib.Path(folder),
      **settings,
    )
  inspection.check_vocabulary(words, context.architecture)
  yield Line(
    OK,
    f"a tokenizer of {settings['documents']:,} documents has "
    f"{words.vocab_size} ids; EOS is {words.piece(words.eos_ids[0])!r}",
  )
  mesh, tokens, used = sharding.make_mesh(data=1), 0, 0
  for step in range(first):
    examples = data.draw(
      context.dataset, c.batch_examples, seed=c.seed, step=step
    )
    pieces = sft.demonstrations(examples, c.template, words)
    batch = sft.make_batch(mesh, pieces, **c.rows)
    tokens += int(batch.num_tokens)
    used = max(used, int((batch.packed.positions >= 0).any(-1).sum()))
  read = c.num_steps * c.batch_examples
  yield Line(
    OK,
    f"a batch: {c.batch_examples} documents, about {tokens // first:,} tokens, "
    f"in up to {used} of {c.rows.max_rows} rows of {c.rows.width}",
  )
  yield Line(
    OK,
    f"{c.num_steps:,} steps = {read:,} documents = "
    f"{read / len(context.dataset):.3g} of the dataset, about "
    f"{c.num_steps * tokens // first:,} tokens",
  )
