"""The checks of the doctor; each yields its findings, one line each."""

import contextlib
import io
import json
import math
import os
import pathlib
import resource
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from r1jax import config as configs
from r1jax import rewards
from r1jax.data import chat, templates
from r1jax.data import tokenizer as tokenizers
from r1jax.models import transformer
from r1jax.models.weights import weights
from r1jax.parallel.mesh import make_mesh
from r1jax.rewards import accuracy
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts.engine import make_engine
from r1jax.runtime import metrics
from r1jax.tools import memory
from r1jax.tools.examination import (
  INFO,
  NOTE,
  OK,
  SAMPLES,
  WRONG,
  Context,
  Line,
)
from r1jax.training import grpo, inspection, measures, sft, sft_batch

SHARES = ("embed", "unembed", "dense", "moe", "mtp")  # Parts of the parameters.
GIB = 2**30


def resolved(context: Context) -> Iterator[Line]:
  """The resolved config, and whether it fits its loop."""
  for key, value in context.config.to_dict().items():
    if isinstance(value, Mapping):
      value = "  ".join(f"{k}={v}" for k, v in value.items())
    yield Line(INFO, f"{key}: {value}")
  configs.check(context.config)
  yield Line(OK, f"every section fits the loop {context.config.loop!r}")


def batch(context: Context) -> Iterator[Line]:
  """The size of a round, and the length of the run and periods in rounds."""
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
  """Checks three prompts as the model reads them, EOS and BOS."""
  c, tokenizer, shared = context.config, context.tokenizer, context.shared
  inspection.check_vocabulary(tokenizer, context.model[0])
  render = templates.find(c.template, tokenizer)
  bare = isinstance(render, templates.QuestionOnly)
  eos = ", ".join(
    f"{i} {tokenizer.id_to_token(i)!r}" for i in tokenizer.eos_ids
  )
  for example in context.examples[:3]:
    turn = templates.user_turn(example.prompt)
    text = render(turn, generation_prompt=True)
    ids = chat.prompt(turn, render, tokenizer).ids
    name, begins = example.id, len(tokenizer.prefix_ids) if bare else 0
    back = tokenizer.decode(ids[begins:])
    at = len(os.path.commonprefix([back, text]))
    if bare and set(ids[begins:]) & set(tokenizer.eos_ids):
      yield Line(WRONG, f"{name}: the prompt contains EOS ({eos})")
    elif back != text:
      yield Line(
        WRONG,
        f"{name}: {text[at : at + 20]!r} comes back from its tokens as "
        f"{back[at : at + 20]!r}; the tokenizer cannot represent it",
      )
    elif tuple(ids[: len(shared)]) != shared:
      yield Line(WRONG, f"{name}: does not begin with the template")
    else:
      yield Line(
        OK,
        f"{name}: {len(ids)} tokens, the first {len(shared)} shared by all, "
        "decode to the prompt" + ("; no EOS in it" if bare else ""),
      )
  tags = [f"{tag} {len(tokenizer.encode(tag))}" for tag in tokenizers.TAGS]
  yield Line(OK, f"EOS is {eos}; tokens of the tags: {', '.join(tags)}")
  declared = _declared(c.model.get("path"), "config.json").get("eos_token_id")
  ids = declared if isinstance(declared, list) else [declared]
  if declared is not None and not {*ids} & {*tokenizer.eos_ids}:
    yield Line(WRONG, f"EOS is {declared} in the model's config.json")
  pieces = ", ".join(
    f"{i} {tokenizer.id_to_token(i)!r}" for i in tokenizer.prefix_ids
  )
  yield Line(OK, f"prompts begin with {pieces or 'no BOS'} (tokenizer.bos)")


def _declared(folder: str | None, name: str) -> dict:
  file = pathlib.Path(folder or os.devnull) / name
  return json.loads(file.read_text()) if file.is_file() else {}


def problems(context: Context) -> Iterator[Line]:
  """Checks that prompts fit the window, and updates their rows."""
  c, sizes = context.config, context.sizes
  evaluated = [example for part in context.sets for example in part.examples]
  inspection.check_prompts(
    [*context.examples, *evaluated], context.tokenizer, c
  )
  window = c.sampling.prompt_tokens
  yield Line(
    OK,
    f"{len(sizes):,} prompts have {min(sizes)} to {max(sizes)} tokens beyond "
    f"the shared {len(context.shared)}; the window has {window}",
  )
  known = inspection.is_in_memory(context.dataset)
  longest = len(context.shared) + (max(sizes) if known else window)
  text, width = longest - 1 + c.sampling.max_tokens, max(c.rows.widths)
  yield Line(
    OK if text <= width else WRONG,
    f"a prompt of {longest} tokens and a completion of "
    f"{c.sampling.max_tokens} take {text} slots of a row, and the widest of "
    f"rows.widths has {width}",
  )


def answers(context: Context) -> Iterator[Line]:
  """Checks that reference answers verify, earn rewards, and do not leak."""
  tested = context.tested
  trained = {example.prompt for example in context.examples}
  both = [example.id for example in tested if example.prompt in trained]
  yield Line(
    WRONG if both else OK,
    f"{len(both)} of {len(tested)} test problems are also in training"
    + (f", such as {both[0]}" if both else ""),
  )
  wrong = accuracy.verify_golds([*context.examples, *tested])
  for name, answer in wrong[: inspection.MAX_SHOWN]:
    yield Line(WRONG, f"{name}: the answer {answer!r} does not verify itself")
  count = len(context.examples) + len(tested)
  yield Line(
    WRONG if wrong else OK,
    f"{count - len(wrong):,} of {count:,} reference answers verify themselves",
  )
  for what, worth in (("the reference answer", 1), ("no answer", 0)):
    completions = [tagged(e.answer if worth else "") for e in tested]
    scores = rewards.score(
      tested, completions, **context.config.rewards.to_dict()
    )
    parts = {k: np.nan_to_num(v).mean() for k, v in scores.parts.items()}
    good = parts.get("accuracy", worth) == worth
    shown = ", ".join(f"{k} {v:g}" for k, v in parts.items())
    yield Line(OK if good else WRONG, f"{what} in its tags earns: {shown}")


def tagged(answer: str) -> str:
  """A completion with `answer` in its tags and an empty thought."""
  return f"<think> </think> <answer>{answer}</answer>"


def resources(context: Context) -> Iterator[Line]:
  """The number of parameters, and an estimate of the memory of a run."""
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
  """Runs the loop for one round at learning rate 0, and checks its metrics."""
  if context.too_large:
    raise ValueError("no round was run: there is not enough memory for it")
  with tempfile.TemporaryDirectory() as workdir:
    with contextlib.redirect_stdout(io.StringIO()):
      params = grpo.train(context.brief, workdir).train.params
    rows = [
      {name: math.nan if value is None else value for name, value in r.items()}
      for r in metrics.read(workdir)
    ]
  (row,) = (r for r in rows if "round" in r)
  base, again = (r for r in rows if "round" not in r)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  yield Line(
    OK,
    f"one round: {row['data/tokens']:,} tokens sampled in "
    f"{row['perf/gen_time']:.1f} s, updates in {row['perf/train_time']:.1f} s, "
    f"both with compilation; peak memory {peak / GIB:.2g} GiB",
  )
  same = jax.tree.map(np.array_equal, context.model[1], params)
  changed = float(sum(not leaf for leaf in jax.tree.leaves(same)))
  for what, value, most in (
    ("nats between sampler and trainer", row["sampling/logp_diff_max"], 1e-3),
    ("of the mean ratio from 1", row["ratio/mean"] - 1, 1e-5),
    ("nats of KL to the reference", row.get("kl/ref", 0.0), 1e-6),
    ("arrays changed at learning rate 0", changed, 0.0),
    ("of pass@1 between two evaluations", _pass(again) - _pass(base), 0.0),
  ):
    verdict = OK if abs(value) <= most else WRONG  # NaN is WRONG.
    yield Line(verdict, f"{value:.2g} {what}; {most:g} at most")
  norm, flat = row["optim/grad_norm"], row["reward/frac_zero_std"]
  verdict = OK if norm > 0 and math.isfinite(norm) else WRONG
  yield Line(
    NOTE if flat == 1 and norm == 0 else verdict,
    f"gradient norm {norm:.3g}; {flat:.0%} of the groups have equal rewards "
    f"and so no signal; mean reward {row['reward/mean']:.3g}",
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
      f"{some:.2f}" + ("" if some else "; there is no success to reinforce"),
    )


def _pass(row: Mapping[str, Any]) -> float:
  return sum(value for name, value in row.items() if name.endswith("/pass@1"))


def without_template(context: Context) -> Iterator[Line]:
  """The pass@1 of the same problems with the template "plain"."""
  if context.too_large:
    raise ValueError("no round was run: there is not enough memory for it")
  c, tokenizer = context.config, context.tokenizer
  model, params = context.model
  prompts = chat.encode_prompts(context.tested, "plain", tokenizer)
  limits = dict(prompt_tokens=max(map(len, prompts)))
  engine = make_engine(
    transformer.Transformer(model),
    tokenizer,
    make_mesh(**c.mesh),
    (),
    **c.sampling.to_dict() | limits,
  )
  params = engine.prepare(params)
  rollout = engine(params, prompts, SAMPLES, seed=c.evaluation.seed, round=0)
  flat, completions = measures.completions(
    rollout, context.tested, tokenizer, c.sampling.max_tokens
  )
  answers = [tagged(last_answer(completion.text)) for completion in completions]
  with GraderPool(**c.grader) as pool:
    correct = rewards.score(flat, answers, pool=pool, accuracy=1.0).total
  tasks = np.array([e.domain.rpartition("/")[2] for e in flat])
  for task in sorted(set(tasks)):
    share = np.nan_to_num(correct[tasks == task]).mean()
    yield Line(OK, f"{task}: without the template pass@1 {share:.2f}")


def last_answer(text: str) -> str:
  """The line after the last "Answer:", or else the last line; may be ""."""
  lines = text.rpartition("Answer:")[2].strip().splitlines()
  return lines[-1].strip() if lines else ""


def documents(context: Context) -> Iterator[Line]:
  """Checks the tokenizer and the first batches of SFT."""
  c, first, source = context.config, 4, "of tokenizer.path"
  settings = c.tokenizer.to_dict()
  if "documents" in settings:
    settings["documents"] = min(settings["documents"], 2000)
    source = f"of {settings['documents']:,} documents"
  with tempfile.TemporaryDirectory() as folder:
    tokenizer, _ = sft.make_tokenizer(
      context.dataset, pathlib.Path(folder), **settings
    )
  inspection.check_vocabulary(tokenizer, context.architecture)
  eos = tokenizer.id_to_token(tokenizer.eos_ids[0])
  yield Line(
    OK,
    f"a tokenizer {source} has {tokenizer.vocab_size} ids; EOS is {eos!r}",
  )
  mesh, tokens, slots, too_long = make_mesh(data=1), 0, 0, 0
  for step in range(first):
    own = sft_batch.read_texts(
      context.dataset,
      c.template,
      tokenizer,
      count=c.batch_examples,
      seed=c.seed,
      step=step,
    )
    texts, left_out = sft_batch.gather_fitting(own, max(c.rows.widths))
    batches = sft_batch.make_batches(
      mesh, texts, c.aggregation.to_dict(), **c.rows
    )
    tokens += int(batches[0].num_tokens)
    slots += sum(batch.weights.size for batch in batches)
    too_long += left_out
  if too_long:
    yield Line(
      NOTE,
      f"{too_long} texts of {first} batches are left out: they do not fit rows "
      f"of {max(c.rows.widths):,} slots, the widest of rows.widths",
    )
  read = c.num_steps * c.batch_examples
  yield Line(
    OK,
    f"a batch: {c.batch_examples} documents, about {tokens // first:,} tokens, "
    f"which fill {tokens / slots:.0%} of the slots of the packed rows",
  )
  yield Line(
    OK,
    f"{c.num_steps:,} steps = {read:,} documents = "
    f"{read / len(context.dataset):.3g} of the dataset, about "
    f"{c.num_steps * tokens // first:,} tokens",
  )
