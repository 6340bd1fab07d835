"""The setup of a GRPO run: the parts that do not change during training."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import optax
from jax.sharding import Mesh

from r1jax import data, rewards
from r1jax.data import chat
from r1jax.data import tokenizer as tokenizers
from r1jax.models import transformer
from r1jax.models.weights import logical_axes
from r1jax.parallel import offload
from r1jax.parallel.mesh import make_mesh, reshape_mesh
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts.engine import Engine, make_engine
from r1jax.rollouts.round import Round, make_sample
from r1jax.training import inspection, models, policy
from r1jax.training.distillation import make_guide
from r1jax.training.lora import NOTHING, Frozen
from r1jax.training.optimizer import make_optimizer
from r1jax.training.scorer import with_models
from r1jax.training.state import make_frozen, make_params, restore_or_init
from r1jax.training.update import Update, make_update
from r1jax.types import Batch, Example, Params, RLState, Tokenizer


class Run(NamedTuple):
  """The parts of a run that do not change during training."""

  config: ml_collections.ConfigDict
  mesh: Mesh
  dataset: Sequence[Example]
  tokenizer: Tokenizer
  initial: models.Initial
  model: transformer.Transformer
  engine: Engine
  optimizer: optax.GradientTransformation
  score: Callable[[Params, Batch], jax.Array]
  update: Update
  use_reference: bool
  guide: Callable[[Batch], Batch] | None  # See `distillation.make_guide`.
  frozen: Frozen  # The model of an adapter; see `training.lora`.

  def make_sample(
    self,
    pool: GraderPool,
    progress: Callable[[int, int], None],
  ) -> Callable[..., Round]:
    """The function that samples a round; see `rollouts.round.make_sample`."""
    config = self.config
    return make_sample(
      self.engine,
      self.dataset,
      self.tokenizer,
      pool,
      rewards=with_models(config.rewards.to_dict(), self.mesh),
      template=config.template,
      seed=config.seed,
      prompts_per_round=config.prompts_per_round,
      group_size=config.group_size,
      rounds=config.dynamic_sampling.rounds,
      progress=progress,
    )

  def restore_or_init(self, workdir: str) -> tuple[RLState, int | None]:
    """The state and step of the newest checkpoint, or a new state and None."""
    init = functools.partial(
      policy.init_rl_state,
      self.model.config,
      self.optimizer,
      self.use_reference and self.frozen.lora is None,
    )
    return restore_or_init(
      workdir, self.mesh, self.initial, init, self.config.offload
    )

  def whole(self, state: RLState) -> RLState:
    """The state with the parameters of the whole policy, and its reference.

    They differ from those of `state` if an adapter is trained: the model under
    it is the reference.
    """
    if self.frozen.lora is None:
      return state
    params = self.frozen.full(state.train.params)
    return state.replace(
      train=state.train.replace(params=params),
      reference=self.frozen.base if self.use_reference else None,
    )

  def base_params(self, state: RLState) -> Params:
    """The parameters of the base model, in the dtypes of the policy or sampler.

    The reference has them until it is replaced for the first time. Afterwards,
    and in a run without a reference, they are read or made again.
    """
    if self.frozen.lora is not None:
      return self.frozen.base
    if self.use_reference and not int(state.reference_step):
      return offload.to_device(state.reference)
    return make_params(self.mesh, self.initial)


def set_up(config: ml_collections.ConfigDict) -> Run:
  """The parts of a run; of parameters, only those that stay are read.

  Raises ValueError for parts that do not fit each other.
  """
  mesh = make_mesh(**config.mesh)
  inspection.check_rows(config.rows, mesh)
  dataset = data.load(**config.dataset.to_dict())
  tokenizer = tokenizers.load(**config.tokenizer)
  inspection.check_dataset(dataset, tokenizer, config)
  initial = models.initial(**config.model, mtp=config.mtp != "drop")
  model = transformer.Transformer(initial.config)
  inspection.check_vocabulary(tokenizer, model.config)
  rewards.check(inspection.in_memory(dataset), **config.rewards.to_dict())
  frozen = make_frozen(mesh, initial)
  optimizer, score, update = make_steps(
    config, model, tokenizer, frozen, initial.axes
  )
  return Run(
    config=config,
    mesh=mesh,
    dataset=dataset,
    tokenizer=tokenizer,
    initial=initial,
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
    guide=make_guide(
      mesh, tokenizer, config.sampling.temperature, **config.teacher
    ),
    frozen=frozen,
  )


def use_reference(config: ml_collections.ConfigDict) -> bool:
  """Whether the run needs a reference policy: a KL has a coefficient."""
  return bool(config.loss.kl_coefficient or config.kl_reward.coefficient)


def token_limit(config: ml_collections.ConfigDict, step: int) -> int:
  """The most tokens of a completion that is sampled at `step`.

  It is the last entry of `max_tokens` [(first step, tokens), ...] whose first
  step has been reached, or else `sampling.max_tokens`.
  """
  limits = [tokens for first, tokens in config.max_tokens if first <= step]
  return limits[-1] if limits else config.sampling.max_tokens


def make_steps(
  config: ml_collections.ConfigDict,
  model: transformer.Transformer,
  tokenizer: Any,
  frozen: Frozen = NOTHING,
  axes: Any = None,
) -> tuple[optax.GradientTransformation, Callable, Update]:
  """The optimizer, and the functions `score` and `update`.

  Args:
    config: of the run.
    model: the policy.
    tokenizer: of the policy, of which the `vocab_size` is needed.
    frozen: the model of an adapter.
    axes: logical axes of what is trained; None for those of the model.
  """
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
    frozen.loss(loss),
    optimizer,
    router_bias_speed=config.router_bias_speed,
    axes=axes or logical_axes(model.config),
  )
  return optimizer, policy.make_score(forward), update
