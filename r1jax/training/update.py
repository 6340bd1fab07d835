"""The optimizer step that every loop shares."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax import offload, sharding
from r1jax.models.moe import rebalance
from r1jax.types import Packed, Params, TrainState


def make_optimizer(
  *,
  learning_rate: float,
  warmup_steps: int = 0,
  decay_steps: int = 0,
  final_share: float = 1.0,
  b1: float = 0.9,
  b2: float = 0.95,
  weight_decay: float = 0.0,
  max_grad_norm: float = 1.0,
  restart_rate: float = 0.0,
  restart_steps: int = 0,
  decay: str = "cosine",
  moments: str = "float32",
  frozen: Sequence[str] = (),
  apart: Sequence[str] = (),
) -> optax.GradientTransformation:
  """AdamW (arXiv:1711.05101) behind one clip of the global gradient norm.

  Args:
    learning_rate: its peak; see `make_schedule` for this and the next three,
      `restart_rate`, `restart_steps` and `decay`.
    warmup_steps: of linear growth from 0 to the peak.
    decay_steps: of decay after that.
    final_share: of the peak, where the decay ends.
    b1: decay of the mean of gradients.
    b2: decay of the mean of their squares.
    weight_decay: of the weights that `decayed` names.
    max_grad_norm: the gradient, all trained weights together, is scaled down to
      this length.
    restart_rate: where a second decay begins.
    restart_steps: of that second decay.
    decay: the shape of both decays.
    moments: dtype in which the two means are kept between steps.
    frozen: top-level names of parameters that do not move. The balancing bias
      of the router never moves here: it has its own rule.
    apart: top-level names with a clip of their own, which the others do not
      feel.

  The state holds the learning rate of the last step; see `rate_of`.
  Raises ValueError for a value that has no meaning.
  """
  if moments not in ("float32", "bfloat16"):
    raise ValueError(f"moments is {moments!r}, not 'float32' or 'bfloat16'")
  if not max_grad_norm > 0:
    raise ValueError(f"max_grad_norm is {max_grad_norm}; it must be above 0")
  if not weight_decay >= 0:
    raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0")
  schedule = make_schedule(
    learning_rate=learning_rate,
    warmup_steps=warmup_steps,
    decay_steps=decay_steps,
    final_share=final_share,
    restart_rate=restart_rate,
    restart_steps=restart_steps,
    decay=decay,
  )

  def make_adamw(learning_rate) -> optax.GradientTransformation:
    adamw = optax.adamw(
      learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=decayed
    )
    return adamw if moments == "float32" else kept_in(adamw, moments)

  adamw = optax.inject_hyperparams(make_adamw)(learning_rate=schedule)
  trained = optax.chain(optax.clip_by_global_norm(max_grad_norm), adamw)
  if apart:
    trained = unless_zero(trained)

  def labels(params: Params) -> Params:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: (
        "frozen"
        if path[0].key in frozen or path[-1].key == "router_bias"
        else "apart"
        if path[0].key in apart
        else "trained"
      ),
      params,
    )

  return optax.multi_transform(
    {"trained": trained, "frozen": optax.set_to_zero()}
    | ({"apart": trained} if apart else {}),
    labels,
  )


# From the peak to the end; optax's own cosine divides by a peak of 0.
DECAYS = {
  "cosine": lambda peak, steps, end: optax.warmup_cosine_decay_schedule(
    peak, peak, 0, steps, end
  ),
  "linear": lambda peak, steps, end: optax.linear_schedule(peak, end, steps),
}


def make_schedule(
  *,
  learning_rate: float,
  warmup_steps: int,
  decay_steps: int,
  final_share: float,
  restart_rate: float,
  restart_steps: int,
  decay: str,
) -> optax.Schedule:
  """The learning rate of each step: warm-up, decay, and a second decay.

  Args:
    learning_rate: the peak; 0 leaves the weights as they are.
    warmup_steps: of linear growth from 0 to the peak; 0 starts at the peak.
    decay_steps: of decay to the end; 0 keeps the peak for good.
    final_share: of the peak; that is the end.
    restart_rate: where a second decay begins, after the first one; 0 for none.
    restart_steps: of that second decay, to the same end; 0 for none.
    decay: "cosine" or "linear".

  Raises ValueError for a decay that does not exist, a number below 0, and a
  restart of which a part is missing.
  """
  if decay not in DECAYS:
    raise ValueError(f"unknown decay {decay!r}; there is {', '.join(DECAYS)}")
  for name, value in (
    ("learning_rate", learning_rate),
    ("warmup_steps", warmup_steps),
    ("decay_steps", decay_steps),
    ("final_share", final_share),
    ("restart_rate", restart_rate),
    ("restart_steps", restart_steps),
  ):
    if not 0 <= value < math.inf:
      raise ValueError(f"{name} is {value}; it must be a number from 0 on")
  if bool(restart_rate) != bool(restart_steps):
    raise ValueError(
      f"restart_rate is {restart_rate} and restart_steps {restart_steps}: a "
      "restart needs both, and 0 for both means none"
    )
  if restart_steps and not decay_steps:
    raise ValueError(
      f"restart_steps is {restart_steps} and decay_steps 0: a second decay "
      "follows a first one"
    )
  end, fall = final_share * learning_rate, DECAYS[decay]
  phases = [
    (warmup_steps, optax.linear_schedule(0, learning_rate, warmup_steps))
  ]
  if decay_steps:
    phases.append((decay_steps, fall(learning_rate, decay_steps, end)))
  else:
    phases.append((0, optax.constant_schedule(learning_rate)))
  if restart_steps:
    phases.append((restart_steps, fall(restart_rate, restart_steps, end)))
  lengths, schedules = zip(*phases)
  return optax.join_schedules(schedules, np.cumsum(lengths[:-1]))


def kept_in(
  transform: optax.GradientTransformation, dtype: str
) -> optax.GradientTransformation:
  """`transform`, whose state is kept in `dtype` and read in float32."""

  def cast(state, dtype):
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: x.astype(dtype) if floating(x) else x, state)

  def update(updates, state, params=None):
    updates, state = transform.update(updates, cast(state, jnp.float32), params)
    return updates, cast(state, dtype)

  return optax.GradientTransformation(
    lambda params: cast(transform.init(params), dtype), update
  )


def unless_zero(
  transform: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """`transform`, which changes nothing where the whole gradient is exactly 0.

  `make_update` sees to that for all weights together; this is for parts that
  learn apart, of which one may have a gradient and the other none.
  """

  def update(gradient, state, params=None):
    changes, new = transform.update(gradient, state, params)
    moves = ~is_zero(gradient)
    changes = jax.tree.map(lambda x: jnp.where(moves, x, 0), changes)
    keep = lambda new, old: jnp.where(moves, new, old)
    return changes, jax.tree.map(keep, new, state)

  return optax.GradientTransformation(transform.init, update)


def is_zero(tree: Any) -> jax.Array:
  """Whether every number of the tree is 0; NaN is not."""
  return jnp.all(jnp.array([jnp.all(x == 0) for x in jax.tree.leaves(tree)]))


# The last words of the names of weights that do not decay.
KEPT = ("norm", "bias", "embed", "unembed")


def decayed(params: Params) -> Params:
  """True for the weights that decay: all but norms, biases, the embedding and
  the unembedding."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key.rpartition("_")[2] not in KEPT, params
  )


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

  `loss(params, packed, batch) -> (scalar, metrics)` sees one microbatch, rows
  of `packed`, and all of `batch`. Its scalar and its metrics are shares of the
  whole, which add up; metrics whose names end in "max" or "min" are the largest
  and the least instead. If
  the metrics hold "router/load" [L, E] of the layers with experts, the
  balancing biases move by `router_bias_speed` against it. `axes` names the
  dimensions of the parameters: on the mesh of the context (`jax.set_mesh`) the
  state leaves as it came, and gradients lie as their parameters do.

  The step is `update(state, packed, count, batch) -> (state, metrics)` with
  leaves of `packed`, a tree, [B, M, T]; the first `count` microbatches count.
  B comes first because it is what the mesh splits.
  It donates its state; what of it came from the hosts' memory goes back there.
  A step whose gradient is not finite changes nothing and is counted in
  `state.skipped`. One whose gradient is exactly 0, as no token teaches, changes
  nothing either, though AdamW would move on by its means and its decay;
  "optim/idle" is 1. `state.step` counts both, the optimizer's schedule neither.
  """

  @functools.partial(jax.jit, donate_argnames="state")
  def update(state: TrainState, packed, count, batch):
    split = functools.partial(sharding.lay_out, axes=axes)
    before, state = state, offload.fetched(state)
    part = jax.value_and_grad(loss, has_aux=True)

    def add(i, carry):
      rows = jax.tree.map(lambda x: jnp.take(x, i, axis=1), packed)
      (value, metrics), grads = part(state.params, rows, batch)
      metrics = metrics | {"loss/total": value}
      # A sum over devices that XLA moved out of the loop would be a sum of
      # gradients that are not split: the barrier keeps it in.
      grads = jax.lax.optimization_barrier(grads)
      total_grads, total = carry
      total = {
        name: _combine(name)(total[name], metrics[name]) for name in metrics
      }
      return split(jax.tree.map(jnp.add, total_grads, grads)), total

    first = jax.tree.map(lambda x: x[:, 0], packed)
    shapes = jax.eval_shape(part, state.params, first, batch)
    (_, metrics), grads = jax.tree.map(
      lambda s: jnp.zeros(s.shape, s.dtype), shapes
    )
    metrics = {
      name: jnp.full_like(x, jnp.inf) if name.endswith("min") else x
      for name, x in metrics.items()
    }
    with jax.named_scope("microbatches"):
      grads, metrics = jax.lax.fori_loop(
        0, count, add, (split(grads), metrics | {"loss/total": jnp.zeros(())})
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
  """How the parts of a metric become one."""
  if name.endswith("max"):
    return jnp.maximum
  return jnp.minimum if name.endswith("min") else jnp.add


def rate_of(optimizer_state: optax.OptState) -> dict[str, jax.Array]:
  """The learning rate of the last step, as a metric; nothing of an optimizer
  that does not hold it. Groups of weights share one rate."""
  found = optax.tree.get_all_with_path(optimizer_state, "hyperparams")
  return {"optim/lr": found[0][1]["learning_rate"]} if found else {}


def move_biases(params: Params, load: jax.Array, speed: float) -> Params:
  """The parameters with the balancing biases moved against `load` [L, E]."""
  layers = params["moe"]["router_bias"].shape[0]
  bias = rebalance(params["moe"]["router_bias"], load[:layers], speed)
  params = params | {"moe": params["moe"] | {"router_bias": bias}}
  if "mtp" in params and load.shape[0] > layers:
    block = params["mtp"]["block"]
    bias = rebalance(block["router_bias"], load[layers:], speed)
    block = block | {"router_bias": bias}
    params = params | {"mtp": params["mtp"] | {"block": block}}
  return params


def microbatches(packed: Packed, rows: int) -> tuple[Packed, int]:
  """Rows as [rows, M, T], and how many of the M hold anything."""
  width = packed.tokens.shape[1]
  used = (packed.positions >= 0).any(axis=1).reshape(-1, rows).any(axis=1)
  count = int(used.nonzero()[0].max(initial=-1)) + 1
  split = lambda x: np.swapaxes(x.reshape(-1, rows, width), 0, 1)
  return jax.tree.map(split, packed), count
