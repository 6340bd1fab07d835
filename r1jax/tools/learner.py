"""A model that learns, one update at a time, for notebooks and scripts.

    learner = r1jax.learner(model, config)
    learner, metrics = learner.update(samples, scores.total)
    learner.model.sample(["6 + 7 ="])

Whole runs are `r1jax.train`, which saves, resumes and reports.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from r1jax.losses.advantages import advantages as make_advantages
from r1jax.models.weights import logical_axes
from r1jax.parallel import sharding
from r1jax.parallel.mesh import make_mesh
from r1jax.tools.model import Model, Samples
from r1jax.training import policy
from r1jax.training.batch import (
  make_batch,
  pack_prompts,
  trained_completions,
  weigh_batches,
)
from r1jax.training.run import make_steps, use_reference
from r1jax.types import RLState


@dataclasses.dataclass(frozen=True, repr=False)
class Learner:
  """A model, its optimizer and its reference policy; made by `learner`.

  It is never changed: an update returns another one, so that a cell of a
  notebook may be run again.
  """

  base: Model  # The model that learning began with.
  config: ml_collections.ConfigDict
  mesh: Mesh
  state: RLState
  score: Callable  # Jitted, as are the updates; see `run.make_steps`.
  take_step: Callable

  @property
  def model(self) -> Model:
    """The model as it is now."""
    return dataclasses.replace(self.base, params=self.state.train.params)

  @property
  def step(self) -> int:
    """The number of updates so far."""
    return int(self.state.train.step)

  def update(
    self, samples: Samples, rewards: Sequence[float | int] | np.ndarray
  ) -> tuple["Learner", dict[str, float]]:
    """The learner after one update of GRPO, and the metrics of that.

    The completions must be samples of `self.model`: their log-probabilities
    are the denominators of the ratios. Metrics have the names of
    `r1jax.runtime.metrics`.

    Args:
      samples: all groups that the update learns from.
      rewards: of each completion [P * G]; NaN for those to leave out.

    Raises ValueError for more completions than a round of the config has.
    """
    c, rollout = self.config, samples.rollout
    total = np.asarray(rewards, np.float64).reshape(rollout.lengths.shape)
    if total.size > c.prompts_per_round * c.group_size:
      raise ValueError(
        f"{total.size} completions, but the config's prompts_per_round "
        f"{c.prompts_per_round} and group_size {c.group_size} are fewer"
      )
    trained = trained_completions(
      rollout, total, mask_truncated=c.mask_truncated
    )
    with jax.set_mesh(self.mesh):
      batches = [
        make_batch(rollout, microbatch, self.mesh)
        for microbatch in pack_prompts(
          rollout, range(len(total)), self.mesh, **c.rows
        )
      ]
      (batches,) = policy.add_logprobs(
        self.score, [batches], self.state, old=c.old
      )
      weighed = weigh_batches(
        batches,
        rollout.sampled_mask.sum(-1),
        trained,
        make_advantages(total, **c.advantage),
        **c.aggregation,
      )
      # The step donates its state, and this learner keeps its own.
      before = jax.tree.map(jnp.copy, self.state.train)
      new, metrics = self.take_step(before, weighed)
      state = self.state.replace(train=new)
      if state.reference is not None and int(new.step) % c.reference_every == 0:
        state = policy.refresh_reference(self.base.config, (), state)
    scalars = {k: v for k, v in sharding.to_host(metrics).items() if not v.ndim}
    return (
      dataclasses.replace(self, state=state),
      {name: float(value) for name, value in sorted(scalars.items())},
    )


def learner(model: Model, config: ml_collections.ConfigDict) -> Learner:
  """A learner at step 0.

  Args:
    model: to begin with; it is also the first reference policy.
    config: of a GRPO run. Its sections `advantage`, `aggregation`, `loss`,
      `optimizer`, `rows` and `mesh`, and the fields beside them, say what an
      update is; what it says of models, data, rewards and sampling is not used.

  Raises ValueError for a config of another loop, and for a KL in the reward.
  """
  if config.loop != "grpo":
    raise ValueError(f"the config is of {config.loop!r}, and not of 'grpo'")
  if config.kl_reward.coefficient:
    raise ValueError("a learner has no KL in the reward: set kl_reward to 0")
  config = ml_collections.ConfigDict(config.to_dict())
  if config.mtp == "drop":  # The model keeps them, unchanged.
    config.mtp = "frozen"
  mesh, axes = make_mesh(**config.mesh), logical_axes(model.config)
  optimizer, score, take_step = make_steps(
    config, model.transformer, model.tokenizer
  )

  def init(params):
    return policy.init_rl_state(
      model.config, optimizer, use_reference(config), params
    )

  # The optimizer adds up steps that bfloat16 would round away.
  params = jax.tree.map(lambda x: np.asarray(x, np.float32), model.params)
  params = sharding.to_device(
    params, sharding.tree_shardings(mesh, axes, params)
  )
  with jax.set_mesh(mesh):
    state = sharding.init(mesh, axes, init, params)
  return Learner(model, config, mesh, state, score, take_step)
