"""GRPO on verifiable rewards: the loop that turns a base model into R1-Zero.

Each round samples a group of completions of every prompt, grades them in other
processes, compares each with its group, and takes one clipped step per
minibatch. The equations are in `r1jax.losses.grpo`.
"""

import functools
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np

from r1jax import (
  checkpoint,
  data,
  hosts,
  interrupt,
  metrics,
  offload,
  rewards,
  sharding,
)
from r1jax.data import templates, tokenizer
from r1jax.losses import grpo as losses
from r1jax.losses.advantages import advantages as make_advantages
from r1jax.losses.aggregation import token_weights
from r1jax.losses.kl import kl_penalties
from r1jax.models import transformer
from r1jax.models.config import replace
from r1jax.models.weights import logical_axes
from r1jax.rewards.grader import GraderPool
from r1jax.rollouts.engine import make_engine
from r1jax.training import (
  inspection,
  measurements,
  models,
  objective,
  profiler,
  records,
)
from r1jax.training.experience import (
  minibatches,
  pack_minibatch,
  score_round,
  token_arrays,
  which_count,
  which_teach,
  within,
)
from r1jax.training.exploration import (
  BARREN,
  check_limits,
  dynamic_sampling,
  explain_nothing,
  explore,
  make_sample,
  recorded,
)
from r1jax.training.update import make_optimizer, make_update
from r1jax.types import Experience, Params, RLState
from r1jax.workdir import claim

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
  mesh = sharding.make_mesh(**config.mesh)
  inspection.check_rows(config.rows, mesh)
  dataset = data.load(**config.dataset.to_dict())
  words = tokenizer.load(**config.tokenizer)
  inspection.check_dataset(dataset, words, config)
  model, base = load_model(config)
  inspection.check_vocabulary(words, model.config)
  contents = {"dataset": data.content_hash(dataset)}
  claim(workdir, config.to_dict(), contents, ignore=CHANGEABLE)
  engine = make_engine(
    model,
    words,
    sharding.reshaped(mesh, **config.rollout_mesh),
    templates.shared_tokens(config.template, words),
    **config.sampling,
  )
  optimizer, score, update = make_steps(config, model, words)
  refers = config.loss.kl_coefficient or config.kl_reward.coefficient
  as_reference = functools.partial(objective.reference_copy, model.config)
  begin = functools.partial(
    objective.first_state, optimizer, as_reference if refers else None
  )
  axes = logical_axes(model.config)
  to_device = lambda tree: sharding.place(
    tree, sharding.shardings(mesh, axes, tree)
  )
  state = checkpoint.restore(workdir, sharding.shapes(mesh, axes, begin, base))
  restored = None if state is None else int(state.train.step)
  if state is None:
    state = sharding.make(mesh, axes, begin, to_device(base))
  state = offload.park(state, config.offload)
  checkpoint.drop_scores(workdir, restored)
  step, rounds = int(state.train.step), config.num_steps // config.minibatches

  with (
    jax.set_mesh(mesh),
    GraderPool(**config.grader) as pool,
    metrics.Writer(
      workdir, step=restored, sinks=sinks, update_rows=update_rows
    ) as writer,
    profiler.Profiler(workdir, profile, say=writer.console.note) as tracer,
  ):
    observer = measurements.Observer(
      config, writer, engine, dataset, words, pool, rounds
    )
    inspection.report_mixture(dataset, writer.console)
    inspection.report_golds(dataset, writer.console)

    sample = make_sample(config, engine, dataset, words, pool, observer)
    barren = 0  # Rounds in a row that had no group to learn from.
    try:
      while True:
        hosts.stop_if_told()
        # The base is measured once a first round has shown that all is well.
        if step and base is not None:
          if observer.is_due(0):
            observer.evaluate(0, to_device(base))
          base = None  # Nothing reads it any more.
        # A checkpoint comes first: whatever ends an evaluation, it is there.
        due = step and observer.is_due(step)
        if due or (step and step % config.checkpoint_every == 0):
          with interrupt.deferred():
            checkpoint.save(workdir, step, state)
        if due:
          observer.evaluate(step, state.train.params)
        if step >= config.num_steps:
          break
        round = step // config.minibatches
        tracer.begin(round)

        # Sample from the policy; DAPO goes on until enough groups teach.
        if replay is None:
          weights = observer.sync(state.train.params)
          with observer.phase("sampling"):
            sampled = explore(
              functools.partial(sample, weights, step),
              rounds=config.dynamic_sampling.rounds,
              say=writer.console.note,
            )
          del weights
        else:
          size = config.prompts_per_round, config.group_size
          sampled = recorded(records.load(replay, round, size=size))
        rollout, mask = sampled.rollout, sampled.rollout.sampled_mask

        # Grade it, and deal what teaches evenly to the updates.
        with observer.phase("grading"):
          scores = sampled.scores()
        total = scores.total.reshape(rollout.lengths.shape)
        counted = which_count(
          rollout, total, mask_truncated=config.mask_truncated
        )
        if sampled.teaching is not None:
          counted[sampled.teaching :] = False
        advantages = make_advantages(total, **config.advantage)
        parts = minibatches(
          config.minibatches,
          which_teach(advantages, counted),
          seed=config.seed,
          round=round,
        )
        batches = [
          pack_minibatch(rollout, part, **config.rows) for part in parts
        ]

        # What other policies say of it.
        score_all = functools.partial(
          score_round, score, mesh, rollout, batches
        )
        old_logprobs, reference_logprobs = rollout.logprobs, None
        if config.old == "trainer" or refers:
          with observer.phase("scoring"):
            if config.old == "trainer":
              old_logprobs = score_all(state.train.params)
            if refers:
              reference_logprobs = score_all(state.reference)
        if config.kl_reward.coefficient:
          penalties = kl_penalties(
            old_logprobs, reference_logprobs, mask, **config.kl_reward
          )
          advantages = make_advantages(total - penalties, **config.advantage)

        # Learn from each completion once.
        with interrupt.deferred():
          numbers, new = [], state.train
          with observer.phase("learning"):
            for part, (packed, count) in zip(parts, batches, strict=True):
              own = within(counted, part)
              experience = Experience(
                rollout=rollout,
                old_logprobs=old_logprobs,
                reference_logprobs=reference_logprobs,
                advantages=advantages,
                weights=token_weights(mask, own, **config.aggregation),
              )
              rows = sharding.assemble(
                mesh, (packed, token_arrays(experience, packed))
              )
              num_tokens = max(int((mask & own[..., None]).sum()), 1)
              new, measured = update(new, rows, count, np.int32(num_tokens))
              numbers.append(sharding.local(measured))
          step = int(new.step)
          state = state.replace(train=new)
          if refers and step % config.reference_every == 0:
            state = objective.refer(as_reference, config.offload, state)
          observer.write(
            step,
            sampled,
            scores,
            advantages,
            numbers,
            batches,
            reference_step=state.reference_step,
          )
          if dump:
            records.dump(
              workdir,
              round,
              step=step - config.minibatches,
              rollout=rollout,
              examples=sampled.examples,
              written=sampled.written,
              scores=scores,
              advantages=advantages,
              facts=sampled.facts,
            )
          if int(new.skipped) >= config.max_skipped:
            raise ValueError(
              f"{config.max_skipped} updates in a row had a gradient that is "
              f"not finite, the last at step {step}; lower the learning rate"
            )
        barren = barren + 1 if sampled.teaching == 0 else 0
        if barren == BARREN:
          with interrupt.deferred():
            checkpoint.save(workdir, step, state, wait=True)
          raise ValueError(explain_nothing(scores, config))
    except interrupt.Interrupted:
      with interrupt.deferred():
        checkpoint.save(workdir, step, state, wait=True)
      raise
    with interrupt.deferred():
      checkpoint.save(workdir, step, state, wait=True)
    observer.summarise(workdir, step)
  return state


def load_model(
  config: ml_collections.ConfigDict,
) -> tuple[transformer.Transformer, Params]:
  """The architecture and the weights to begin with, those on the host."""
  sizes, params = models.load(**config.model.to_dict())
  if config.mtp == "drop":
    sizes = replace(sizes, mtp_depth=0)
    params = {name: x for name, x in params.items() if name != "mtp"}
  # Updates donate theirs.
  return transformer.Transformer(sizes), jax.tree.map(np.array, params)


def make_steps(config: ml_collections.ConfigDict, model, words):
  """The optimizer, how to score and how to update: all that is compiled."""
  settings, trains = config.optimizer.to_dict(), config.mtp == "train"
  if config.mtp == "frozen":
    settings["frozen"] = (*settings.get("frozen", ()), "mtp")
  elif trains:
    settings["apart"] = ("mtp",)
  optimizer = make_optimizer(**settings)
  policy = functools.partial(
    objective.ask, model, words.vocab_size, config.sampling.temperature
  )
  further = functools.partial(objective.further_loss, model, words.vocab_size)
  loss = functools.partial(
    objective.objective,
    policy,
    further if trains and model.config.mtp_depth else None,
    config.prompts_per_round * config.group_size,
    **config.loss.to_dict(),
  )
  update = make_update(
    loss,
    optimizer,
    router_bias_speed=config.router_bias_speed,
    axes=logical_axes(model.config),
  )
  return optimizer, objective.make_score(policy), update


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
  check_limits(config.max_tokens, most=config.sampling.max_tokens)
  dynamic_sampling(**config.dynamic_sampling)
  losses.check(**config.loss.to_dict())
  make_optimizer(**config.optimizer)
  shape = (1, config.group_size)
  make_advantages(np.zeros(shape), **config.advantage)
  token_weights(
    np.ones((*shape, 1), bool), np.ones(shape, bool), **config.aggregation
  )
  nothing = np.zeros((*shape, 1))
  kl_penalties(nothing, nothing, nothing > 0, **config.kl_reward)
  if config.loss.correction is not None and config.old == "sampler":
    raise ValueError(
      "loss.correction is for old = 'trainer': with 'sampler' there is nothing "
      "to correct"
    )
  inspection.check_steps(config)
  inspection.check_sampling(config.sampling)
  if config.template not in templates.TEMPLATES:
    raise ValueError(
      f"unknown template {config.template!r}; there is "
      f"{', '.join(templates.TEMPLATES)}"
    )
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
  "rows": pack_minibatch,
  "advantage": make_advantages,
  "aggregation": token_weights,
  "loss": losses.check,
  "kl_reward": kl_penalties,
  "dynamic_sampling": dynamic_sampling,
  "optimizer": make_optimizer,
  "evaluation": measurements.evaluation,
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
