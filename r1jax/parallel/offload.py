"""State that waits in the hosts' memory while a step does not need it.

The optimizer's means are read once in a step, the reference policy once in a
round: where they do not fit beside the rest, `config.offload` names them. A
program brings them to the devices (`fetched`) and takes them back (`returned`),
at the price of the way, once each.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from r1jax.types import RLState, TrainState

State = TypeVar("State", TrainState, RLState)
Tree = TypeVar("Tree")

KIND = "pinned_host"  # Of the memory, as JAX calls it.
PARTS = ("optimizer", "reference")


def check(parts: Sequence[str], device: Any = None) -> None:
  """Raises ValueError for parts that do not exist.

  Given one of the devices that a run uses, also if they cannot wait there.
  """
  for part in parts:
    if part not in PARTS:
      raise ValueError(
        f"offload names {part!r}; there is {' and '.join(map(repr, PARTS))}"
      )
  if device is None:
    return
  kinds = [memory.kind for memory in device.addressable_memories()]
  if parts and KIND not in kinds:
    raise ValueError(
      f"offload is {tuple(parts)}, but a {device.device_kind} has no memory "
      f"{KIND!r}, only {', '.join(map(repr, kinds))}; set offload to ()"
    )


def park(state: State, parts: Sequence[str]) -> State:
  """The state with some of its parts in the hosts' memory; see `check`."""
  check(parts, jax.local_devices()[0])
  if isinstance(state, RLState):
    if "reference" in parts:
      state = state.replace(reference=_parked(state.reference))
    return state.replace(train=park(state.train, parts))
  if "optimizer" in parts:
    state = state.replace(optimizer_state=_parked(state.optimizer_state))
  return state


def fetched(tree: Tree) -> Tree:
  """Within a program: the same in the devices' memory, wherever it was."""
  bring = lambda x: jax.device_put(x, jax.memory.Space.Device)
  return jax.tree.map(lambda x: bring(x) if _is_parked(x) else x, tree)


def returned(tree: Tree, before: Tree) -> Tree:
  """Within a program: `tree`, each array where `before` has it."""
  take = lambda x: jax.device_put(x, jax.memory.Space.Host)
  return jax.tree.map(
    lambda x, old: take(x) if _is_parked(old) else x, tree, before
  )


def _parked(tree):
  def one(x):
    if not jnp.ndim(x):
      return x  # A counter.
    return jax.device_put(x, x.sharding.with_memory_kind(KIND))

  return jax.tree.map(one, tree)


def _is_parked(x):
  return jax.typeof(x).memory_space == jax.memory.Space.Host
