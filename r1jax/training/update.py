"""The optimizer step that all loops share."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from r1jax.models.moe import rebalance
from r1jax.models.weights import is_router_bias
from r1jax.parallel import offload, sharding
from r1jax.training.optimizer import is_zero, learning_rate_metric
from r1jax.types import Params, TrainState

Microbatch = Any  # What the loss takes, such as a `Batch`.


def init_state(
  params: Params, optimizer: optax.GradientTransformation
) -> TrainState:
  """The train state at step 0."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    optimizer_state=optimizer.init(params),
    skipped=jnp.zeros((), jnp.int32),
  )


class Update(NamedTuple):
  """One optimizer step, as its jitted parts; see `make_update`."""

  # zeros(params) -> gradients to add to.
  zeros: Callable
  # add(params, gradients, batch) -> (gradients, metrics) of one microbatch. It
  # donates the gradients that it adds to.
  add: Callable
  # combine(metrics, metrics) -> metrics of both.
  combine: Callable
  # apply(state, gradients, metrics) -> (state, metrics). It donates its state.
  apply: Callable

  def __call__(
    self, state: TrainState, batches: Iterable[Microbatch]
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state after one step on the microbatches, and its metrics."""
    gradients, total = self.zeros(state.params), None
    for batch in batches:
      gradients, metrics = self.add(state.params, gradients, batch)
      before, total = total, self.combine(total, metrics) if total else metrics
      # At most two microbatches are under way. A CPU of several devices stands
      # still for ever behind some thirty programs that reduce (JAX 0.10.2).
      jax.block_until_ready(before)
    return self.apply(state, gradients, total)


def make_update(
  loss: Callable,
  optimizer: optax.GradientTransformation,
  *,
  router_bias_speed: float = 0.0,
  axes: Any = None,
) -> Update:
  """The function update(state, batches) -> (state, metrics).

  It sums gradients over microbatches, whose rows may differ in number and
  width, and makes one optimizer step. It donates its state, and returns the new
  one in the same shardings and memory.

  A step whose gradient is not finite changes nothing and is counted in
  `state.skipped`. A step whose gradient is exactly 0, because no token has a
  signal, changes nothing either (AdamW's moments and weight decay would still
  move the weights); "optim/idle" is then 1. `state.step` counts both kinds of
  steps, the learning rate schedule counts neither.

  Args:
    loss: `loss(params, batch) -> (scalar, metrics)` of one microbatch. The
      scalar and the metrics are summed over microbatches; metrics whose names
      end in "max" or "min" are reduced by the maximum or minimum instead.
    optimizer: applied to the summed gradient.
    router_bias_speed: step size of the balancing biases against the metric
      "router/load" [L, E]; 0 leaves the biases unchanged.
    axes: logical axes of the parameters; with a mesh in the context
      (`jax.set_mesh`), gradients are sharded like their parameters.
  """
  constrain = functools.partial(sharding.tree_shard_constraint, axes=axes)
  value_and_grad = jax.value_and_grad(loss, has_aux=True)

  @jax.jit
  def zeros(params: Params):
    return constrain(jax.tree.map(jnp.zeros_like, params))

  @functools.partial(jax.jit, donate_argnames="gradients")
  def add(params: Params, gradients: Params, batch: Microbatch):
    (value, metrics), more = value_and_grad(params, batch)
    total = jax.tree.map(jnp.add, gradients, constrain(more))
    return constrain(total), metrics | {"loss/total": value}

  @jax.jit
  def combine(one: Mapping[str, jax.Array], other: Mapping[str, jax.Array]):
    return {name: _reduction(name)(one[name], other[name]) for name in one}

  @functools.partial(jax.jit, donate_argnames="state")
  def apply(
    state: TrainState, gradients: Params, metrics: Mapping[str, jax.Array]
  ):
    before, state = state, offload.to_device(state)
    updates, optimizer_state = optimizer.update(
      gradients, state.optimizer_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    if router_bias_speed:
      params = update_router_biases(
        params, metrics["router/load"], router_bias_speed
      )
    norm, idle = optax.tree.norm(gradients), is_zero(gradients)
    finite = jnp.isfinite(norm)
    keep = functools.partial(
      jax.tree.map, lambda new, old: jnp.where(finite & ~idle, new, old)
    )
    new = TrainState(
      step=state.step + 1,
      params=keep(params, state.params),
      optimizer_state=keep(optimizer_state, state.optimizer_state),
      skipped=jnp.where(finite, 0, state.skipped + 1),
    )
    metrics = dict(metrics) | learning_rate_metric(optimizer_state)
    return offload.to_memory_of(constrain(new), before), metrics | {
      "optim/grad_norm": norm,
      "optim/update_norm": jnp.where(idle, 0.0, optax.tree.norm(updates)),
      "optim/skipped": 1.0 - finite,
      "optim/idle": idle.astype(jnp.float32),
    }

  return Update(zeros, add, combine, apply)


def _reduction(name: str) -> Callable:
  """The function that reduces a metric over microbatches."""
  if name.endswith("max"):
    return jnp.maximum
  return jnp.minimum if name.endswith("min") else jnp.add


def update_router_biases(
  params: Params, load: jax.Array, speed: float
) -> Params:
  """The parameters with the balancing biases adjusted against `load` [L, E]."""
  first = 0

  def one(path, weight):
    nonlocal first
    if not is_router_bias(path) or first == len(load):
      return weight  # `load` lacks the MTP blocks if they did not run.
    layers = slice(first, first + len(weight))
    first = layers.stop
    return rebalance(weight, load[layers], speed)

  # The tree has the order of `load`: layers of "moe", then those of "mtp".
  return jax.tree.map_with_path(one, params)
