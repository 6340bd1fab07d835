"""The jitted optimizer step that every loop shares."""

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
from r1jax.training.optimizer import is_zero, rate_of
from r1jax.types import Batch, Params, TrainState


def init_state(
  params: Params, optimizer: optax.GradientTransformation
) -> TrainState:
  """A state at step 0."""
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
  """Turns a loss into one jitted step over microbatches.

  Args:
    loss: `loss(params, batch) -> (scalar, metrics)` of one microbatch. The
      scalar and the metrics are shares of the whole, which add up; metrics
      whose names end in "max" or "min" are the largest and the least instead.
    optimizer: makes updates of the summed gradient.
    router_bias_speed: by how much the balancing biases move against the metric
      "router/load" [L, E] of the layers with experts; 0 leaves them.
    axes: names the dimensions of the parameters. On the mesh of the context
      (`jax.set_mesh`) gradients are laid out as their parameters are.

  Returns `update(state, batch) -> (state, metrics)`. It donates its state and
  returns it in the same layout and memory. A step whose gradient is not finite
  changes nothing and is counted in `state.skipped`. A step whose gradient is
  exactly 0, because no token teaches, changes nothing either, though AdamW's
  means and decay would move the weights; "optim/idle" is then 1. `state.step`
  counts both, the schedule counts neither.
  """

  @functools.partial(jax.jit, donate_argnames="state")
  def update(state: TrainState, batch: Batch):
    split = functools.partial(sharding.lay_out, axes=axes)
    before, state = state, offload.fetched(state)
    part = jax.value_and_grad(loss, has_aux=True)

    def add(i, carry):
      (value, metrics), grads = part(state.params, microbatch(batch, i))
      metrics = metrics | {"loss/total": value}
      # A sum over devices that XLA moved out of the loop would be a sum of
      # gradients that are not split: the barrier keeps it in.
      grads = jax.lax.optimization_barrier(grads)
      total_grads, total = carry
      total = {
        name: _combine(name)(total[name], metrics[name]) for name in metrics
      }
      return split(jax.tree.map(jnp.add, total_grads, grads)), total

    shapes = jax.eval_shape(part, state.params, microbatch(batch, 0))
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
        (split(grads), metrics | {"loss/total": jnp.zeros(())}),
      )
    updates, optimizer_state = optimizer.update(
      grads, state.optimizer_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    if router_bias_speed:
      params = move_biases(params, metrics["router/load"], router_bias_speed)
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
    metrics |= rate_of(optimizer_state)
    return offload.returned(split(new), before), metrics | {
      "optim/grad_norm": norm,
      "optim/update_norm": jnp.where(idle, 0.0, optax.tree.norm(updates)),
      "optim/skipped": 1.0 - finite,
      "optim/idle": idle.astype(jnp.float32),
    }

  return update


def _combine(name: str) -> Callable:
  """How the parts of a metric are combined."""
  if name.endswith("max"):
    return jnp.maximum
  return jnp.minimum if name.endswith("min") else jnp.add


def move_biases(params: Params, load: jax.Array, speed: float) -> Params:
  """The parameters with the balancing biases moved against `load` [L, E]."""
  first = 0

  def one(path, weight):
    nonlocal first
    if not is_router_bias(path) or first == len(load):
      return weight  # The MTP blocks' load is missing where they did not run.
    layers = slice(first, first + len(weight))
    first = layers.stop
    return rebalance(weight, load[layers], speed)

  # The tree is in the order of `load`: layers of "moe", then those of "mtp".
  return jax.tree.map_with_path(one, params)
