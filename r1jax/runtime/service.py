"""The coordination service of `jax.distributed`, which process 0 keeps.

JAX has no public way to its messages, to the addresses that it finds, or to
what happens when it is lost; all of that is here, and nowhere else.
"""

import contextlib
import ctypes
import functools
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any


def place(
  arguments: Mapping[str, Any], seconds: float
) -> tuple[str, int, int, Any]:
  """The address of process 0, how many there are, which this is, its devices.

  Args:
    arguments: those of `jax.distributed.initialize` that are known.
    seconds: that finding out the others may take.

  Raises ValueError for what nobody says, and for a process beyond the last.
  """
  from jax._src.clusters import ClusterEnv

  names = ("coordinator_address", "num_processes", "process_id")
  known = {name: arguments.get(name) for name in names}
  known[names[0]] = known[names[0]] or os.environ.get("JAX_COORDINATOR_ADDRESS")
  devices = os.environ.get("JAX_LOCAL_DEVICE_IDS")
  found = ClusterEnv.auto_detect_unset_distributed_params(
    **known,
    local_device_ids=[*map(int, devices.split(","))] if devices else None,
    cluster_detection_method=None,
    initialization_timeout=int(seconds),
  )
  for name, value in zip(names, found):
    if value is None:
      raise ValueError(f"nothing here says what --{name} is; give it")
  _, count, process, _ = found
  if not 0 <= process < count:
    raise ValueError(
      f"--process_id is {process}, but with --num_processes={count} it is one "
      f"of 0 to {count - 1}"
    )
  return found


def on_loss(act: Callable[[], None]) -> None:
  """Has `act`, which must end the process, called when the service is lost.

  JAX would abort with stacks of C++. Its client takes a function to call
  instead, but `jax.distributed` does not pass one on; and since jaxlib cannot
  hand a status to Python, the call ends in `std::terminate`, which leads to
  `act` too. It must come before `jax.distributed.initialize`.
  """
  from jax._src.lib import _jax

  _jax.get_distributed_runtime_client = functools.partial(
    _jax.get_distributed_runtime_client,
    missed_heartbeat_callback=lambda *_: act(),
  )
  with contextlib.suppress(OSError, AttributeError):  # Another C++ library.
    library = ctypes.CDLL("libstdc++.so.6")
    set_terminate = library["_ZSt13set_terminatePFvvE"]
    set_terminate.restype = ctypes.c_void_p
    _KEPT.append(ctypes.CFUNCTYPE(None)(act))
    set_terminate(_KEPT[-1])


_KEPT: list[Any] = []  # What C++ may call must not be collected.


def is_there(address: str) -> bool:
  """Whether anything listens at "HOST:PORT"."""
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), 2.0).close()
  except OSError:
    return False
  return True


def client() -> Any:
  """Its client, which keeps texts under keys."""
  from jax._src import distributed

  return distributed.global_state.client


def get(key: str, seconds: float) -> str | None:
  """The text under a key, or None if nobody sets it within the time."""
  try:
    return client().blocking_key_value_get(key, int(seconds * 1000))
  except Exception as error:
    if "DEADLINE_EXCEEDED" in str(error):
      return None
    raise


def try_get(key: str) -> str | None:
  """The text under a key, or None if there is none."""
  try:
    return client().key_value_try_get(key)
  except Exception as error:
    if "NOT_FOUND" in str(error):
      return None
    raise
