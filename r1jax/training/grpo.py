"""GRPO on verifiable rewards: the loop that turns a base model into R1-Zero.

Each round samples a group of completions for every prompt, grades them in other
processes, compares each completion with its group, and takes one clipped step
per minibatch. The equations are in `r1jax.losses.grpo`.
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
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts import records
from r1jax.rollouts.engine import make_engine
from r1jax.rollouts.round import (
  Round,
  dynamic_sampling,
  sample_until_it_teaches,
)
from r1jax.runtime import checkpoint, distributed, interrupt, metrics, profiler
from r1jax.runtime.workdir import claim
from r1jax.training import evaluate, inspection, models, policy
from r1jax.training.batch import (
  add_advantages,
  completion_kl,
  deal_prompts,
  make_batch,
  pack_prompts,
  teaching_groups,
  trained_completions,
)
from r1jax.training.log import RunLog
from r1jax.training.optimizer import make_optimizer
from r1jax.training.run import Run, restore_or_init, set_up, token_limit
from r1jax.types import Batch, Params, RLState

MTP = ("frozen", "train", "drop")  # What RL does to the MTP blocks.
OLD = ("sampler", "trainer")  # Whose log-probabilities the ratio divides by.


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
  """Runs `config.num_steps` updates, from the newest checkpoint if any.

  Args:
    config: of the run; see `SECTIONS` and `FIELDS`.
    workdir: where all that it writes goes.
    profile: rounds to trace.
    dump: writes every round to WORKDIR/rollouts.
    replay: a workdir whose dumped rounds are learned from; none is sampled.
    update_rows: writes a row of every update to WORKDIR/updates.jsonl.
    sinks: where metrics go beside metrics.jsonl; see `metrics.SINKS`.
  """
  run, base = set_up(config)
  contents = {"dataset": data.content_hash(run.dataset)}
  claim(workdir, config.to_dict(), contents, ignore=CHANGEABLE)
  state, restored = restore_or_init(run, workdir, base)
  with (
    jax.set_mesh(run.mesh),
    GraderPool(**config.grader) as pool,
    metrics.Writer(
      workdir, step=restored, sinks=sinks, update_rows=update_rows
    ) as writer,
    profiler.Profiler(workdir, profile, say=writer.console.note) as tracer,
  ):
    log = RunLog(config, writer, run.engine, run.dataset)
    evaluator = evaluate.Evaluator(
      config, writer, run.engine, run.tokenizer, pool
    )
    sample = run.make_sample(pool, log.sampled)
    barren = 0  # Rounds in a row without a group that teaches.
    try:
      while True:
        distributed.stop_if_told()
        base = evaluate_and_save(run, workdir, state, base, evaluator, log)
        step = int(state.train.step)
        if step >= config.num_steps:
          break
        number = step // config.minibatches
        tracer.begin(number)

        # Sample a group of completions for every prompt.
        if replay is None:
          with log.phase("syncing"):
            weights = run.engine.prepare(state.train.params)
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
          round = replayed(config, replay, number)

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

        # Deal whole groups to the updates, those that teach evenly.
        parts = deal_prompts(
          config.minibatches,
          teaching_groups(advantages, trained),
          seed=config.seed,
          round=number,
        )
        packed = [pack_prompts(rollout, p, **config.rows) for p in parts]
        batches = [make_batch(rollout, *p, run.mesh) for p in packed]

        # Score the tokens under the policy and under the reference.
        if config.old == "trainer" or run.use_reference:
          with log.phase("scoring"):
            batches = [run.score_batch(batch, state) for batch in batches]
        if config.kl_reward.coefficient:
          total = total - kl_penalties(config, batches, total.shape)
          advantages = make_advantages(total, **config.advantage)

        # Take one clipped step per minibatch.
        with interrupt.deferred():
          with log.phase("learning"):
            new, measured = state.train, []
            tokens = rollout.sampled_mask.sum(-1)
            for part, batch in zip(parts, batches, strict=True):
              own = trained & np.isin(np.arange(len(tokens)), part)[:, None]
              batch = add_advantages(
                batch,
                advantages.reshape(-1),
                token_weights(tokens, own, **config.aggregation).reshape(-1),
                np.int32(tokens[own].sum()),
              )
              new, metrics_of_update = run.update(new, batch)
              measured.append(sharding.local(metrics_of_update))
          state = state.replace(train=new)
          step = int(new.step)
          if run.use_reference and step % config.reference_every == 0:
            state = policy.refresh_reference(
              run.model.config, config.offload, state
            )
          log.write(round, scores, advantages, measured, packed, state)
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
        barren = barren + 1 if round.teaching == 0 else 0
        check_progress(config, workdir, state, barren, scores)
    except interrupt.Interrupted:
      save(workdir, state, wait=True)
      raise
    save(workdir, state, wait=True)
    log.summarise(step)
  return state


def evaluate_and_save(
  run: Run,
  workdir: str,
  state: RLState,
  base: Params | None,
  evaluator: evaluate.Evaluator,
  log: RunLog,
) -> Params | None:
  """Between two rounds: saves, and evaluates, what is due at this step.

  Returns the weights of the base model while they are still needed.
  """
  step = int(state.train.step)
  if not step:
    return base
  with log.outside_rounds():
    # The base is measured once a first round has shown that all is well.
    if base is not None and evaluator.is_due(0):
      evaluator.evaluate(0, run.to_device(base))
    # A checkpoint comes first: whatever ends an evaluation, it is there.
    due = evaluator.is_due(step)
    if due or step % run.config.checkpoint_every == 0:
      save(workdir, state)
    if due:
      evaluator.evaluate(step, state.train.params)
  return None


def save(workdir: str, state: RLState, *, wait: bool = False) -> None:
  """Writes a checkpoint, which no signal cuts short."""
  with interrupt.deferred():
    checkpoint.save(workdir, int(state.train.step), state, wait=wait)


def replayed(
  config: ml_collections.ConfigDict, workdir: str, number: int
) -> Round:
  """A round that another run dumped, as if it were sampled now."""
  size = config.prompts_per_round, config.group_size
  record = records.load(workdir, number, size=size)
  return Round(
    record.rollout,
    record.examples,
    record.written,
    lambda: record.scores,
    **record.facts,
  )


def kl_penalties(
  config: ml_collections.ConfigDict,
  batches: Sequence[Batch],
  shape: tuple[int, int],
) -> np.ndarray:
  """What completions [P, G] pay for their distance from the reference."""
  found = [
    completion_kl(batch, shape[0] * shape[1], **config.kl_reward)
    for batch in batches
  ]
  return sum(sharding.local(penalties) for penalties in found).reshape(shape)


def check_progress(
  config: ml_collections.ConfigDict,
  workdir: str,
  state: RLState,
  barren: int,
  scores: rewards.Scores,
) -> None:
  """Ends a run that cannot learn; what it has reached is saved.

  Raises ValueError after too many updates in a row whose gradient was not
  finite, and after `inspection.BARREN` rounds in a row that taught nothing.
  """
  step, skipped = int(state.train.step), int(state.train.skipped)
  if skipped >= config.max_skipped:
    raise ValueError(
      f"{config.max_skipped} updates in a row had a gradient that is not "
      f"finite, the last at step {step}; lower the learning rate"
    )
  if barren >= inspection.BARREN:
    save(workdir, state, wait=True)
    raise ValueError(inspection.explain_nothing(scores, config))


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for settings that cannot go together."""
  if config.group_size < 2:
    raise ValueError(
      f"group_size is {config.group_size}: an advantage is measured against "
      "the rest of the group, so it must be at least 2"
    )
  if config.prompts_per_round % config.minibatches:
    raise ValueError(
      f"minibatches {config.minibatches} does not divide prompts_per_round "
      f"{config.prompts_per_round}; whole groups go into a minibatch"
    )
  inspection.check_rows(config.rows)
  for name, known in (("mtp", MTP), ("old", OLD)):
    if config[name] not in known:
      raise ValueError(f"{name} is {config[name]!r}; there is {known}")
  inspection.check_packing(config, longest=1)  # Whatever the prompts are.
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
      "loss.correction is for old = 'trainer': with 'sampler' there is nothing "
      "to correct"
    )
  inspection.check_steps(config)
  inspection.check_sampling(config.sampling)
  templates.check(config.template)
  evaluation = config.evaluation.to_dict()
  for name in ("test", "larger"):
    if section := evaluation.get(name):
      bind(f"evaluation.{name}", section, data.DATASETS)
  rewards.check(**config.rewards.to_dict())
  offload.check(config.offload)


SECTIONS = {
  "mesh": sharding.make_mesh,
  "rollout_mesh": sharding.reshaped,
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
  "evaluation": evaluate.evaluation,
}
# A resumed run may change the first of them, and its evaluation.
FREE = ("num_steps", "checkpoint_every", "peak_flops", "cpu_devices")
CHANGEABLE = (*FREE, "evaluation")
FIELDS = (
  *FREE,
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
