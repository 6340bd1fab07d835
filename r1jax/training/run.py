"""What a GRPO run is made of, before its first round."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from r1jax import data, rewards
from r1jax.data import chat, tokenizer
from r1jax.models import transformer
from r1jax.models.config import replace
from r1jax.models.weights import logical_axes
from r1jax.parallel import offload, sharding
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts.engine import Engine, make_engine
from r1jax.rollouts.round import Round, make_sample
from r1jax.runtime import checkpoint
from r1jax.training import inspection, models, policy
from r1jax.training.optimizer import make_optimizer
from r1jax.training.update import make_update
from r1jax.types import Batch, Example, Params, RLState, Tokenizer


class Run(NamedTuple):
  """All that a run is made of and that does not change while it trains."""

  config: ml_collections.ConfigDict
  mesh: Mesh
  dataset: Sequence[Example]
  tokenizer: Tokenizer
  model: transformer.Transformer
  engine: Engine
  optimizer: optax.GradientTransformation
  score: Callable[[Params, Batch], jax.Array]
  update: Callable
  use_reference: bool

  def score_batch(self, batch: Batch, state: RLState) -> Batch:
    """The batch with the log-probabilities that its loss compares with."""
    if self.config.old == "trainer":
      old = self.score(state.train.params, batch)
      batch = batch.replace(old_logprobs=old)
    if self.use_reference:
      reference = self.score(state.reference, batch)
      batch = batch.replace(reference_logprobs=reference)
    return batch

  def make_sample(
    self, pool: GraderPool, progress: Callable[[int, int], None]
  ) -> Callable[..., Round]:
    """See `rollouts.round.make_sample`."""
    config = self.config
    return make_sample(
      self.engine,
      self.dataset,
      self.tokenizer,
      pool,
      rewards=config.rewards.to_dict(),
      template=config.template,
      seed=config.seed,
      prompts_per_round=config.prompts_per_round,
      group_size=config.group_size,
      rounds=config.dynamic_sampling.rounds,
      progress=progress,
    )

  def to_device(self, params: Params) -> Params:
    """Parameters of the host, placed on the mesh."""
    axes = logical_axes(self.model.config)
    return sharding.place(params, sharding.shardings(self.mesh, axes, params))


def set_up(config: ml_collections.ConfigDict) -> tuple[Run, Params]:
  """What a run is made of, and the weights of its base model on the host.

  Raises ValueError for parts that do not go together.
  """
  mesh = sharding.make_mesh(**config.mesh)
  inspection.check_rows(config.rows, mesh)
  dataset = data.load(**config.dataset.to_dict())
  words = tokenizer.load(**config.tokenizer)
  inspection.check_dataset(dataset, words, config)
  model, base = load_model(config)
  inspection.check_vocabulary(words, model.config)
  rewards.check(inspection.in_memory(dataset), **config.rewards.to_dict())
  optimizer, score, update = make_steps(config, model, words)
  run = Run(
    config=config,
    mesh=mesh,
    dataset=dataset,
    tokenizer=words,
    model=model,
    engine=make_engine(
      model,
      words,
      sharding.reshaped(mesh, **config.rollout_mesh),
      chat.shared_tokens(config.template, words),
      **config.sampling,
    ),
    optimizer=optimizer,
    score=score,
    update=update,
    use_reference=use_reference(config),
  )
  return run, base


def use_reference(config: ml_collections.ConfigDict) -> bool:
  """Whether the run keeps a reference policy: a KL has a coefficient."""
  return bool(config.loss.kl_coefficient or config.kl_reward.coefficient)


def restore_or_init(
  run: Run, workdir: str, base: Params
) -> tuple[RLState, int | None]:
  """The newest checkpoint and its step; without one, a first state and None."""
  axes = logical_axes(run.model.config)
  begin = functools.partial(
    policy.init_rl_state, run.model.config, run.optimizer, run.use_reference
  )
  shapes = sharding.shapes(run.mesh, axes, begin, base)
  state = checkpoint.restore(workdir, shapes)
  restored = None if state is None else int(state.train.step)
  if state is None:
    state = sharding.make(run.mesh, axes, begin, run.to_device(base))
  checkpoint.drop_scores(workdir, restored)
  return offload.park(state, run.config.offload), restored


def token_limit(config: ml_collections.ConfigDict, step: int) -> int:
  """The tokens that a completion sampled at `step` may have.

  The last entry of `max_tokens` [(first step, tokens), ...] that has begun.
  """
  reached = [tokens for first, tokens in config.max_tokens if first <= step]
  return reached[-1] if reached else config.sampling.max_tokens


def load_model(
  config: ml_collections.ConfigDict,
) -> tuple[transformer.Transformer, Params]:
  """The architecture, and the weights to begin with, on the host."""
  sizes, params = models.load(**config.model.to_dict())
  if config.mtp == "drop":
    sizes = replace(sizes, mtp_depth=0)
    params = {name: x for name, x in params.items() if name != "mtp"}
  # Updates donate theirs.
  return transformer.Transformer(sizes), jax.tree.map(np.array, params)


def make_steps(
  config: ml_collections.ConfigDict, model: transformer.Transformer, words
) -> tuple[optax.GradientTransformation, Callable, Callable]:
  """The optimizer, `score` and `update`: all that training compiles."""
  settings, trains = config.optimizer.to_dict(), config.mtp == "train"
  if config.mtp == "frozen":
    settings["frozen"] = (*settings.get("frozen", ()), "mtp")
  elif trains:
    settings["apart"] = ("mtp",)
  optimizer = make_optimizer(**settings)
  forward = functools.partial(
    policy.policy_forward,
    model,
    words.vocab_size,
    config.sampling.temperature,
  )
  mtp = functools.partial(policy.mtp_loss, model, words.vocab_size)
  loss = functools.partial(
    policy.policy_loss,
    forward,
    mtp if trains and model.config.mtp_depth else None,
    config.prompts_per_round * config.group_size,
    **config.loss.to_dict(),
  )
  update = make_update(
    loss,
    optimizer,
    router_bias_speed=config.router_bias_speed,
    axes=logical_axes(model.config),
  )
  return optimizer, policy.make_score(forward), update
