"""The loop of supervised fine-tuning (SFT).

It trains the base model of the demo from scratch. Cold start and distillation
are the same loop with other data.
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
from r1jax.data import chat, packing, templates
from r1jax.data import tokenizer as tokenizers
from r1jax.losses.sft import sft_loss
from r1jax.models import transformer
from r1jax.models.rows import mtp_targets
from r1jax.models.weights import logical_axes
from r1jax.parallel import offload, sharding
from r1jax.parallel.mesh import make_mesh, row_shards
from r1jax.runtime import checkpoint, distributed, interrupt, metrics, profiler
from r1jax.runtime.workdir import claim
from r1jax.training import inspection, models
from r1jax.training.optimizer import make_optimizer
from r1jax.training.round_numbers import load_numbers
from r1jax.training.state import contents, restore_or_init
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

  Args:
    config: of the run; see `SECTIONS` and `FIELDS`.
    workdir: for checkpoints, metrics and all other output.
    profile: steps to trace; None traces none.
    sinks: of metrics, in addition to metrics.jsonl; see `metrics.SINKS`.

  Raises Interrupted after a signal, once a checkpoint is saved, and
  ValueError for an invalid config or a workdir of another run.
  """
  mesh = make_mesh(**config.mesh)
  inspection.check_rows(config.rows, mesh)
  dataset = data.load(**config.dataset.to_dict())
  claim(workdir, config.to_dict(), contents(config, dataset))
  load = lambda: tokenizers.load_or_fit(
    (example.answer for example in dataset),
    pathlib.Path(workdir) / "tokenizer",
    **config.tokenizer,
  )
  # The first host fits and writes the tokenizer, then all read it.
  distributed.from_first(lambda: load() and None)
  tokenizer = load()
  initial = models.initial(**config.model.to_dict())
  model = transformer.Transformer(initial.config)
  inspection.check_vocabulary(tokenizer, model.config)
  optimizer = make_optimizer(**config.optimizer)
  loss = functools.partial(
    objective, model, tokenizer.vocab_size, **config.loss
  )
  update = make_update(
    loss,
    optimizer,
    router_bias_speed=config.router_bias_speed,
    axes=logical_axes(model.config),
  )
  init = functools.partial(init_state, optimizer=optimizer)
  state, restored = restore_or_init(
    workdir, mesh, initial, init, config.offload
  )
  with (
    jax.set_mesh(mesh),
    metrics.Writer(workdir, step=restored, sinks=sinks) as writer,
    profiler.Profiler(
      workdir, profile, unit="step", log=writer.console.note
    ) as tracer,
  ):
    inspection.report_mixture(dataset, writer.console)
    try:
      while (step := int(state.step)) < config.num_steps:
        distributed.raise_if_interrupted()
        tracer.begin(step)
        examples = data.draw(
          dataset, config.batch_examples, seed=config.seed, step=step
        )
        pieces = demonstrations(examples, config.template, tokenizer)
        batches = make_batches(mesh, pieces, **config.rows)
        with interrupt.deferred():
          state, numbers = update(state, batches)
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
      hf.save(
        pathlib.Path(workdir) / "model",
        model.config,
        state.params,
        tokenizer=pathlib.Path(workdir) / "tokenizer",
        provenance=dict(
          config=config.to_dict(), step=int(state.step), commit=commit()
        ),
      )
    writer.console.note(f"the model is in {workdir}/model")
  return state


def objective(model, vocab_size, params, batch: Batch, *, mtp, balance):
  """The loss of one microbatch and its metrics.

      loss = next-token NLL + mtp * MTP loss + balance * balance loss

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
  examples: Sequence[Example], template: str, tokenizer: Tokenizer
) -> list[chat.Demonstration]:
  """The prompt and target tokens of each example, in the template.

  An example without a prompt is a document, of which all tokens are targets.
  """
  render = templates.find(template, tokenizer)
  pairs = []
  for prompt, answer, *_ in examples:
    if prompt:
      turns = templates.user_turn(prompt)
      turns.append({"role": "assistant", "content": answer})
      pairs += chat.demonstrations(turns, render, tokenizer)
    else:
      ids = [*tokenizer.encode(answer), tokenizer.eos_ids[0]]
      pairs.append(chat.Demonstration([*tokenizer.prefix_ids], ids))
  return pairs


def make_batches(
  mesh: Mesh,
  demonstrations: Sequence[chat.Demonstration],
  *,
  widths: Sequence[int],
  shard_rows: int,
) -> list[Batch]:
  """The microbatches of an update, on the devices.

  Only answers, with EOS, are targets of the loss.

  Args:
    mesh: over which the rows are split.
    demonstrations: prompt and target tokens.
    widths: slots (tokens) of a row; see `batch.pack_prompts`.
    shard_rows: rows of a microbatch in each part of the mesh.
  """
  prompts, answers = zip(*demonstrations)
  placements = packing.pack(
    np.array([*map(len, prompts)]),
    np.array([[len(answer)] for answer in answers]),
    widths=widths,
    rows=row_shards(mesh) * shard_rows,
  )
  num_targets = np.int32(max(sum(x.count.sum() for x in placements), 1))
  num_tokens = np.int32(max(sum(x.used.sum() for x in placements), 1))
  batches = []
  for placement in placements:
    packed = packing.lay_out(
      placement, prompts, answers, group_size=1, stride=max(widths)
    )
    weights = (packed.origin >= 0) / np.float32(num_targets)
    packed, weights = sharding.rows_to_device(mesh, (packed, weights))
    batches.append(
      Batch(
        packed=packed,
        weights=weights,
        num_targets=num_targets,
        num_tokens=num_tokens,
      )
    )
  return batches


def report(writer, step, numbers, num_steps) -> None:
  """Writes a row of metrics, and shows progress."""
  numbers = jax.device_get(numbers)
  numbers |= load_numbers(numbers.pop("router/load"))
  writer.write(step, **numbers)
  writer.console.progress(
    step, num_steps, unit="step", nll=float(numbers["loss/nll"])
  )


def commit() -> str | None:
  """The git commit of this package's source tree; None outside of git."""
  folder = pathlib.Path(__file__).parent
  try:
    result = subprocess.run(
      ["git", "-C", str(folder), "rev-parse", "HEAD"],
      capture_output=True,
      text=True,
      timeout=10,
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return result.stdout.strip() or None


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for sections that contradict each other."""
  inspection.check_rows(config.rows)
  templates.check(config.template)
  make_optimizer(**config.optimizer)
  offload.check(config.offload)


SECTIONS = {
  "mesh": make_mesh,
  "model": models.MODELS,
  "tokenizer": tokenizers.load_or_fit,
  "dataset": data.DATASETS,
  "rows": make_batches,
  "loss": objective,
  "optimizer": make_optimizer,
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
