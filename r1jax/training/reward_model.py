"""The loop that trains a reward model: a transformer with a scalar head.

DeepSeek-R1 has two (arXiv:2501.12948v2, sec. 3.1): helpfulness learns from
pairs and reads the summary of a response; safety learns from labels and reads
the whole response. The score of a response is a product of the head with the
final hidden state at its last token.

    WORKDIR/model           in Hugging Face layout, with score.safetensors
    WORKDIR/results.json    what held-back preferences say of it

A config of RL names the model by its path:

    rewards=dict(helpfulness=dict(weight=0.1, path="WORKDIR/model"))
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float

from r1jax import data
from r1jax.config import bind
from r1jax.data import templates
from r1jax.data import tokenizer as tokenizers
from r1jax.losses import preference
from r1jax.models import transformer
from r1jax.parallel import offload, sharding
from r1jax.parallel.mesh import make_mesh
from r1jax.runtime import checkpoint, distributed, interrupt, metrics, profiler
from r1jax.runtime.workdir import claim, write_json
from r1jax.training import inspection, models, scorer
from r1jax.training.measures import clustered_mean
from r1jax.training.optimizer import make_optimizer
from r1jax.training.reward_batch import Responses, make_batches, responses_of
from r1jax.training.sft_batch import read_ahead
from r1jax.training.state import contents, restore_or_init
from r1jax.training.update import init_state, make_update
from r1jax.types import Example, Params, Tokenizer, TrainState

RESULTS = "results.json"
SEED = 0  # Of the draw of held-back examples.
Group = list[tuple[list[int], float]]  # (token ids, label) of each response.


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  *,
  profile: profiler.Window | None = None,
  sinks: Sequence[str] = ("tensorboard",),
) -> TrainState:
  """The final state of a run of `config.num_steps` updates.

  The run resumes from the newest checkpoint in the workdir if there is one.
  Examples with a response longer than the widest row are left out and counted.

  Args:
    config: of the run; see `SECTIONS` and `FIELDS`.
    workdir: for checkpoints, metrics and all other output.
    profile: steps to trace; None traces none.
    sinks: of metrics, in addition to metrics.jsonl; see `metrics.SINKS`.

  Raises Interrupted after a signal, once a checkpoint is saved, and
  ValueError for an invalid config, an example that the loss cannot use, or a
  workdir of another run.
  """
  # The parts of the run.
  mesh = make_mesh(**config.mesh)
  dataset = data.load(**config.dataset.to_dict())
  claim(workdir, config.to_dict(), contents(config, dataset))
  tokenizer = tokenizers.load(**config.tokenizer)
  initial = scorer.with_head(models.initial(**config.model, mtp=False))
  model = transformer.Transformer(initial.config)
  inspection.check_vocabulary(tokenizer, model.config)
  optimizer = make_optimizer(**config.optimizer)
  kind = KINDS[config.loss.name]
  update = make_update(
    functools.partial(objective, model, **config.loss),
    optimizer,
    axes=initial.axes,
  )
  to_batches = functools.partial(make_batches, mesh, **config.rows)
  read = functools.partial(
    read_groups,
    template=config.template,
    tokenizer=tokenizer,
    kind=kind,
    longest=max(config.rows.widths),
  )
  held_back = HeldBack(
    model, kind, to_batches, read, **config.evaluation.to_dict()
  )
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
    read_ahead(read_step, int(state.step), config.num_steps) as groups_by_step,
  ):
    too_long = 0
    try:
      while (step := int(state.step)) < config.num_steps:
        distributed.raise_if_interrupted()
        tracer.begin(step)
        groups, left_out = next(groups_by_step)
        too_long += left_out
        with interrupt.deferred():
          # One update.
          state, numbers = update(state, to_batches(groups))
          step += 1
          # Metrics, evaluation and checkpoint, where due.
          if step % config.metrics_every == 0:
            numbers = jax.device_get(numbers)
            numbers |= data.epochs(dataset, config.batch_examples, step=step)
            numbers["data/too_long"], too_long = too_long, 0
            writer.write(step, **numbers)
            writer.console.progress(
              step,
              config.num_steps,
              unit="step",
              accuracy=float(numbers["preference/accuracy"]),
            )
          if held_back.is_due(step):
            writer.write(step, **held_back(state.params))
          if step % config.checkpoint_every == 0:
            checkpoint.save(workdir, step, state)
    except interrupt.Interrupted:
      with interrupt.deferred():
        checkpoint.save(workdir, int(state.step), state, wait=True)
      raise
    with interrupt.deferred():
      checkpoint.save(workdir, int(state.step), state, wait=True)
      folder = pathlib.Path(workdir)
      scorer.save(
        folder / "model",
        model.config,
        state.params,
        tokenizer=config.tokenizer.path,
        template=config.template,
        whole=kind.whole,
        provenance=dict(config=config.to_dict(), step=int(state.step)),
      )
      if config.evaluation.every:
        write_results(folder / RESULTS, held_back(state.params))
    writer.console.note(f"the reward model is in {workdir}/model")
  return state


class Kind(NamedTuple):
  """What a loss needs of an example."""

  pairs: bool  # Two responses, the first of which is preferred.
  whole: bool  # The model reads thoughts, too.


KINDS = {
  "bradley_terry": Kind(pairs=True, whole=False),
  "binary_cross_entropy": Kind(pairs=False, whole=True),
}


def objective(
  model: transformer.Transformer,
  params: Params,
  batch: Responses,
  *,
  name: str,
  margin: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """The loss of one microbatch and its metrics.

  Args:
    model: the Flax module.
    params: of the model and its head.
    batch: one microbatch.
    name: "bradley_terry", for helpfulness, or "binary_cross_entropy", for
      safety; see `losses.preference`.
    margin: of `bradley_terry`.
  """
  scores = scorer.scores_of(model, params, batch.packed, batch.last)
  if KINDS[name].pairs:
    chosen, rejected = scores[0::2], scores[1::2]
    weights = batch.weights[0::2]
    loss = preference.bradley_terry(chosen, rejected, weights, margin=margin)
    right = chosen > rejected
  else:
    weights = batch.weights
    loss = preference.binary_cross_entropy(scores, batch.labels, weights)
    right = (scores > 0) == (batch.labels > 0.5)
  return loss, {
    "loss/preference": loss,
    "preference/accuracy": jnp.sum(weights * right),
    "preference/score": jnp.sum(batch.weights * scores)
    / (1 + KINDS[name].pairs),
  }


def read_groups(
  dataset: Sequence[Example],
  *,
  template: str,
  tokenizer: Tokenizer,
  kind: Kind,
  longest: int,
  **draw: int,
) -> tuple[list[Group], int]:
  """The responses of the examples of a step, and how many do not fit.

  Args:
    dataset: of preferences.
    template: name of the template.
    tokenizer: of the model.
    kind: of the examples.
    longest: slots (tokens) of the widest row.
    **draw: see `data.draw`.

  Raises ValueError for an example of another kind, and if none fits.
  """
  render = templates.find(template, tokenizer)
  groups = [
    responses_of(example, render, tokenizer, pairs=kind.pairs, whole=kind.whole)
    for example in data.draw(dataset, **draw)
  ]
  fitting = [
    group for group in groups if max(len(ids) for ids, _ in group) <= longest
  ]
  if groups and not fitting:
    raise ValueError(
      f"none of {len(groups)} examples fits rows of {longest} slots; set the "
      "first of rows.widths to the longest response with its prompt"
    )
  return fitting, len(groups) - len(fitting)


class HeldBack:
  """Measures a reward model on preferences that it does not learn.

  Args:
    model: the Flax module.
    kind: of the examples.
    to_batches: makes microbatches of groups.
    read: reads groups; see `read_groups`.
    every: steps between evaluations; 0 for none.
    dataset: the section of a dataset of which nothing is learned.
    examples: the number of its examples to use.

  Raises ValueError for more examples than there are.
  """

  def __init__(
    self,
    model: transformer.Transformer,
    kind: Kind,
    to_batches: Callable[[Sequence[Group]], list[Responses]],
    read: Callable[..., tuple[list[Group], int]],
    *,
    every: int,
    dataset: Mapping[str, Any] | None = None,
    examples: int = 0,
  ):
    self._every, self._kind, self._to_batches = every, kind, to_batches
    self._score = jax.jit(
      lambda params, batch: scorer.scores_of(
        model, params, batch.packed, batch.last
      )
    )
    self._groups = []
    if every:
      held_back = data.load(**dict(dataset or {}))
      if not 0 < examples <= len(held_back):
        raise ValueError(
          f"evaluation.examples is {examples}, but evaluation.dataset has "
          f"{len(held_back)}"
        )
      self._groups, _ = read(held_back, count=examples, seed=SEED, step=0)

  def is_due(self, step: int) -> bool:
    """Whether to evaluate after so many steps."""
    return self._every > 0 and step % self._every == 0

  def __call__(self, params: Params) -> dict[str, float]:
    """The metrics; see `metrics.names`.

    The baseline prefers the longer response, or takes the commoner label.
    """
    right, baseline = [], []
    for batch in self._to_batches(self._groups):
      scores = sharding.to_host(self._score(params, batch))
      labels, last, weights = map(
        sharding.to_host, (batch.labels, batch.last, batch.weights)
      )
      used = weights > 0
      if self._kind.pairs:
        right += [*(scores[0::2] > scores[1::2])[used[0::2]]]
        longer = np.sign(last[0::2] - last[1::2]) / 2 + 0.5  # Equal: a half.
        baseline += [*longer[used[0::2]]]
      else:
        right += [*((scores > 0) == (labels > 0.5))[used]]
        baseline += [*labels[used]]
    if not self._kind.pairs:
      common = np.mean(baseline)
      baseline = [max(common, 1 - common)] * len(baseline)
    accuracy, error = clustered_mean(np.array(right, float)[:, None])
    return {
      "eval/preference/accuracy": accuracy,
      "eval/preference/accuracy_stderr": error,
      "eval/preference/baseline": float(np.mean(baseline)),
      "eval/preference/examples": len(right),
    }


def evaluation(
  *,
  every: int,
  dataset: Mapping[str, Any] | None = None,
  examples: int = 0,
) -> None:
  """The config section of `HeldBack`."""


def write_results(file: pathlib.Path, numbers: Mapping[str, float]) -> None:
  """Writes the last evaluation, as a set named "preference"."""
  if not distributed.is_first():
    return
  results = {
    name.removeprefix("eval/").replace("/", "_"): value
    for name, value in numbers.items()
  }
  write_json(file, {"preference": results})


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for sections that contradict each other."""
  if config.loss.name not in KINDS:
    raise ValueError(
      f"loss.name is {config.loss.name!r}; there is {', '.join(KINDS)}"
    )
  templates.check(config.template)
  make_optimizer(**config.optimizer)
  offload.check(config.offload)
  if config.rows.shard_rows % 2 and KINDS[config.loss.name].pairs:
    raise ValueError(
      f"rows.shard_rows is {config.rows.shard_rows}; it must be even, because "
      "a pair takes two rows"
    )
  if section := config.evaluation.get("dataset"):
    bind("evaluation.dataset", section.to_dict(), data.DATASETS)


SECTIONS = {
  "mesh": make_mesh,
  "model": models.MODELS,
  "tokenizer": tokenizers.load,
  "dataset": data.DATASETS,
  "rows": make_batches,
  "loss": objective,
  "optimizer": make_optimizer,
  "evaluation": evaluation,
}
FIELDS = (
  "num_steps",
  "metrics_every",
  "checkpoint_every",
  "cpu_devices",
  "seed",
  "template",
  "batch_examples",
  "offload",
)
