"""Supervised fine-tuning: the demo's base from nothing, and later the cold
start and distillation. They differ in data, not in code.
"""

import functools
import pathlib
import subprocess
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from r1jax import data, hf
from r1jax.data import chat, packing, templates, tokenizer
from r1jax.losses.sft import sft_loss
from r1jax.models import transformer
from r1jax.models.presets import preset
from r1jax.models.rows import mtp_targets
from r1jax.models.weights import logical_axes
from r1jax.parallel import offload, sharding
from r1jax.runtime import checkpoint, distributed, interrupt, metrics, profiler
from r1jax.runtime.workdir import claim
from r1jax.training import inspection
from r1jax.training.batch import microbatches
from r1jax.training.optimizer import make_optimizer
from r1jax.training.round_numbers import of_experts
from r1jax.training.update import init_state, make_update
from r1jax.types import Batch, Example, Tokenizer, TrainState


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  *,
  profile: profiler.Window | None = None,
  sinks: Sequence[str] = ("tensorboard",),
) -> TrainState:
  """Runs `config.num_steps` updates, from the newest checkpoint if any.

  Args:
    config: of the run; see `SECTIONS` and `FIELDS`.
    workdir: where all that it writes goes.
    profile: steps to trace.
    sinks: where metrics go beside metrics.jsonl; see `metrics.SINKS`.
  """
  mesh = sharding.make_mesh(**config.mesh)
  inspection.check_rows(config.rows, mesh)
  dataset = data.load(**config.dataset.to_dict())
  contents = {"dataset": data.content_hash(dataset)}
  claim(workdir, config.to_dict(), contents, ignore=CHANGEABLE)
  load = lambda: tokenizer.fit_once(
    (example.answer for example in dataset),
    pathlib.Path(workdir) / "tokenizer",
    **config.tokenizer,
  )
  distributed.from_first(lambda: load() and None)  # One host writes, all read.
  words = load()
  model = transformer.Transformer(preset(**config.model))
  inspection.check_vocabulary(words, model.config)
  optimizer = make_optimizer(**config.optimizer)
  loss = functools.partial(objective, model, words.vocab_size, **config.loss)
  axes = logical_axes(model.config)
  update = make_update(
    loss, optimizer, router_bias_speed=config.router_bias_speed, axes=axes
  )
  begin = lambda key: init_state(transformer.init(model, key), optimizer)
  state = sharding.make(mesh, axes, begin, jax.random.key(config.seed))
  state = offload.park(state, config.offload)
  restored = checkpoint.restore(workdir, state)
  state = state if restored is None else restored

  start = None if restored is None else int(state.step)
  with (
    jax.set_mesh(mesh),
    metrics.Writer(workdir, step=start, sinks=sinks) as writer,
    profiler.Profiler(
      workdir, profile, unit="step", say=writer.console.note
    ) as tracer,
  ):
    inspection.report_mixture(dataset, writer.console)
    try:
      while (step := int(state.step)) < config.num_steps:
        distributed.stop_if_told()
        tracer.begin(step)
        examples = data.draw(
          dataset, config.batch_examples, seed=config.seed, step=step
        )
        pieces = demonstrations(examples, config.template, words)
        batch = make_batch(mesh, pieces, **config.rows)
        with interrupt.deferred():
          state, numbers = update(state, batch)
          step += 1
          if step % config.metrics_every == 0:
            report(writer, step, numbers, config.num_steps)
          if step % config.checkpoint_every == 0:
            checkpoint.save(workdir, step, state)
    except interrupt.Interrupted:
      with interrupt.deferred():
        checkpoint.save(workdir, int(state.step), state, wait=True)
      raise
    with interrupt.deferred():
      checkpoint.save(workdir, int(state.step), state, wait=True)
      trained = sharding.local(state.params)
      if distributed.is_first():
        hf.save(
          pathlib.Path(workdir) / "model",
          model.config,
          trained,
          tokenizer=pathlib.Path(workdir) / "tokenizer",
          provenance=dict(
            config=config.to_dict(), step=int(state.step), commit=commit()
          ),
        )
    writer.console.note(f"the model is in {workdir}/model")
  return state


def objective(model, vocab_size, params, batch: Batch, *, mtp, balance):
  """Next-token loss, the MTP block's, and the experts' balance, weighted.

  Args:
    model: its architecture.
    vocab_size: of the tokenizer; the model's may be padded.
    params: of the model.
    batch: one microbatch.
    mtp: weight of the mean loss on tokens t + 2 and on, as far as the model
      predicts (arXiv:2412.19437, eq. 25).
    balance: weight of the sequence-wise balance loss (eq. 17): the mean over
      all tokens that the model reads, so that a row counts as much as its
      tokens; even experts have 1.
  """

  def nll_of(hidden, targets, counted):
    logprobs, _ = transformer.logprobs(
      params, hidden, targets, vocab_size=vocab_size, counted=counted
    )
    return sft_loss(logprobs, counted / batch.num_targets)

  packed = batch.packed
  forward = transformer.forward(model, params, packed, mtp=mtp > 0)
  nll = nll_of(forward.hidden, packed.targets, batch.weights > 0)
  balance_loss = forward.balance_loss / batch.num_tokens
  total = nll + balance * balance_loss
  numbers = {
    "loss/nll": nll,
    "loss/balance": balance_loss,
    "router/load": forward.expert_load,
  }
  if mtp:
    losses = []
    for depth, hidden in enumerate(forward.mtp_hidden, 1):
      losses.append(nll_of(hidden, *mtp_targets(packed, depth)))
    numbers["loss/mtp"] = sum(losses) / len(losses)
    total += mtp * numbers["loss/mtp"]
  return total, numbers


def demonstrations(
  examples: Sequence[Example], template: str, words: Tokenizer
) -> list[chat.Demonstration]:
  """Prompts in the template, which are read, and answers, to be imitated.

  An example without a prompt is a document, imitated from its beginning.
  """
  render = templates.find(template, words)
  found = []
  for prompt, answer, *_ in examples:
    if prompt:
      turns = templates.user_turn(prompt)
      turns.append({"role": "assistant", "content": answer})
      found += chat.demonstrations(turns, render, words)
    else:
      ids = [*words.encode(answer), words.eos_ids[0]]
      found.append(chat.Demonstration([*words.prefix_ids], ids))
  return found


def make_batch(
  mesh: Mesh,
  demonstrations: Sequence[chat.Demonstration],
  *,
  width: int,
  max_rows: int,
  microbatch_rows: int,
) -> Batch:
  """A batch of prompts, which are read, and answers, which are imitated.

  Args:
    mesh: splits the rows.
    demonstrations: prompts and answers.
    width: slots of a row.
    max_rows: rows of a batch; unused ones are not computed.
    microbatch_rows: rows that go through the model at once.
  """
  pieces = [
    packing.Piece(prompt, [completion], [i * width])
    for i, (prompt, completion) in enumerate(demonstrations)
  ]
  packed = packing.pack(pieces, width, rows=max_rows)
  packed, count = microbatches(packed, microbatch_rows)
  imitated = packed.origin >= 0
  num_targets = np.int32(max(imitated.sum(), 1))
  weights = imitated / np.float32(num_targets)
  num_tokens = np.int32(max(np.sum(packed.positions >= 0), 1))
  packed, weights = sharding.assemble(mesh, (packed, weights))
  return Batch(
    packed=packed,
    num_microbatches=np.int32(count),
    weights=weights,
    num_targets=num_targets,
    num_tokens=num_tokens,
  )


def report(writer, step, numbers, num_steps) -> None:
  """Writes a row, and shows it."""
  numbers = jax.device_get(numbers)
  numbers |= of_experts(numbers.pop("router/load"))
  writer.write(step, **numbers)
  writer.console.progress(
    step, num_steps, unit="step", nll=float(numbers["loss/nll"])
  )


def commit() -> str | None:
  """The commit of the repository that this file is in, if it is in one."""
  folder = pathlib.Path(__file__).parent
  try:
    found = subprocess.run(
      ["git", "-C", str(folder), "rev-parse", "HEAD"],
      capture_output=True,
      text=True,
      timeout=10,
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return found.stdout.strip() or None


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for settings that cannot go together."""
  inspection.check_rows(config.rows)
  templates.check(config.template)
  make_optimizer(**config.optimizer)
  offload.check(config.offload)


SECTIONS = {
  "mesh": sharding.make_mesh,
  "model": preset,
  "tokenizer": tokenizer.fit_once,
  "dataset": data.DATASETS,
  "rows": make_batch,
  "loss": objective,
  "optimizer": make_optimizer,
}
CHANGEABLE = ("num_steps", "metrics_every", "checkpoint_every", "cpu_devices")
FIELDS = (
  *CHANGEABLE,
  "seed",
  "template",
  "batch_examples",
  "router_bias_speed",
  "offload",
)
