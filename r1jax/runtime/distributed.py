"""Jobs of several hosts: joining, agreement, and failing together.

Every host runs the same command and performs the same steps in the same order.
Outside of XLA programs, hosts communicate through the key-value store of the
coordination service of `jax.distributed`, which runs on host 0: heartbeats,
failures, and values that only host 0 can know. Every wait reports which host it
is waiting for.

    with distributed.job():  # A host that fails in this block ends all hosts.
      while ...:
        distributed.raise_if_interrupted()  # All hosts raise, or none.

A "host" is one process of the job; a machine may run several.
"""

import contextlib
import functools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from absl import flags

from r1jax.runtime import interrupt, rendezvous, service

Value = TypeVar("Value")

# All times are in seconds.
JOIN_TIMEOUT = 300.0  # The most time between the first and the last host.
PERIOD = 5.0  # Between two messages about a wait.
HEARTBEAT = 1.0  # Between two heartbeats.
HEARTBEAT_TIMEOUT = 25.0  # Without a heartbeat, until a host counts as dead.
WAIT_TIMEOUT = 3600.0  # The longest wait for data of the other hosts.
_FAILURE, _HEARTBEATS, _NAMES, _VALUES, _FACTS = (
  f"r1jax/{kind}"
  for kind in ("failure", "heartbeats", "names", "values", "facts")
)


class _State:
  """State of the process, which belongs to one job; a singleton."""

  joined = False
  failing = False  # This host has raised an error itself.
  num_shared = 0  # Calls of `from_first`; they number the keys.
  num_compared = 0  # Calls of `require_equal`; they number the keys.
  last_answer = 0.0  # Time at which the service last answered.
  first_host = "host 0"  # Includes the machine's name once that is known.
  watch: threading.Thread


@contextlib.contextmanager
def job(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> Iterator[None]:
  """A block that runs as one job on all hosts; a single host just runs it.

  Without arguments, the job is detected from the environment (TPU pods, SLURM,
  Open MPI, Kubernetes). An exception in the block ends all hosts.

  Args:
    coordinator_address: "HOST:PORT" of process 0.
    num_processes: of the job.
    process_id: of this process, from 0.

  Raises ValueError if only some arguments are set, or if a host does not join
  in time.
  """
  arguments = dict(
    coordinator_address=coordinator_address,
    num_processes=num_processes,
    process_id=process_id,
  )
  known = {k: v for k, v in arguments.items() if v is not None}
  if known and len(known) < 3:
    missing = next(name for name in arguments if name not in known)
    raise ValueError(f"--{next(iter(known))} also needs --{missing}")
  if not known and not service.is_multi_host():
    yield
    return
  _join(known)
  if not _State.joined:  # The job of the environment has one host.
    yield
    return
  try:
    with interrupt.only_recorded():
      yield
  except interrupt.Interrupted:  # All hosts raise it at the same step.
    _leave()
    raise
  except BaseException as error:
    _report_error(error)
    raise
  _leave()


def is_first() -> bool:
  """Whether this is host 0, which writes metrics and reports."""
  import jax

  return jax.process_index() == 0


def raise_if_interrupted() -> None:
  """Raises Interrupted on all hosts if any of them received a signal.

  All hosts must call it at the same points of their programs.
  """
  if _State.joined:
    signums = all_gather(np.int32(interrupt.received() or 0))
    if signums.any():
      raise interrupt.Interrupted(int(signums.max()))


def all_gather(array: np.ndarray | np.generic) -> np.ndarray:
  """The arrays of all N hosts, stacked [N, ...] and bit for bit equal.

  All hosts must pass the same shape and dtype.
  """
  array = np.asarray(array)
  if not _State.joined:
    return array[None]
  from jax.experimental import multihost_utils

  # They are sent as bytes, because devices would round float64.
  data = np.frombuffer(array.tobytes(), np.uint8)
  with _waiting_for("data of the other hosts"):
    gathered = np.asarray(multihost_utils.process_allgather(data))
  return gathered.view(array.dtype).reshape(-1, *array.shape)


def require_equal(values: Mapping[str, Any]) -> None:
  """Raises ValueError with the first name whose value differs from host 0's.

  Values are compared as JSON: a list equals a tuple of the same items. All
  hosts must call it at the same points of their programs.
  """
  if not _State.joined:
    return
  import jax

  _State.num_compared += 1
  local = json.loads(json.dumps(dict(values), default=str))
  key = f"{_FACTS}/{_State.num_compared}"
  if is_first():
    service.client().key_value_set(key, json.dumps(local))
    return
  first = json.loads(_get(key, "its config, code and data"))
  for name in sorted(local.keys() | first.keys()):
    if (here := local.get(name, "absent")) != (
      there := first.get(name, "absent")
    ):
      raise ValueError(
        f"the hosts differ in {name}: it is {here!r:.200} on "
        f"{_name(jax.process_index())} and {there!r:.200} on "
        f"{_State.first_host}; start all with the same command, code and data"
      )


def from_first(make: Callable[[], Value]) -> Value:
  """make(), called on host 0 alone and sent to every host as JSON.

  It is for values that only host 0 can see, such as the files that it writes.
  """
  if not _State.joined:
    return make()
  _State.num_shared += 1
  key = f"{_VALUES}/{_State.num_shared}"
  if is_first():
    service.client().key_value_set(key, json.dumps(make()))
  return json.loads(_get(key, "a value"))


def _get(key: str, what: str) -> str:
  """The value that host 0 sets under a key.

  While it waits for `what`, it prints messages, and it can be interrupted.
  """
  began = time.monotonic()
  while (value := service.get(key, PERIOD)) is None:
    elapsed = time.monotonic() - began
    if elapsed > WAIT_TIMEOUT:
      raise rendezvous.HostsMissing(
        f"waited {WAIT_TIMEOUT:.0f} s for {_State.first_host}: {what}"
      )
    _log(f"waiting for {_State.first_host}: {what}, {elapsed:.0f} s")
  return value


def exit_code(error: BaseException) -> int:
  """1 if the same command may succeed later, 2 if its input is wrong."""
  wrong = isinstance(error, ValueError | OSError | flags.Error)
  return 2 if wrong and not isinstance(error, rendezvous.HostsMissing) else 1


def exit_process(code: Any) -> None:
  """Exits; within a job, without waiting for the other hosts."""
  if not _State.joined:
    sys.exit(code)
  if isinstance(code, str):
    print(code, file=sys.stderr)
  _exit(code if isinstance(code, int) else 1)


def _join(arguments: dict[str, Any]) -> None:
  import jax

  # JAX's preemption service would replace the SIGTERM handler of `interrupt`.
  jax.config.update("jax_enable_preemption_service", False)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  cluster = service.find_cluster(arguments, JOIN_TIMEOUT)
  address, count, process, devices = cluster
  if count > 1:
    rendezvous.meet(
      address,
      count,
      process,
      log=_log,
      bind=os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"),
      seconds=JOIN_TIMEOUT,
    )
  service.on_service_lost(functools.partial(_on_service_lost, address))
  try:
    # Our heartbeats time out before JAX's, which report only a host's number.
    jax.distributed.initialize(
      address,
      count,
      process,
      devices,
      initialization_timeout=int(JOIN_TIMEOUT),
      heartbeat_timeout_seconds=4 * int(HEARTBEAT_TIMEOUT),
    )
  except (RuntimeError, ValueError) as error:
    raise rendezvous.HostsMissing(
      "this host could not join the job: "
      f"{' '.join(str(error).split())}; check that every host runs and has the "
      "same --coordinator_address"
    ) from error
  _State.joined = jax.process_count() > 1
  if not _State.joined:
    return
  name = f"{socket.gethostname()}, process {os.getpid()}"
  service.client().key_value_set(f"{_NAMES}/{process}", name)
  _get(f"{_NAMES}/0", "its name")
  _State.first_host, _State.last_answer = _name(0), time.monotonic()
  _State.watch = threading.Thread(
    target=_watch, args=(jax.process_index(), jax.process_count()), daemon=True
  )
  _State.watch.start()
  if process:
    threading.Thread(target=_watch_service, daemon=True).start()


def _on_service_lost(address: str) -> None:
  """Ends this process with an error of one line; called by JAX's service."""
  time.sleep(HEARTBEAT)  # A dying host closes its connections one by one.
  if service.is_listening(address):
    _abort(f"{_State.first_host}: its coordination service dropped this host")
  _abort(f"{_State.first_host} has died, which ends the job")


def _leave() -> None:
  """Leaves the job once all hosts have reached its end."""
  import jax

  with _waiting_for("the other hosts to end"):
    jax.distributed.shutdown()
  _State.joined = False
  _State.watch.join()  # Python must not exit while the thread is in a call.


def _watch(process: int, count: int) -> None:
  """Sends heartbeats, checks those of others, and looks for failures."""
  client = service.client()
  last_heard = {host: ("", time.monotonic()) for host in range(count)}
  heartbeats = 0
  while _State.joined:
    time.sleep(HEARTBEAT)
    heartbeats += 1
    with contextlib.suppress(Exception):  # `_watch_service` reports a loss.
      client.key_value_set(
        f"{_HEARTBEATS}/{process}", str(heartbeats), allow_overwrite=True
      )
      if (failure := service.try_get(_FAILURE)) and not _State.failing:
        _keep_service_alive(process)
        _abort(*json.loads(failure))
      if process == 0:
        _check_heartbeats(client, last_heard)
      _State.last_answer = time.monotonic()


def _watch_service() -> None:
  """Ends this process when the service on host 0 no longer answers.

  Calls to a stopped process never return, so this needs a thread of its own.
  """
  while _State.joined:
    time.sleep(PERIOD)
    elapsed = time.monotonic() - _State.last_answer
    if _State.joined and elapsed > HEARTBEAT_TIMEOUT:
      _abort(f"{_State.first_host}: no answer for {elapsed:.0f} s")
    if _State.joined and elapsed > PERIOD:
      _log(f"waiting for {_State.first_host}: no answer for {elapsed:.0f} s")


def _check_heartbeats(client, last_heard: dict[int, tuple[str, float]]) -> None:
  """Updates the time of each host's last heartbeat; reports dead hosts."""
  now = time.monotonic()
  for key, beat in client.key_value_dir_get(_HEARTBEATS):
    host = int(key.rpartition("/")[2])
    if last_heard[host][0] != beat:
      last_heard[host] = beat, now
  for host, (_, last) in last_heard.items():
    elapsed = now - last
    if elapsed > HEARTBEAT_TIMEOUT:
      _publish_failure(f"{_name(host)}: no heartbeat for {elapsed:.0f} s")
    elif elapsed > PERIOD and elapsed % PERIOD < HEARTBEAT:
      _log(f"waiting for {_name(host)}: no heartbeat for {elapsed:.0f} s")


def _publish_failure(reason: str, code: int = 1) -> None:
  """Ends all hosts with this reason and exit code; only the first is stored."""
  with contextlib.suppress(Exception):
    service.client().key_value_set(_FAILURE, json.dumps([reason, code]))


def _name(host: int) -> str:
  name = None
  with contextlib.suppress(Exception):  # The service may not answer.
    name = service.try_get(f"{_NAMES}/{host}")
  if name is None:  # It died before it published its name.
    return f"host {host}"
  return f"host {host} ({name})"


def _report_error(error: BaseException) -> None:
  """Sends the error that ends this host to the others."""
  import jax

  text = " ".join(str(error).split())
  runtime = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in text
  if runtime and "RESOURCE_EXHAUSTED" not in text:
    # Most likely another host died during a collective, and this error is only
    # a consequence. `_watch` ends this process when the cause is published.
    time.sleep(HEARTBEAT_TIMEOUT + 5 * HEARTBEAT)
  _State.failing = True
  process = jax.process_index()
  reason = f"{_name(process)}: {type(error).__name__}: {text}"
  _publish_failure(reason, exit_code(error))
  _keep_service_alive(process)


def _keep_service_alive(process: int) -> None:
  """Waits on host 0, which runs the service, until all have read a failure."""
  if process == 0:
    time.sleep(3 * HEARTBEAT)


@contextlib.contextmanager
def _waiting_for(what: str) -> Iterator[None]:
  """A block that waits for other hosts, with messages and a time limit."""
  done = threading.Event()

  def watch():
    began = time.monotonic()
    while not done.wait(2 * PERIOD):
      elapsed = time.monotonic() - began
      if elapsed > WAIT_TIMEOUT:
        _abort(f"waited {WAIT_TIMEOUT:.0f} s for {what}")
      _log(f"waiting for {what}, {elapsed:.0f} s")

  threading.Thread(target=watch, daemon=True).start()
  try:
    yield
  finally:
    done.set()


def _log(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _abort(reason: str, code: int = 1) -> None:
  print(f"error: {reason}", file=sys.stderr, flush=True)
  _exit(code)


def _exit(code: int) -> None:
  """Ends the process immediately; a normal exit would wait for dead hosts."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
