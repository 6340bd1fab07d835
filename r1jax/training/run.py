"""The setup of a GRPO run: its parts, and its initial or restored state."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from r1jax import data, rewards
from r1jax.data import chat
from r1jax.data import tokenizer as tokenizers
from r1jax.models import transformer
from r1jax.models.config import replace
from r1jax.models.weights import logical_axes
from r1jax.parallel import offload, sharding
from r1jax.parallel.mesh import make_mesh, reshape_mesh
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts.engine import Engine, make_engine
from r1jax.rollouts.round import Round, make_sample
from r1jax.runtime import checkpoint
from r1jax.training import inspection, models, policy
from r1jax.training.optimizer import make_optimizer
from r1jax.training.update import Update, make_update
from r1jax.types import Batch, Example, Params, RLState, Tokenizer


class Run(NamedTuple):
  """The parts of a run that do not change during training."""

  config: ml_collections.ConfigDict
  mesh: Mesh
  dataset: Sequence[Example]
  tokenizer: Tokenizer
  model: transformer.Transformer
  engine: Engine
  optimizer: optax.GradientTransformation
  score: Callable[[Params, Batch], jax.Array]
  update: Update
  use_reference: bool

  def score_batches(
    self, updates: Sequence[Sequence[Batch]], state: RLState
  ) -> list[list[Batch]]:
    """The microbatches of updates, with the logprobs that they need.

    Those are of the policy if `config.old` says so, and of the reference.
    """
    scorers = {}
    if self.config.old == "trainer":
      scorers["old_logprobs"] = state.train.params
    if self.use_reference:
      scorers["reference_logprobs"] = offload.fetch(state.reference)
    add = lambda batch: batch.replace(
      **{name: self.score(params, batch) for name, params in scorers.items()}
    )
    return [[*map(add, batches)] for batches in updates]

  def make_sample(
    self,
    pool: GraderPool,
    progress: Callable[[int, int], None],
    *,
    read_all: bool,
  ) -> Callable[..., Round]:
    """The function that samples a round; see `rollouts.round.make_sample`."""
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
      read_all=read_all,
    )

  def to_device(self, params: Params) -> Params:
    """Parameters from the host, sharded on the mesh."""
    axes = logical_axes(self.model.config)
    return sharding.to_device(
      params, sharding.tree_shardings(self.mesh, axes, params)
    )


def set_up(config: ml_collections.ConfigDict) -> tuple[Run, Params]:
  """The parts of a run, and the parameters of its base model on the host.

  Raises ValueError for parts that do not fit each other.
  """
  mesh = make_mesh(**config.mesh)
  inspection.check_rows(config.rows, mesh)
  dataset = data.load(**config.dataset.to_dict())
  tokenizer = tokenizers.load(**config.tokenizer)
  inspection.check_dataset(dataset, tokenizer, config)
  model, base = load_model(config)
  inspection.check_vocabulary(tokenizer, model.config)
  rewards.check(inspection.in_memory(dataset), **config.rewards.to_dict())
  optimizer, score, update = make_steps(config, model, tokenizer)
  run = Run(
    config=config,
    mesh=mesh,
    dataset=dataset,
    tokenizer=tokenizer,
    model=model,
    engine=make_engine(
      model,
      tokenizer,
      reshape_mesh(mesh, **config.rollout_mesh),
      chat.shared_tokens(config.template, tokenizer),
      **config.sampling,
    ),
    optimizer=optimizer,
    score=score,
    update=update,
    use_reference=use_reference(config),
  )
  return run, base


def use_reference(config: ml_collections.ConfigDict) -> bool:
  """Whether the run needs a reference policy: a KL has a coefficient."""
  return bool(config.loss.kl_coefficient or config.kl_reward.coefficient)


def restore_or_init(
  run: Run, workdir: str, base: Params
) -> tuple[RLState, int | None]:
  """The state and step of the newest checkpoint, or a new state and None."""
  axes = logical_axes(run.model.config)
  init = functools.partial(
    policy.init_rl_state, run.model.config, run.optimizer, run.use_reference
  )
  shapes = sharding.eval_shape(run.mesh, axes, init, base)
  state = checkpoint.restore(workdir, shapes)
  restored = None if state is None else int(state.train.step)
  if state is None:
    state = sharding.init(run.mesh, axes, init, run.to_device(base))
  checkpoint.drop_scores(workdir, restored)
  return offload.to_host(state, run.config.offload), restored


def token_limit(config: ml_collections.ConfigDict, step: int) -> int:
  """The most tokens of a completion that is sampled at `step`.

  It is the last entry of `max_tokens` [(first step, tokens), ...] whose first
  step has been reached, or else `sampling.max_tokens`.
  """
  limits = [tokens for first, tokens in config.max_tokens if first <= step]
  return limits[-1] if limits else config.sampling.max_tokens


def load_model(
  config: ml_collections.ConfigDict,
) -> tuple[transformer.Transformer, Params]:
  """The model and its initial parameters, on the host."""
  sizes, params = models.load(**config.model.to_dict())
  if config.mtp == "drop":
    sizes = replace(sizes, mtp_depth=0)
    params = {name: x for name, x in params.items() if name != "mtp"}
  # The copy stays valid when updates donate their parameters.
  return transformer.Transformer(sizes), jax.tree.map(np.array, params)


def make_steps(
  config: ml_collections.ConfigDict, model: transformer.Transformer, tokenizer
) -> tuple[optax.GradientTransformation, Callable, Update]:
  """The optimizer, and the functions `score` and `update`."""
  settings, trains = config.optimizer.to_dict(), config.mtp == "train"
  if config.mtp == "frozen":
    settings["frozen"] = (*settings.get("frozen", ()), "mtp")
  elif trains:
    settings["separate"] = ("mtp",)
  optimizer = make_optimizer(**settings)
  forward = functools.partial(
    policy.policy_forward,
    model,
    tokenizer.vocab_size,
    config.sampling.temperature,
  )
  mtp = functools.partial(policy.mtp_loss, model, tokenizer.vocab_size)
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
