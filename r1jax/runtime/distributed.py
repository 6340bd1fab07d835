"""Many hosts as one job: they meet, agree, and fall together.

Every host runs the same command, and all do the same things in the same order.
What they tell each other outside XLA's programs goes through the coordination
service of `jax.distributed`, which host 0 keeps: who is alive, what went wrong,
and the few things that host 0 alone can know. Whoever waits says for whom.

    with hosts.job():   # Joins; a host that fails in here ends all of them.
      while ...:
        hosts.stop_if_told()  # All raise Interrupted at the same step, or none.

A host here is one process of the job; a machine may run several.
"""

import contextlib
import functools
import importlib.util
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from r1jax.runtime import interrupt, rendezvous, service

Value = TypeVar("Value")

MEETING = 300.0  # Seconds that the first host waits for the last.
PERIOD = 5.0  # Seconds between two words on what is awaited.
BEAT = 1.0  # Seconds between two signs of life.
SILENCE = 25.0  # Seconds without one after which a host is taken for dead.
WAIT = 3600.0  # Seconds that a host waits for what the others bring.
_FAILURE, _BEATS, _NAMES, _VALUES, _FACTS = (
  f"r1jax/{kind}" for kind in ("failure", "beats", "names", "values", "facts")
)


class _State:
  """A process belongs to one job, so there is one of this."""

  joined = False
  failing = False  # This host has an error of its own.
  shared = 0  # Values that host 0 has told.
  compared = 0  # Times that facts were compared.
  answered = 0.0  # When the service, which host 0 keeps, last did.
  keeper = "host 0"  # With its name, once it is known.
  watch: threading.Thread


@contextlib.contextmanager
def job(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> Iterator[None]:
  """A block that all hosts of a job run, if there are several.

  Without arguments the environment says whether there are, and JAX finds out
  the rest (TPU pods, SLURM, Open MPI, Kubernetes).

  Raises ValueError when the arguments are incomplete, or not all hosts come.
  """
  arguments = dict(
    coordinator_address=coordinator_address,
    num_processes=num_processes,
    process_id=process_id,
  )
  given = {k: v for k, v in arguments.items() if v is not None}
  if given and len(given) < 3:
    missing = next(name for name in arguments if name not in given)
    raise ValueError(f"--{next(iter(given))} needs --{missing} beside it")
  if not given and not expected():
    yield
    return
  _join(given)
  if not _State.joined:  # The environment's job has one host.
    yield
    return
  try:
    with interrupt.held():
      yield
  except interrupt.Interrupted:  # All hosts raise it, at the same step.
    _part()
    raise
  except BaseException as error:
    _tell(error)
    raise
  _part()


def expected() -> bool:
  """Whether the environment is that of a process among several."""
  several = lambda name: int(os.environ.get(name) or 1) > 1
  if "SLURM_STEP_NODELIST" in os.environ and several("SLURM_NTASKS"):
    return True
  if several("OMPI_COMM_WORLD_SIZE"):
    return True
  if "KUBERNETES_SERVICE_HOST" in os.environ:
    return "JOB_COMPLETION_INDEX" in os.environ
  # Hosts of a TPU slice: only their metadata server knows how many.
  return (
    any(os.path.exists(f) for f in ("/dev/accel0", "/dev/vfio/0"))
    and importlib.util.find_spec("libtpu") is not None
  )


def is_first() -> bool:
  """Whether this host is the one that writes reports."""
  import jax

  return jax.process_index() == 0


def stop_if_told() -> None:
  """Raises Interrupted on all hosts if one of them was told to stop.

  All hosts must call it, at the same places of their programs.
  """
  if _State.joined:
    signums = all_gather(np.int32(interrupt.received() or 0))
    if signums.any():
      raise interrupt.Interrupted(int(signums.max()))


def all_gather(array: np.ndarray | np.generic) -> np.ndarray:
  """What every host brings, bit for bit [N, ...]; all bring the same shape."""
  array = np.asarray(array)
  if not _State.joined:
    return array[None]
  from jax.experimental import multihost_utils

  # As bytes: a device would round float64.
  data = np.frombuffer(array.tobytes(), np.uint8)
  with _limit("what the other hosts know"):
    gathered = np.asarray(multihost_utils.process_allgather(data))
  return gathered.view(array.dtype).reshape(-1, *array.shape)


def compare(facts: Mapping[str, Any]) -> None:
  """Raises ValueError that names the first fact that is not host 0's.

  All hosts must call it, at the same places of their programs. What only looks
  alike, a list and a tuple, is the same.
  """
  if not _State.joined:
    return
  import jax

  _State.compared += 1
  own = json.loads(json.dumps(dict(facts), default=str))
  key = f"{_FACTS}/{_State.compared}"
  if is_first():
    service.client().key_value_set(key, json.dumps(own))
    return
  first = json.loads(_get(key, "its config, code and data"))
  for name in sorted(own.keys() | first.keys()):
    if (here := own.get(name, "absent")) != (
      there := first.get(name, "absent")
    ):
      raise ValueError(
        f"the hosts differ in {name}: it is {here!r:.200} on "
        f"{_who(jax.process_index())} and {there!r:.200} on {_State.keeper}; "
        "start all with the same command, code and data"
      )


def from_first(make: Callable[[], Value]) -> Value:
  """What `make` gives on host 0, as JSON has it, on every host.

  For what only host 0 can see, such as the files that it writes.
  """
  if not _State.joined:
    return make()
  _State.shared += 1
  key = f"{_VALUES}/{_State.shared}"
  if is_first():
    service.client().key_value_set(key, json.dumps(make()))
  return json.loads(_get(key, "what it alone knows"))


def _get(key: str, what: str) -> str:
  """What host 0 sets; a wait for it says so, and can be interrupted."""
  began = time.monotonic()
  while (value := service.get(key, PERIOD)) is None:
    spent = time.monotonic() - began
    if spent > WAIT:
      raise ValueError(f"waited {WAIT:.0f} s for {_State.keeper}: {what}")
    _say(f"waiting for {_State.keeper}: {what}, {spent:.0f} s")
  return value


def leave(code: Any) -> None:
  """`sys.exit`; after a failure without waiting for the others."""
  if not _State.joined:
    sys.exit(code)
  if isinstance(code, str):
    print(code, file=sys.stderr)
  _exit(code if isinstance(code, int) else 1)


def _join(arguments: dict[str, Any]) -> None:
  import jax

  # It would take SIGTERM away from `interrupt`.
  jax.config.update("jax_enable_preemption_service", False)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  address, count, own, devices = service.place(arguments, MEETING)
  if count > 1:
    rendezvous.meet(
      address,
      count,
      own,
      say=_say,
      bind=os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"),
      seconds=MEETING,
    )
  service.on_loss(functools.partial(_lose, address))
  try:
    # JAX's own heartbeats name a host by its number alone; ours come first.
    jax.distributed.initialize(
      address,
      count,
      own,
      devices,
      initialization_timeout=int(MEETING),
      heartbeat_timeout_seconds=4 * int(SILENCE),
    )
  except (RuntimeError, ValueError) as error:
    raise ValueError(
      "this host did not meet the others of the job: "
      f"{' '.join(str(error).split())}; is the coordinator's address the same "
      "everywhere, and does every host run?"
    ) from error
  _State.joined = jax.process_count() > 1
  if not _State.joined:
    return
  name = f"{socket.gethostname()}, process {os.getpid()}"
  service.client().key_value_set(f"{_NAMES}/{own}", name)
  _get(f"{_NAMES}/0", "its name")
  _State.keeper, _State.answered = _who(0), time.monotonic()
  _State.watch = threading.Thread(
    target=_watch, args=(jax.process_index(), jax.process_count()), daemon=True
  )
  _State.watch.start()
  if own:
    threading.Thread(target=_await_service, daemon=True).start()


def _lose(address: str) -> None:
  """Ends this process in one line when JAX's service would abort it."""
  time.sleep(BEAT)  # A process that dies closes one connection after the other.
  if service.is_there(address):
    _fall(f"{_State.keeper}: its coordination service gave this host up")
  _fall(f"{_State.keeper} is gone, and the job with it")


def _part() -> None:
  """Waits until all hosts have come as far."""
  import jax

  with _limit("the other hosts to end"):
    jax.distributed.shutdown()
  _State.joined = False
  _State.watch.join()  # Python must not end while it is in a call.


def _watch(own: int, count: int) -> None:
  """Gives signs of life, looks for those of others, and for bad news."""
  client = service.client()
  heard = {host: ("", time.monotonic()) for host in range(count)}
  beats = 0
  while _State.joined:
    time.sleep(BEAT)
    beats += 1
    with contextlib.suppress(Exception):  # `_await_service` deals with it.
      client.key_value_set(f"{_BEATS}/{own}", str(beats), allow_overwrite=True)
      if (failure := service.try_get(_FAILURE)) and not _State.failing:
        _outlive(own)
        _fall(failure)
      if own == 0:
        _listen(client, heard)
      _State.answered = time.monotonic()


def _await_service() -> None:
  """Notices when host 0, which keeps the service, does not answer.

  A question to a process that stands still is never answered, so that it must
  be another thread than the one that asks.
  """
  while _State.joined:
    time.sleep(PERIOD)
    silent = time.monotonic() - _State.answered
    if _State.joined and silent > SILENCE:
      _fall(f"{_State.keeper}: no answer for {silent:.0f} s")
    if _State.joined and silent > PERIOD:
      _say(f"waiting for {_State.keeper}: no answer for {silent:.0f} s")


def _listen(client, heard: dict[int, tuple[str, float]]) -> None:
  """Notes who gave a sign of life, and reports who has not for too long."""
  now = time.monotonic()
  for key, beat in client.key_value_dir_get(_BEATS):
    host = int(key.rpartition("/")[2])
    if heard[host][0] != beat:
      heard[host] = beat, now
  for host, (_, last) in heard.items():
    silent = now - last
    if silent > SILENCE:
      _report(f"{_who(host)}: no sign of life for {silent:.0f} s")
    elif silent > PERIOD and silent % PERIOD < BEAT:
      _say(f"waiting for {_who(host)}: no sign of life for {silent:.0f} s")


def _report(text: str) -> None:
  """Tells all hosts what went wrong; the first to tell is believed."""
  with contextlib.suppress(Exception):
    service.client().key_value_set(_FAILURE, text)


def _who(host: int) -> str:
  try:
    name = service.try_get(f"{_NAMES}/{host}")
  except Exception:  # The service does not answer.
    name = None
  if name is None:  # It died before it said its name.
    return f"host {host}"
  return f"host {host} ({name})"


def _tell(error: BaseException) -> None:
  """Tells the others what this host dies of, once it is known."""
  import jax

  text = " ".join(str(error).split())
  runtime = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in text
  if runtime and "RESOURCE_EXHAUSTED" not in text:
    # Most likely another host died within a collective, and this is only how
    # it shows here. `_watch` ends this process when it hears of it.
    time.sleep(SILENCE + 5 * BEAT)
  _State.failing = True
  own = jax.process_index()
  _report(f"{_who(own)}: {type(error).__name__}: {text}")
  _outlive(own)


def _outlive(own: int) -> None:
  """Host 0 keeps the service until all have read the news."""
  if own == 0:
    time.sleep(3 * BEAT)


@contextlib.contextmanager
def _limit(what: str) -> Iterator[None]:
  """A wait for the other hosts that says so, and does not last for ever."""
  done = threading.Event()

  def watch():
    began = time.monotonic()
    while not done.wait(2 * PERIOD):
      spent = time.monotonic() - began
      if spent > WAIT:
        _fall(f"waited {WAIT:.0f} s for {what}")
      _say(f"waiting for {what}, {spent:.0f} s")

  threading.Thread(target=watch, daemon=True).start()
  try:
    yield
  finally:
    done.set()


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _fall(reason: str) -> None:
  print(f"error: {reason}", file=sys.stderr, flush=True)
  _exit(1)


def _exit(code: int) -> None:
  """Ends the process at once: an exit in order would wait for the dead."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
