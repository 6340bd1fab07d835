"""The optimizer: AdamW, its schedule, and the weights that it updates."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax.models.config import float_name
from r1jax.models.weights import is_matrix, is_router_bias
from r1jax.types import Params


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
  moments: Any = "float32",
  frozen: Sequence[str] = (),
  separate: Sequence[str] = (),
) -> optax.GradientTransformation:
  """AdamW (arXiv:1711.05101) after clipping by the global gradient norm.

  Args:
    learning_rate: peak of the schedule; see `make_schedule`, also for the next
      three, `restart_rate`, `restart_steps` and `decay`.
    warmup_steps: steps of linear growth from 0 to the peak.
    decay_steps: steps of decay after the warm-up.
    final_share: final learning rate, relative to the peak.
    b1: decay rate of the first moment.
    b2: decay rate of the second moment.
    weight_decay: coefficient, for the weights that `decay_mask` selects.
    max_grad_norm: the largest gradient norm over all trained weights; larger
      gradients are scaled down to it.
    restart_rate: initial learning rate of a second decay.
    restart_steps: steps of the second decay.
    decay: shape of both decays.
    moments: dtype in which the moments are stored between steps.
    frozen: top-level names of parameters that are not trained. The balancing
      biases of routers are never trained here; see `update`.
    separate: top-level names of parameters whose gradient is clipped by its own
      norm, separately from the others.

  The state holds the learning rate of the last step; see
  `learning_rate_metric`. Raises ValueError for values that are out of range.
  """
  if float_name(moments, "moments") == "float16":
    raise ValueError(f"moments is {moments!r}, not 'float32' or 'bfloat16'")
  moments = float_name(moments)
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
      learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=decay_mask
    )
    return adamw if moments == "float32" else with_state_dtype(adamw, moments)

  adamw = optax.inject_hyperparams(make_adamw)(learning_rate=schedule)
  trained = optax.chain(optax.clip_by_global_norm(max_grad_norm), adamw)
  if separate:
    trained = skip_zero_gradient(trained)

  def labels(params: Params) -> Params:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: (
        "frozen"
        if path[0].key in frozen or is_router_bias(path)
        else "separate"
        if path[0].key in separate
        else "trained"
      ),
      params,
    )

  return optax.multi_transform(
    {"trained": trained, "frozen": optax.set_to_zero()}
    | ({"separate": trained} if separate else {}),
    labels,
  )


# Decays from the peak to the end. `optax.cosine_decay_schedule` would divide by
# a peak of 0.
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
  """A function from step to learning rate: warm-up, decay, and a second decay.

  Args:
    learning_rate: the peak; 0 leaves the weights unchanged.
    warmup_steps: steps of linear growth from 0 to the peak; 0 starts there.
    decay_steps: steps of decay to the final rate; 0 stays at the peak.
    final_share: final rate, relative to the peak.
    restart_rate: initial rate of a second decay after the first; 0 for none.
    restart_steps: steps of the second decay to the same final rate; 0 for none.
    decay: "cosine" or "linear".

  Raises ValueError for an unknown decay, a number below 0, or an incomplete
  restart.
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
      raise ValueError(f"{name} is {value}; it must be finite and at least 0")
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
  end, make_decay = final_share * learning_rate, DECAYS[decay]
  phases = [
    (warmup_steps, optax.linear_schedule(0, learning_rate, warmup_steps))
  ]
  if decay_steps:
    phases.append((decay_steps, make_decay(learning_rate, decay_steps, end)))
  else:
    phases.append((0, optax.constant_schedule(learning_rate)))
  if restart_steps:
    phases.append((restart_steps, make_decay(restart_rate, restart_steps, end)))
  lengths, schedules = zip(*phases)
  return optax.join_schedules(schedules, np.cumsum(lengths[:-1]))


def with_state_dtype(
  transform: optax.GradientTransformation, dtype: str
) -> optax.GradientTransformation:
  """`transform` with its state stored in `dtype` and computed in float32."""

  def cast(state, dtype):
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: x.astype(dtype) if floating(x) else x, state)

  def update(updates, state, params=None):
    updates, state = transform.update(updates, cast(state, jnp.float32), params)
    return updates, cast(state, dtype)

  return optax.GradientTransformation(
    lambda params: cast(transform.init(params), dtype), update
  )


def skip_zero_gradient(
  transform: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """`transform`, except that a gradient of exactly 0 changes nothing.

  `make_update` ensures this for all weights together. This function is for
  separately clipped parts, of which one may have a zero gradient alone.
  """

  def update(gradient, state, params=None):
    changes, new = transform.update(gradient, state, params)
    nonzero = ~is_zero(gradient)
    changes = jax.tree.map(lambda x: jnp.where(nonzero, x, 0), changes)
    select = lambda new, old: jnp.where(nonzero, new, old)
    return changes, jax.tree.map(select, new, state)

  return optax.GradientTransformation(transform.init, update)


def is_zero(tree: Any) -> jax.Array:
  """Whether every number of the tree is 0; NaN is not 0."""
  return jnp.all(jnp.array([jnp.all(x == 0) for x in jax.tree.leaves(tree)]))


def decay_mask(params: Params) -> Params:
  """A tree that is True for weights with weight decay.

  These are the matrices except the embedding and the unembedding; norms and
  biases do not decay.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: (
      is_matrix(path) and path[-1].key not in ("embed", "unembed")
    ),
    params,
  )


def learning_rate_metric(
  optimizer_state: optax.OptState,
) -> dict[str, jax.Array]:
  """{"optim/lr": the learning rate of the last step}.

  It is empty for optimizers whose state does not hold the rate. All groups of
  weights have the same rate.
  """
  states = optax.tree.get_all_with_path(optimizer_state, "hyperparams")
  return {"optim/lr": states[0][1]["learning_rate"]} if states else {}
