"""GRPO on verifiable rewards: the loop that turns a base model into R1-Zero.

Each round samples a group of completions of every prompt, grades them in other
processes, compares each with its group, and takes one clipped step per
minibatch. The equations are in `r1jax.losses.grpo`.
"""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from r1jax import (
  checkpoint,
  data,
  interrupt,
  metrics,
  models,
  rewards,
  sharding,
)
from r1jax.data import templates, tokenizer
from r1jax.losses.grpo import group_advantages, grpo_loss
from r1jax.models import ops, transformer
from r1jax.rewards.grader import GraderPool
from r1jax.rollouts.engine import make_engine
from r1jax.training import inspection, measurements
from r1jax.training.evaluate import completions
from r1jax.training.experience import (
  minibatch_weights,
  minibatches,
  pack_minibatch,
  token_arrays,
)
from r1jax.training.update import init_state, make_optimizer, make_update
from r1jax.types import Experience, Packed, RLState


def train(config: ml_collections.ConfigDict, workdir: str) -> RLState:
  """Runs `config.num_steps` updates, from the newest checkpoint if any."""
  mesh = sharding.make_mesh(**config.mesh)
  dataset = data.load(**config.dataset)
  words = tokenizer.load(**config.tokenizer)
  model_config, params = models.load(**config.model)
  params = jax.tree.map(np.array, params)  # On the host: updates donate theirs.
  inspection.check_vocabulary(words, model_config)
  inspection.check_prompts(inspection.in_memory(dataset), words, config)
  checkpoint.claim(workdir, config.to_dict(), ignore=CHANGEABLE)
  model = transformer.Transformer(model_config)
  optimizer = make_optimizer(**config.optimizer)
  engine = make_engine(
    model,
    words,
    mesh,
    templates.shared_tokens(config.template, words),
    **config.sampling,
  )
  forward = functools.partial(
    logprobs, model, words.vocab_size, config.sampling.temperature
  )
  score = make_score(forward)
  update = make_update(
    functools.partial(objective, forward, **config.loss),
    optimizer,
    router_bias_speed=config.router_bias_speed,
  )
  train_state = init_state(jax.tree.map(jnp.asarray, params), optimizer)
  state = sharding.replicate(
    mesh,
    RLState(
      train=train_state,
      reference=jax.tree.map(jnp.copy, train_state.params)
      if config.loss.kl_coefficient
      else None,
      reference_step=jnp.zeros((), jnp.int32),
    ),
  )
  restored = checkpoint.restore(workdir, state)
  state = state if restored is None else restored
  spec = config.rewards.to_dict()
  step, rounds = int(state.train.step), config.num_steps // config.minibatches

  with (
    GraderPool(**config.grader) as pool,
    metrics.Writer(workdir, step=None if restored is None else step) as writer,
  ):
    observer = measurements.Observer(
      config, writer, engine, words, pool, rounds
    )
    inspection.report_golds(dataset, writer.console)
    try:
      while step < config.num_steps:
        round = step // config.minibatches
        if step:
          observer.evaluate_if_due(step, state.train.params)

        # Sample G completions of each prompt from the policy.
        with observer.phase("sampling"):
          examples = data.draw(
            dataset, config.prompts_per_round, seed=config.seed, step=round
          )
          rollout = engine(
            state.train.params,
            encode_prompts(examples, config.template, words),
            config.group_size,
            seed=config.seed,
            round=round,
            progress=observer.sampled,
          )

        # Grade them, and compare each with its own group.
        with observer.phase("grading"):
          flat, written = completions(
            rollout, examples, words, config.sampling.max_tokens
          )
          scores = rewards.score(flat, written, pool=pool, **spec)
          total = scores.total.reshape(len(examples), config.group_size)
          advantages = group_advantages(total)

        # What the reference policy would have said.
        parts = minibatches(
          config.minibatches, len(examples), seed=config.seed, round=round
        )
        batches = []
        for part in parts:
          packed, count = pack_minibatch(rollout, part, **config.rows)
          batches.append((sharding.assemble(mesh, packed), count))
        reference_logprobs = None
        if state.reference is not None:
          with observer.phase("scoring"):
            reference_logprobs = np.zeros_like(rollout.logprobs)
            for packed, count in batches:
              values = score(state.reference, packed, count)
              place(sharding.local(values), packed, reference_logprobs)

        # Learn from each completion once.
        with interrupt.deferred():
          numbers, new = [], state.train
          with observer.phase("learning"):
            for part, (packed, count) in zip(parts, batches, strict=True):
              experience = Experience(
                rollout=rollout,
                old_logprobs=rollout.logprobs,
                reference_logprobs=reference_logprobs,
                advantages=advantages,
                weights=minibatch_weights(rollout, np.isfinite(total), part),
              )
              batch = sharding.replicate(mesh, token_arrays(experience))
              new, measured = update(new, packed, count, batch)
              numbers.append(jax.device_get(measured))
          step = int(new.step)
          state = state.replace(train=new)
          if state.reference is not None and step % config.reference_every == 0:
            state = state.replace(
              reference=jax.tree.map(jnp.copy, new.params),
              reference_step=jnp.copy(new.step),
            )
          observer.write(
            step,
            rollout,
            flat,
            written,
            scores,
            advantages,
            numbers,
            reference_step=state.reference_step,
          )
          if int(new.skipped) >= config.max_skipped:
            raise ValueError(
              f"{config.max_skipped} updates in a row had a gradient that is "
              f"not finite, the last at step {step}; lower the learning rate"
            )
          if step % config.checkpoint_every == 0:
            checkpoint.save(workdir, step, state)
        # The base is measured once a first round has shown that all is well.
        observer.evaluate_if_due(0, sharding.replicate(mesh, params))
      observer.evaluate_if_due(step, state.train.params)
    except interrupt.Interrupted:
      with interrupt.deferred():
        checkpoint.save(workdir, step, state)
      raise
    with interrupt.deferred():
      checkpoint.save(workdir, step, state)
    observer.summarise(workdir, step)
  return state


def encode_prompts(examples, template: str, words) -> list[list[int]]:
  """Token ids of each example's prompt in the template."""
  write = templates.TEMPLATES[template]
  return [words.encode(write(example.prompt)) for example in examples]


def logprobs(model, vocab_size, temperature, params, packed: Packed):
  """log p(target) and entropy of the tempered policy [B, T], where there is an
  origin, and the tokens that each expert got [L, E]."""
  forward = transformer.forward(model, params, packed)
  values, entropy = ops.linear_logprobs(
    forward.hidden,
    transformer.unembed(params),
    packed.targets,
    temperature=temperature,
    vocab_size=vocab_size,
    counted=packed.origin >= 0,
  )
  return values, entropy, forward.expert_load


def make_score(forward):
  """`score(params, packed, count)`: log p(target) [B, M, T] of microbatches."""

  @jax.jit
  def score(params, packed: Packed, count):
    def one(i, out):
      rows = jax.tree.map(lambda x: jnp.take(x, i, axis=1), packed)
      return out.at[:, i].set(forward(params, rows)[0])

    empty = jnp.zeros(packed.tokens.shape)
    return jax.lax.fori_loop(0, count, one, empty)

  return score


def place(values: np.ndarray, packed: Packed, out: np.ndarray) -> None:
  """Writes the values of packed slots to their places in `out` [P, G, T]."""
  origin = sharding.local(packed.origin)
  out.reshape(-1)[origin[origin >= 0]] = values[origin >= 0]


def objective(
  forward, params, packed: Packed, batch, *, clip_epsilon, kl_coefficient
):
  """`grpo_loss` on one microbatch; what it reads is gathered by origin."""
  values, entropy, load = forward(params, packed)
  at = jnp.maximum(packed.origin, 0)
  take = lambda name: jnp.take(batch[name], at)
  weights = jnp.where(packed.origin >= 0, take("weights"), 0.0)
  reference = batch["reference_logprobs"]
  loss, numbers = grpo_loss(
    values,
    take("old_logprobs"),
    None if reference is None else take("reference_logprobs"),
    take("advantages"),
    weights,
    clip_epsilon=clip_epsilon,
    kl_coefficient=kl_coefficient,
  )
  gap = jnp.where(weights > 0, jnp.abs(values - take("old_logprobs")), 0.0)
  return loss, numbers | {
    "entropy/mean": jnp.sum(weights * entropy),
    "router/load": load,
    "sampling/logp_diff_mean": jnp.sum(weights * gap),
    "sampling/logp_diff_max": jnp.max(gap),
  }


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
  rows = config.rows
  if rows.max_rows % rows.microbatch_rows:
    raise ValueError(
      f"rows.microbatch_rows {rows.microbatch_rows} does not divide "
      f"rows.max_rows {rows.max_rows}"
    )
  for name in ("num_steps", "reference_every", "checkpoint_every"):
    if config[name] % config.minibatches:
      raise ValueError(
        f"{name} {config[name]} is not a multiple of minibatches "
        f"{config.minibatches}, the updates of a round"
      )
  if config.evaluation.every % config.minibatches:
    raise ValueError(
      f"evaluation.every {config.evaluation.every} is not a multiple of "
      f"minibatches {config.minibatches}, the updates of a round"
    )
  if config.sampling.get("top_p", 1.0) != 1.0:
    raise ValueError(
      f"sampling.top_p is {config.sampling.top_p}: what is learned from must "
      "be sampled from the whole distribution, or the ratios are wrong"
    )
  if config.template not in templates.TEMPLATES:
    raise ValueError(
      f"unknown template {config.template!r}; there is "
      f"{', '.join(templates.TEMPLATES)}"
    )
  rewards.check(**config.rewards.to_dict())


SECTIONS = {
  "mesh": sharding.make_mesh,
  "model": models.MODELS,
  "tokenizer": tokenizer.load,
  "dataset": data.DATASETS,
  "sampling": make_engine,
  "grader": GraderPool,
  "rewards": rewards.score,
  "rows": pack_minibatch,
  "loss": objective,
  "optimizer": make_optimizer,
  "evaluation": measurements.evaluation,
}
FIELDS = (
  "seed",
  "num_steps",
  "template",
  "prompts_per_round",
  "group_size",
  "minibatches",
  "reference_every",
  "checkpoint_every",
  "max_skipped",
  "router_bias_speed",
)
CHANGEABLE = ("num_steps", "checkpoint_every", "evaluation")
