"""The jitted optimizer step that all loops share."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from r1jax.models.moe import rebalance
from r1jax.models.weights import is_router_bias
from r1jax.parallel import offload, sharding
from r1jax.training.batch import microbatch
from r1jax.training.optimizer import is_zero, learning_rate_metric
from r1jax.types import Batch, Params, TrainState


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


def make_update(
  loss: Callable,
  optimizer: optax.GradientTransformation,
  *,
  router_bias_speed: float = 0.0,
  axes: Any = None,
) -> Callable:
  """A jitted function update(state, batch) -> (state, metrics).

  It sums gradients over the microbatches of the batch and makes one optimizer
  step. It donates its state, and returns the new one in the same shardings and
  memory.

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

  @functools.partial(jax.jit, donate_argnames="state")
  def update(state: TrainState, batch: Batch):
    constrain = functools.partial(sharding.tree_shard_constraint, axes=axes)
    before, state = state, offload.to_device(state)
    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def add(i, carry):
      (value, metrics), grads = value_and_grad(
        state.params, microbatch(batch, i)
      )
      metrics = metrics | {"loss/total": value}
      # The barrier keeps the reduction over devices inside the loop. If XLA
      # moved it out, the loop would carry gradients that are not sharded.
      grads = jax.lax.optimization_barrier(grads)
      total_grads, total = carry
      total = {
        name: _reduction(name)(total[name], metrics[name]) for name in metrics
      }
      return constrain(jax.tree.map(jnp.add, total_grads, grads)), total

    shapes = jax.eval_shape(value_and_grad, state.params, microbatch(batch, 0))
    (_, metrics), grads = jax.tree.map(
      lambda s: jnp.zeros(s.shape, s.dtype), shapes
    )
    metrics = {
      name: jnp.full_like(x, jnp.inf) if name.endswith("min") else x
      for name, x in metrics.items()
    }
    with jax.named_scope("microbatches"):
      grads, metrics = jax.lax.fori_loop(
        0,
        batch.num_microbatches,
        add,
        (constrain(grads), metrics | {"loss/total": jnp.zeros(())}),
      )
    updates, optimizer_state = optimizer.update(
      grads, state.optimizer_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    if router_bias_speed:
      params = update_router_biases(
        params, metrics["router/load"], router_bias_speed
      )
    norm, idle = optax.tree.norm(grads), is_zero(grads)
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
    metrics |= learning_rate_metric(optimizer_state)
    return offload.to_memory_of(constrain(new), before), metrics | {
      "optim/grad_norm": norm,
      "optim/update_norm": jnp.where(idle, 0.0, optax.tree.norm(updates)),
      "optim/skipped": 1.0 - finite,
      "optim/idle": idle.astype(jnp.float32),
    }

  return update


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
