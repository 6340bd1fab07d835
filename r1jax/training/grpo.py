"""The GRPO loop (arXiv:2402.03300), which trains R1-Zero from a base model.

Each round samples a group of completions for every prompt, grades them in
worker processes, computes the advantage of each completion within its group,
and takes one clipped step per minibatch. `r1jax.losses.grpo` has the equations.
"""

import functools
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np

from r1jax import data, rewards
from r1jax.config import bind
from r1jax.data import templates, tokenizer
from r1jax.losses import grpo as losses
from r1jax.losses.advantages import advantages as make_advantages
from r1jax.losses.aggregation import token_weights
from r1jax.losses.kl import KLS
from r1jax.losses.tables import choose
from r1jax.parallel import offload, sharding
from r1jax.parallel.mesh import make_mesh, reshape_mesh
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts import records
from r1jax.rollouts.engine import make_engine
from r1jax.rollouts.replay import to_device
from r1jax.rollouts.round import (
  Round,
  dynamic_sampling,
  sample_until_it_teaches,
)
from r1jax.runtime import checkpoint, distributed, interrupt, metrics, profiler
from r1jax.runtime.workdir import claim
from r1jax.training import inspection, models, policy
from r1jax.training.batch import (
  completion_kl,
  deal_prompts,
  groups_with_signal,
  make_batch,
  pack_prompts,
  trained_completions,
  weigh_batches,
)
from r1jax.training.distillation import make_guide
from r1jax.training.evaluator import Evaluator, evaluation
from r1jax.training.export import export
from r1jax.training.log import RunLog
from r1jax.training.optimizer import make_optimizer
from r1jax.training.run import Run, set_up, token_limit
from r1jax.training.state import contents
from r1jax.types import Batch, RLState

MTP = ("frozen", "train", "drop")  # What RL does with the MTP blocks.
OLD = ("sampler", "trainer")  # Where the old log-probabilities come from.


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  *,
  profile: profiler.Window | None = None,
  dump: bool = False,
  replay: str | None = None,
  update_rows: bool = False,
  sinks: Sequence[str] = ("tensorboard",),
) -> RLState:
  """The final state of a run of `config.num_steps` updates.

  The run resumes from the newest checkpoint in the workdir if there is one. At
  the end, the model is exported to WORKDIR/model in Hugging Face layout.

  Args:
    config: of the run; see `SECTIONS` and `FIELDS`.
    workdir: for checkpoints, metrics and all other output.
    profile: rounds to trace; None traces none.
    dump: writes every round to WORKDIR/rollouts, each host its share.
    replay: a workdir whose dumped rounds are trained on instead of sampling.
    update_rows: writes a row for every update to WORKDIR/updates.jsonl.
    sinks: of metrics, in addition to metrics.jsonl; see `metrics.SINKS`.

  Raises Interrupted after a signal, once a checkpoint is written, and
  ValueError for an invalid config, a workdir of another run, or a run that
  cannot learn (see `check_progress`).
  """
  run = set_up(config)
  claim(workdir, config.to_dict(), contents(config, run.dataset))
  state, restored = run.restore_or_init(workdir)
  with (
    jax.set_mesh(run.mesh),
    GraderPool(**config.grader) as pool,
    metrics.Writer(
      workdir, step=restored, sinks=sinks, update_rows=update_rows
    ) as writer,
    profiler.Profiler(workdir, profile, log=writer.console.note) as tracer,
  ):
    log = RunLog(config, writer, run.engine, run.dataset, run.whole)
    evaluator = Evaluator(config, writer, run.engine, run.tokenizer, pool)
    sample = run.make_sample(pool, log.sampled)
    without_signal = 0  # Number of successive rounds without any signal.
    try:
      while True:
        distributed.raise_if_interrupted()
        evaluate_and_save(run, workdir, state, evaluator, log)
        step = int(state.train.step)
        if step >= config.num_steps:
          break
        number = step // config.minibatches
        tracer.begin(number)

        # Sample a group of completions for every prompt.
        whole = run.whole(state)
        if replay is None:
          with log.phase("syncing"):
            weights = run.engine.prepare(whole.train.params)
            jax.block_until_ready(weights)
          with log.phase("sampling"):
            limit = token_limit(config, step)
            round = sample_until_it_teaches(
              functools.partial(sample, weights, number, limit),
              rounds=config.dynamic_sampling.rounds,
              say=writer.console.note,
            )
          del weights
        else:
          round = replayed(run, replay, number)

        # Compare each completion with its group.
        with log.phase("grading"):
          scores = round.scores()
        rollout = round.rollout
        total = scores.total.reshape(rollout.lengths.shape)
        trained = trained_completions(
          rollout, total, mask_truncated=config.mask_truncated
        )
        if round.teaching is not None:
          trained[round.teaching :] = False
        advantages = make_advantages(total, **config.advantage)

        # Deal whole groups to the minibatches, those with signal evenly.
        parts = deal_prompts(
          config.minibatches,
          groups_with_signal(advantages, trained),
          seed=config.seed,
          round=number,
        )
        placed = [
          pack_prompts(rollout, prompts, run.mesh, **config.rows)
          for prompts in parts
        ]
        updates = [
          [make_batch(rollout, microbatch, run.mesh) for microbatch in update]
          for update in placed
        ]
        if not dump:  # The microbatches have what was recorded.
          rollout = rollout.replace(experts=None)
          round = round._replace(rollout=rollout)

        # Score the tokens under the old policy and the reference policy.
        if config.old == "trainer" or run.use_reference:
          with log.phase("scoring"):
            updates = policy.add_logprobs(
              run.score, updates, whole, old=config.old
            )
        if config.kl_reward.coefficient:
          total = total - kl_penalties(config, updates, total.shape)
          advantages = make_advantages(total, **config.advantage)
        del whole  # Of an adapter, a copy of the model.

        # Take one clipped step per minibatch.
        with interrupt.deferred():
          with log.phase("learning"):
            new, measured = state.train, []
            tokens = rollout.sampled_mask.sum(-1)
            for part, batches in zip(parts, updates, strict=True):
              mask = trained & np.isin(np.arange(len(tokens)), part)[:, None]
              weighed = weigh_batches(
                batches, tokens, mask, advantages, **config.aggregation
              )
              if run.guide is not None:
                weighed = map(run.guide, weighed)
              weighed = run.frozen.batches(weighed)
              new, metrics_of_update = run.update(new, weighed)
              measured.append(sharding.to_host(metrics_of_update))
          state = state.replace(train=new)
          step = int(new.step)
          refreshed = run.use_reference and run.frozen.lora is None
          if refreshed and step % config.reference_every == 0:
            state = policy.refresh_reference(
              run.model.config, config.offload, state
            )
          log.write(round, scores, advantages, measured, placed, state)
          if dump:
            records.dump(
              workdir,
              number,
              step=step - config.minibatches,
              rollout=rollout,
              examples=round.examples,
              written=round.completions,
              scores=scores,
              advantages=advantages,
              facts=round.facts,
            )
        del updates, batches  # Their memory is for the next round.
        without_signal = without_signal + 1 if round.teaching == 0 else 0
        check_progress(config, workdir, state, without_signal, scores)
    except interrupt.Interrupted:
      save(workdir, state, wait=True)
      raise
    save(workdir, state, wait=True)
    with interrupt.deferred():
      tokenizer = config.tokenizer.path
      export(
        workdir, config, run.model.config, state.train, tokenizer, run.frozen
      )
    log.summarise(step)
  return state


def evaluate_and_save(
  run: Run,
  workdir: str,
  state: RLState,
  evaluator: Evaluator,
  log: RunLog,
) -> None:
  """Saves and evaluates, between two rounds, if that is due at this step."""
  step = int(state.train.step)
  if not step:
    return
  with log.outside_rounds():
    # The base model is evaluated after the first round, so that problems in a
    # round show before a long evaluation.
    if evaluator.is_due(0):
      evaluator.evaluate(0, run.base_params(state))
    # The checkpoint is saved first, in case the evaluation is interrupted.
    due = evaluator.is_due(step)
    if due or step % run.config.checkpoint_every == 0:
      save(workdir, state)
    if due:
      evaluator.evaluate(step, run.whole(state).train.params)


def save(workdir: str, state: RLState, *, wait: bool = False) -> None:
  """Saves a checkpoint; signals are deferred meanwhile."""
  with interrupt.deferred():
    checkpoint.save(workdir, int(state.train.step), state, wait=wait)


def replayed(run: Run, workdir: str, number: int) -> Round:
  """The round `number` that another run dumped to its workdir."""
  size = run.config.prompts_per_round, run.config.group_size
  record = records.load(workdir, number, size=size)
  # Each host has the texts of its own share, as in a round that it samples.
  own = np.repeat(run.engine.hosts(size[0]) == jax.process_index(), size[1])
  experts = to_device(record.rollout.experts, run.mesh)
  return Round(
    record.rollout.replace(experts=experts),
    record.examples,
    [text if known else None for text, known in zip(record.written, own)],
    lambda: record.scores,
    **record.facts,
  )


def kl_penalties(
  config: ml_collections.ConfigDict,
  updates: Sequence[Sequence[Batch]],
  shape: tuple[int, int],
) -> np.ndarray:
  """The KL penalties of completions [P, G] against the reference policy."""
  penalties = [
    completion_kl(batch, shape[0] * shape[1], **config.kl_reward)
    for batches in updates
    for batch in batches
  ]
  return sum(map(sharding.to_host, penalties)).reshape(shape)


def check_progress(
  config: ml_collections.ConfigDict,
  workdir: str,
  state: RLState,
  without_signal: int,
  scores: rewards.Scores,
) -> None:
  """Raises ValueError if the run cannot learn.

  It raises after `config.max_skipped` successive updates whose gradient is not
  finite, and, after saving a checkpoint, after
  `inspection.MAX_NO_SIGNAL` successive rounds in which no group has
  signal.
  """
  step, skipped = int(state.train.step), int(state.train.skipped)
  if skipped >= config.max_skipped:
    raise ValueError(
      f"{config.max_skipped} updates in a row had a gradient that is not "
      f"finite, the last at step {step}; lower the learning rate"
    )
  if without_signal >= inspection.MAX_NO_SIGNAL:
    save(workdir, state, wait=True)
    raise ValueError(inspection.explain_no_signal(scores, config))


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for sections that contradict each other."""
  if config.group_size < 2:
    raise ValueError(
      f"group_size is {config.group_size}; it must be at least 2, because an "
      "advantage is relative to the rest of the group"
    )
  if config.prompts_per_round % config.minibatches:
    raise ValueError(
      f"minibatches {config.minibatches} does not divide prompts_per_round "
      f"{config.prompts_per_round}; a minibatch holds whole groups"
    )
  inspection.check_rows(config.rows)
  for name, known in (("mtp", MTP), ("old", OLD)):
    if config[name] not in known:
      raise ValueError(f"{name} is {config[name]!r}; there is {known}")
  inspection.check_width(config, longest=1)  # The least that prompts need.
  inspection.check_limits(config.max_tokens, most=config.sampling.max_tokens)
  dynamic_sampling(**config.dynamic_sampling)
  losses.check(**config.loss.to_dict())
  make_optimizer(**config.optimizer)
  shape = (1, config.group_size)
  make_advantages(np.zeros(shape), **config.advantage)
  token_weights(np.ones(shape, int), np.ones(shape, bool), **config.aggregation)
  choose("kl", KLS, dict(name=config.kl_reward.name))
  if config.loss.correction is not None and config.old == "sampler":
    raise ValueError(
      "loss.correction needs old = 'trainer'; with 'sampler', the ratio "
      "already uses the log-probabilities of the sampler"
    )
  if "path" not in config.teacher and config.teacher:
    raise ValueError("section 'teacher' has no path; give one, or leave it {}")
  inspection.check_adapter(config)
  inspection.check_steps(config)
  inspection.check_sampling(config.sampling)
  templates.check(config.template)
  for name in ("test", "larger"):
    if section := config.evaluation.to_dict().get(name):
      bind(f"evaluation.{name}", section, data.DATASETS)
  rewards.check(**config.rewards.to_dict())
  offload.check(config.offload)


SECTIONS = {
  "mesh": make_mesh,
  "rollout_mesh": reshape_mesh,
  "model": models.MODELS,
  "tokenizer": tokenizer.load,
  "dataset": data.DATASETS,
  "sampling": make_engine,
  "grader": GraderPool,
  "rewards": rewards.score,
  "rows": pack_prompts,
  "advantage": make_advantages,
  "aggregation": token_weights,
  "loss": losses.check,
  "kl_reward": completion_kl,
  "dynamic_sampling": dynamic_sampling,
  "optimizer": make_optimizer,
  "evaluation": evaluation,
  "teacher": make_guide,
}
FIELDS = (
  "num_steps",
  "checkpoint_every",
  "peak_flops",
  "cpu_devices",
  "seed",
  "template",
  "prompts_per_round",
  "group_size",
  "mask_truncated",
  "max_tokens",
  "old",
  "mtp",
  "minibatches",
  "reference_every",
  "max_skipped",
  "router_bias_speed",
  "offload",
)
