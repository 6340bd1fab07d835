"""Offloading: state in host memory while a step does not need it.

The optimizer moments are read once in a step, and the reference policy once in
a round. Where they do not fit into device memory beside the rest,
`config.offload` names them. They are copied to the devices before use
(`to_device`), within a program or ahead of several; a program that changes them
writes them back (`to_memory_of`).
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax

from r1jax.types import RLState, TrainState

State = TypeVar("State", TrainState, RLState)
Tree = TypeVar("Tree")

HOST_MEMORY = "pinned_host"  # JAX's name of this kind of memory.
PARTS = ("optimizer", "reference")


def check(parts: Sequence[str], device: Any = None) -> None:
  """Raises ValueError for unknown parts.

  With a device of the run, it also raises if the device cannot access host
  memory.
  """
  for part in parts:
    if part not in PARTS:
      raise ValueError(
        f"offload names {part!r}; there is {' and '.join(map(repr, PARTS))}"
      )
  if device is None:
    return
  kinds = [memory.kind for memory in device.addressable_memories()]
  if parts and HOST_MEMORY not in kinds:
    raise ValueError(
      f"offload is {tuple(parts)}, but a {device.device_kind} has no memory "
      f"{HOST_MEMORY!r}, only {', '.join(map(repr, kinds))}; set offload to ()"
    )


def to_host(state: State, parts: Sequence[str]) -> State:
  """The state with the named parts in host memory; see `check`.

  The state may consist of shapes with shardings instead of arrays.
  """
  check(parts, jax.local_devices()[0])
  if isinstance(state, RLState):
    if "reference" in parts:
      state = state.replace(reference=_to_host(state.reference))
    return state.replace(train=to_host(state.train, parts))
  if "optimizer" in parts:
    state = state.replace(optimizer_state=_to_host(state.optimizer_state))
  return state


def to_device(tree: Tree) -> Tree:
  """`tree` with all arrays in device memory, within a program or outside."""
  put = lambda x: jax.device_put(x, jax.memory.Space.Device)
  return jax.tree.map(lambda x: put(x) if _is_on_host(x) else x, tree)


def to_memory_of(tree: Tree, like: Tree) -> Tree:
  """Within a program: `tree`, each array in the memory space of `like`'s."""
  put = lambda x: jax.device_put(x, jax.memory.Space.Host)
  return jax.tree.map(
    lambda x, other: put(x) if _is_on_host(other) else x, tree, like
  )


def _to_host(tree):
  def one(x):
    if not x.ndim:
      return x  # Scalars, such as step counters, stay on the devices.
    on = x.sharding.with_memory_kind(HOST_MEMORY)
    if isinstance(x, jax.ShapeDtypeStruct):
      return x.update(sharding=on)
    return jax.device_put(x, on)

  return jax.tree.map(one, tree)


def _is_on_host(x):
  return jax.typeof(x).memory_space == jax.memory.Space.Host
