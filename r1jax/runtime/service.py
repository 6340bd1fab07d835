"""The coordination service of `jax.distributed`, which runs in process 0.

JAX has no public interface to its key-value store, to the detection of a
cluster, or to the loss of the service. All uses of JAX's internals for these
are in this module.
"""

import contextlib
import ctypes
import functools
import importlib.util
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any


def is_multi_host() -> bool:
  """Whether the environment says that this process is one of several."""
  several = lambda name: int(os.environ.get(name) or 1) > 1
  if "SLURM_STEP_NODELIST" in os.environ and several("SLURM_NTASKS"):
    return True
  if several("OMPI_COMM_WORLD_SIZE"):
    return True
  if "KUBERNETES_SERVICE_HOST" in os.environ:
    return "JOB_COMPLETION_INDEX" in os.environ
  # On TPU hosts, only the metadata server knows how many there are.
  return (
    any(os.path.exists(f) for f in ("/dev/accel0", "/dev/vfio/0"))
    and importlib.util.find_spec("libtpu") is not None
  )


def find_cluster(
  arguments: Mapping[str, Any], seconds: float
) -> tuple[str, int, int, Any]:
  """The coordinator's address, number of processes, process id, local devices.

  Args:
    arguments: the known arguments of `jax.distributed.initialize`; the others
      are detected from the environment.
    seconds: the time limit of the detection.

  Raises ValueError if an argument is neither passed nor detected, or if the
  process id is out of range.
  """
  from jax._src.clusters import ClusterEnv

  names = ("coordinator_address", "num_processes", "process_id")
  known = {name: arguments.get(name) for name in names}
  known[names[0]] = known[names[0]] or os.environ.get("JAX_COORDINATOR_ADDRESS")
  devices = os.environ.get("JAX_LOCAL_DEVICE_IDS")
  cluster = ClusterEnv.auto_detect_unset_distributed_params(
    **known,
    local_device_ids=[*map(int, devices.split(","))] if devices else None,
    cluster_detection_method=None,
    initialization_timeout=int(seconds),
  )
  for name, value in zip(names, cluster):
    if value is None:
      raise ValueError(
        f"--{name} is not set and cannot be detected from the environment; "
        "set it"
      )
  _, count, process, _ = cluster
  if not 0 <= process < count:
    raise ValueError(
      f"--process_id is {process}, but with --num_processes={count} it must be "
      f"from 0 to {count - 1}"
    )
  return cluster


def on_service_lost(callback: Callable[[], None]) -> None:
  """Registers a function that ends the process when the service is lost.

  By default JAX aborts with C++ stack traces. Its client accepts a callback,
  but `jax.distributed` does not expose it; and because jaxlib cannot pass the
  status to Python, the call ends in `std::terminate`, which is redirected to
  `callback` too. Must be called before `jax.distributed.initialize`.
  """
  from jax._src.lib import _jax

  _jax.get_distributed_runtime_client = functools.partial(
    _jax.get_distributed_runtime_client,
    missed_heartbeat_callback=lambda *_: callback(),
  )
  # Systems with another C++ library keep its own terminate handler.
  with contextlib.suppress(OSError, AttributeError):
    library = ctypes.CDLL("libstdc++.so.6")
    set_terminate = library["_ZSt13set_terminatePFvvE"]
    set_terminate.restype = ctypes.c_void_p
    _KEPT.append(ctypes.CFUNCTYPE(None)(callback))
    set_terminate(_KEPT[-1])


_KEPT: list[Any] = []  # Keeps callbacks of C++ from being garbage collected.


def is_listening(address: str) -> bool:
  """Whether a server listens at "HOST:PORT"."""
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), 2.0).close()
  except OSError:
    return False
  return True


def client() -> Any:
  """The client of the service's key-value store of strings."""
  from jax._src import distributed

  return distributed.global_state.client


def get(key: str, seconds: float) -> str | None:
  """The string under a key, or None if it is not set within `seconds`."""
  try:
    return client().blocking_key_value_get(key, int(seconds * 1000))
  except Exception as error:
    if "DEADLINE_EXCEEDED" in str(error):
      return None
    raise


def try_get(key: str) -> str | None:
  """The string under a key, or None if it is not set."""
  try:
    return client().key_value_try_get(key)
  except Exception as error:
    if "NOT_FOUND" in str(error):
      return None
    raise
