"""The loop of supervised fine-tuning (SFT).

Cold start, the SFT of R1, and distillation are this loop with other data. It
also trains the base model of the demo from scratch.
"""

import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections

from r1jax import data
from r1jax.config import bind
from r1jax.data import templates
from r1jax.data import tokenizer as tokenizers
from r1jax.losses.aggregation import completion_mean, token_mean
from r1jax.losses.distillation import top_k_kl
from r1jax.losses.sft import sft_loss
from r1jax.models import transformer
from r1jax.models.rows import mtp_targets
from r1jax.parallel import offload
from r1jax.parallel.mesh import make_mesh
from r1jax.runtime import checkpoint, distributed, interrupt, metrics, profiler
from r1jax.runtime.workdir import claim
from r1jax.training import inspection, models
from r1jax.training.distillation import logprobs_of, make_teacher
from r1jax.training.export import export
from r1jax.training.held_back import evaluation
from r1jax.training.optimizer import make_optimizer
from r1jax.training.round_numbers import load_numbers
from r1jax.training.sft_batch import (
  gather_fitting,
  make_batches,
  read_ahead,
  read_texts,
)
from r1jax.training.state import contents, make_frozen, restore_or_init
from r1jax.training.update import init_state, make_update
from r1jax.types import Batch, Example, Tokenizer, TrainState


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  *,
  profile: profiler.Window | None = None,
  sinks: Sequence[str] = ("tensorboard",),
) -> TrainState:
  """The final state of a run of `config.num_steps` updates.

  The run resumes from the newest checkpoint in the workdir if there is one. At
  the end, the model is exported to WORKDIR/model in Hugging Face layout.

  Texts that are longer than the widest row are left out and counted; no text is
  cut.

  Args:
    config: of the run; see `SECTIONS` and `FIELDS`.
    workdir: for checkpoints, metrics and all other output.
    profile: steps to trace; None traces none.
    sinks: of metrics, in addition to metrics.jsonl; see `metrics.SINKS`.

  Raises Interrupted after a signal, once a checkpoint is saved, and
  ValueError for an invalid config, an example that has no texts, or a workdir
  of another run.
  """
  # The parts of the run.
  mesh = make_mesh(**config.mesh)
  inspection.check_rows(config.rows, mesh)
  dataset = data.load(**config.dataset.to_dict())
  claim(workdir, config.to_dict(), contents(config, dataset))
  tokenizer, tokenizer_folder = make_tokenizer(
    dataset, pathlib.Path(workdir) / "tokenizer", **config.tokenizer
  )
  initial = models.initial(**config.model.to_dict())
  model = transformer.Transformer(initial.config)
  inspection.check_vocabulary(tokenizer, model.config)
  optimizer = make_optimizer(**config.optimizer)
  loss = functools.partial(
    objective, model, tokenizer.vocab_size, **config.loss
  )
  frozen = make_frozen(mesh, initial)
  update = make_update(
    frozen.loss(loss),
    optimizer,
    router_bias_speed=config.router_bias_speed,
    axes=initial.axes,
  )
  longest = max(config.rows.widths)
  to_batches = lambda texts: make_batches(
    mesh, texts, config.aggregation.to_dict(), **config.rows
  )
  read = functools.partial(
    read_texts, template=config.template, tokenizer=tokenizer
  )
  evaluate = evaluation(
    functools.partial(objective, model, tokenizer.vocab_size, mtp=0, balance=0),
    to_batches,
    lambda *args, **draw: gather_fitting(read(*args, **draw), longest)[0],
    **config.evaluation.to_dict(),
  )
  teach = make_teacher(mesh, tokenizer, **config.teacher)
  init = functools.partial(init_state, optimizer=optimizer)
  state, restored = restore_or_init(
    workdir, mesh, initial, init, config.offload
  )
  read_step = lambda step: read(
    dataset, count=config.batch_examples, seed=config.seed, step=step
  )
  with (
    jax.set_mesh(mesh),
    metrics.Writer(workdir, step=restored, sinks=sinks) as writer,
    profiler.Profiler(
      workdir, profile, unit="step", log=writer.console.note
    ) as tracer,
    read_ahead(read_step, int(state.step), config.num_steps) as texts_by_step,
  ):
    inspection.report_mixture(dataset, writer.console)
    too_long = 0
    try:
      while (step := int(state.step)) < config.num_steps:
        distributed.raise_if_interrupted()
        tracer.begin(step)
        # Texts of the step, in rows.
        texts, left_out = gather_fitting(next(texts_by_step), longest)
        too_long += left_out
        batches = map(teach, to_batches(texts))
        with interrupt.deferred():
          # One update.
          state, numbers = update(state, frozen.batches(batches))
          step += 1
          # Metrics, evaluation and checkpoint, where due.
          if step % config.metrics_every == 0:
            numbers |= data.epochs(dataset, config.batch_examples, step=step)
            numbers["data/too_long"], too_long = too_long, 0
            report(writer, step, numbers, config.num_steps)
          if evaluate.is_due(step):
            writer.write(step, **evaluate(frozen.full(state.params)))
          if step % config.checkpoint_every == 0:
            checkpoint.save(workdir, step, state)
    except interrupt.Interrupted:
      with interrupt.deferred():
        checkpoint.save(workdir, int(state.step), state, wait=True)
      raise
    with interrupt.deferred():
      checkpoint.save(workdir, int(state.step), state, wait=True)
      export(workdir, config, model.config, state, tokenizer_folder, frozen)
    writer.console.note(f"the model is in {workdir}/model")
  return state


def objective(
  model, vocab_size, params, batch: Batch, *, mtp, balance, distillation=0.0
):
  """The loss of one microbatch and its metrics.

      loss = (1 - distillation) * next-token NLL + distillation * KL
             + mtp * MTP loss + balance * balance loss

  Args:
    model: the Flax module.
    vocab_size: of the tokenizer; that of the model may be larger.
    params: of the model.
    batch: one microbatch.
    mtp: weight of the mean loss of the MTP blocks on tokens t + 2 and later
      (arXiv:2412.19437, eq. 25).
    balance: weight of the sequence-wise balance loss (eq. 17), a mean over all
      tokens that the model reads; it is 1 if the load of experts is even. A
      sequence is a packed row, with all of its texts.
    distillation: share of the KL of the student from the teacher, of which the
      batch has the likeliest tokens; see `losses.distillation.top_k_kl`.
  """

  def nll_of(hidden, targets, weights):
    logprobs, _ = transformer.logprobs(
      params, hidden, targets, vocab_size=vocab_size, counted=weights > 0
    )
    return sft_loss(logprobs, weights)

  packed = batch.packed
  forward = transformer.forward(model, params, packed, mtp=mtp > 0)
  nll = nll_of(forward.hidden, packed.targets, batch.weights)
  balance_loss = forward.balance_loss / batch.num_tokens
  total = (1 - distillation) * nll + balance * balance_loss
  numbers = {
    "loss/nll": nll,
    "loss/balance": balance_loss,
    "router/load": forward.expert_load,
  }
  if distillation:
    logprobs = logprobs_of(
      params, forward.hidden, batch.teacher_ids, vocab_size
    )
    kl = top_k_kl(logprobs, batch.teacher_logprobs)
    numbers["loss/distillation"] = sft_loss(-kl, batch.weights)
    total += distillation * numbers["loss/distillation"]
  if mtp:
    losses = []
    for depth, hidden in enumerate(forward.mtp_hidden, 1):
      targets, same_text = mtp_targets(packed, depth)
      weights = jnp.roll(batch.weights, -depth, axis=1)
      losses.append(nll_of(hidden, targets, jnp.where(same_text, weights, 0)))
    numbers["loss/mtp"] = sum(losses) / len(losses)
    total += mtp * numbers["loss/mtp"]
  return total, numbers


def make_tokenizer(
  dataset: Sequence[Example],
  folder: pathlib.Path,
  *,
  path: str | None = None,
  bos: bool | None = None,
  documents: int = 0,
  word_share: float = 0.0,
) -> tuple[Tokenizer, pathlib.Path]:
  """The tokenizer of a run, and the directory with its files.

  Args:
    dataset: of the run.
    folder: where a tokenizer is written that is fitted to the dataset.
    path: the directory of a tokenizer; None fits one.
    bos: see `tokenizer.load`.
    documents: the number of answers to fit a tokenizer to.
    word_share: see `tokenizer.fit`.
  """
  if path is not None:
    return tokenizers.load(path, bos=bos), pathlib.Path(path)
  load = lambda: tokenizers.load_or_fit(
    (example.answer for example in dataset),
    folder,
    documents=documents,
    word_share=word_share,
  )
  # The first host fits and writes the tokenizer, then all read it.
  distributed.from_first(lambda: load() and None)
  return load(), folder


def report(writer, step, numbers, num_steps) -> None:
  """Writes a row of metrics, and shows progress."""
  numbers = jax.device_get(numbers)
  numbers |= load_numbers(numbers.pop("router/load"))
  writer.write(step, **numbers)
  writer.console.progress(
    step, num_steps, unit="step", nll=float(numbers["loss/nll"])
  )


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for sections that contradict each other."""
  inspection.check_rows(config.rows)
  inspection.check_adapter(config)
  templates.check(config.template)
  make_optimizer(**config.optimizer)
  offload.check(config.offload)
  if ("path" in config.tokenizer) == ("documents" in config.tokenizer):
    raise ValueError(
      "config section 'tokenizer' has either 'path', of a tokenizer, or "
      "'documents', to which one is fitted"
    )
  if bool(config.loss.get("distillation")) != ("path" in config.teacher):
    raise ValueError(
      "loss.distillation and the section 'teacher', with its path, need each "
      f"other; they are {config.loss.get('distillation', 0.0)} and "
      f"{config.teacher.to_dict()}"
    )
  if section := config.evaluation.get("dataset"):
    bind("evaluation.dataset", section.to_dict(), data.DATASETS)


SECTIONS = {
  "mesh": make_mesh,
  "model": models.MODELS,
  "tokenizer": make_tokenizer,
  "dataset": data.DATASETS,
  "rows": make_batches,
  "aggregation": {"token_mean": token_mean, "completion_mean": completion_mean},
  "loss": objective,
  "optimizer": make_optimizer,
  "evaluation": evaluation,
  "teacher": make_teacher,
}
FIELDS = (
  "num_steps",
  "metrics_every",
  "checkpoint_every",
  "cpu_devices",
  "seed",
  "template",
  "batch_examples",
  "router_bias_speed",
  "offload",
)
