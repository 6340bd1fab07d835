"""A rendezvous of all processes of a job, before JAX's service starts.

`jax.distributed.initialize` waits for the last process in one blocking call. It
does not report which processes are missing, signals cannot interrupt it, and it
aborts on a timeout. The processes therefore first meet here, over plain TCP at
the coordinator's address, which is released before JAX's service uses it.

Process 0 listens. Every other process sends one JSON line with its process id
and number of processes. It receives lines: {"missing": [3, 4]} from time to
time, {"error": "..."} if the job is inconsistent, and {"go": true} at the end.
With "late": true, the error is that processes are missing at the time limit.
"""

import errno
import json
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

PERIOD = 5.0  # Seconds between two messages about a wait.
POLL = 0.5  # Seconds between two checks during a wait; signals act at them.
MAX_LINE = 4096  # The most bytes of a line.

Log = Callable[[str], None]


class HostsMissing(ValueError):
  """Other hosts have not come in time; the same command may succeed later."""


def meet(
  address: str,
  count: int,
  process: int,
  *,
  log: Log,
  bind: str | None = None,
  seconds: float = 300.0,
) -> None:
  """Returns once all processes of the job have called it.

  Args:
    address: "HOST:PORT" of process 0.
    count: number of processes of the job.
    process: id of this process, from 0.
    log: called every few seconds with a message about the wait.
    bind: "HOST:PORT" at which process 0 listens; None means all interfaces.
    seconds: time limit.

  Raises HostsMissing if processes are missing at the time limit, which it
  names, and ValueError if processes disagree on the job.
  """
  wait = _Wait(log, seconds)
  if process == 0:
    _serve(address, count, bind, wait)
  else:
    _connect(address, count, process, wait)


class _Wait:
  """A wait with a time limit and periodic messages."""

  def __init__(self, log: Log, seconds: float):
    self._log, self.seconds = log, seconds
    self._began = self._logged = time.monotonic()

  def is_over(self) -> bool:
    """Whether the time limit has passed."""
    return time.monotonic() - self._began > self.seconds

  def report(self, what: str) -> bool:
    """Logs what the wait is for, every few seconds; True if it did."""
    now = time.monotonic()
    if now - self._logged < PERIOD:
      return False
    self._logged = now
    spent = f"{now - self._began:.0f} of {self.seconds:.0f} s"
    self._log(f"waiting for {what}, {spent} (Ctrl-C stops)")
    return True


def _serve(address: str, count: int, bind: str | None, wait: _Wait) -> None:
  peers: dict[int, socket.socket] = {}
  try:
    with _listen(address, bind) as server:
      while missing := sorted({*range(1, count)} - peers.keys()):
        if select.select([server], [], [], POLL)[0]:
          peer = server.accept()[0]
          _accept(peer, count, peers)
          _send_all([peer], {"missing": missing})
        for process in [i for i, v in peers.items() if _has_left(v)]:
          peers.pop(process).close()
        if wait.is_over():
          raise HostsMissing(
            f"{_hosts(missing)} of {count} did not connect to {address} within "
            f"{wait.seconds:.0f} s; start every process, with the same "
            "--coordinator_address and --num_processes"
          )
        if wait.report(f"{_hosts(missing)} of {count} at {address}"):
          _send_all(peers.values(), {"missing": missing})
    _send_all(peers.values(), {"go": True})
    # The peers hang up first, so that the port is free immediately.
    for peer in peers.values():
      peer.settimeout(PERIOD)
      _receive(peer)
  except ValueError as error:
    late = isinstance(error, HostsMissing)
    _send_all(peers.values(), {"error": str(error), "late": late})
    raise
  finally:
    for peer in peers.values():
      peer.close()


def _listen(address: str, bind: str | None) -> socket.socket:
  _, port = _split(address)
  host, at = _split(bind) if bind else ("", port)
  dual = host in ("", "::") and socket.has_dualstack_ipv6()
  is_six = dual or ":" in host
  try:
    return socket.create_server(
      (host, at),
      family=socket.AF_INET6 if is_six else socket.AF_INET,
      dualstack_ipv6=dual,
    )
  except OSError as error:
    advice = "choose another --coordinator_address"
    if error.errno == errno.EADDRINUSE:
      advice += f", or end what listens there (ss -ltnp 'sport = :{at}')"
    raise ValueError(
      f"process 0 cannot listen at {bind or address}: {error.strerror}; "
      f"{advice}"
    ) from None


def _accept(
  peer: socket.socket, count: int, peers: dict[int, socket.socket]
) -> None:
  """Adds a process of this job to `peers`; closes any other connection."""
  peer.settimeout(PERIOD)
  message = _receive(peer)
  peer.setblocking(False)
  process = message.get("process")
  if not isinstance(process, int) or "count" not in message:
    peer.close()
    return
  problem = None
  if message["count"] != count:
    problem = (
      f"process {process} was started with --num_processes={message['count']}, "
      f"and process 0 with {count}"
    )
  elif process in peers and not _has_left(peers[process]):
    problem = f"two processes were started with --process_id={process}"
  if problem:
    peers[-1 - len(peers)] = peer  # A free key, so that it gets the error too.
    raise ValueError(problem)
  if process in peers:
    peers.pop(process).close()
  peers[process] = peer


def _connect(address: str, count: int, process: int, wait: _Wait) -> None:
  host, port = _split(address)
  missing, reason = "host 0", "it does not answer"
  while not wait.is_over():
    try:
      with socket.create_connection((host, port), PERIOD) as server:
        _send(server, {"process": process, "count": count})
        missing, reason = f"host 0 of {count}", "it hung up"
        for message in _lines(server):
          if "error" in message:
            kind = HostsMissing if message.get("late") else ValueError
            raise kind(message["error"])
          if message.get("go"):
            return
          if others := [i for i in message.get("missing", ()) if i != process]:
            missing = f"{_hosts(others)} of {count}"
          wait.report(f"{missing} at {address}")
          if wait.is_over():
            break
    except OSError as error:
      reason = error.strerror or str(error) or "it does not answer"
      time.sleep(POLL)
    wait.report(f"host 0 at {address} ({reason})")
  raise HostsMissing(
    f"{missing} did not connect to {address} within {wait.seconds:.0f} s "
    f"({reason}); start every process, with the same --coordinator_address"
  )


def _lines(server: socket.socket) -> Iterator[dict[str, Any]]:
  """The messages of host 0 until it hangs up; {} after each silent `POLL`."""
  server.settimeout(POLL)
  text = b""
  while True:
    try:
      read = server.recv(MAX_LINE)
    except TimeoutError:
      yield {}
      continue
    if not read:
      return
    *whole, text = (text + read).split(b"\n")
    yield from map(_parse, whole)


def _receive(peer: socket.socket) -> dict[str, Any]:
  """The next message, or {} if none arrives in time."""
  try:
    with peer.makefile("rb") as file:
      return _parse(file.readline(MAX_LINE))
  except OSError:
    return {}


def _parse(line: bytes) -> dict[str, Any]:
  try:
    message = json.loads(line)
  except ValueError:
    return {}
  return message if isinstance(message, dict) else {}


def _send(peer: socket.socket, message: dict[str, Any]) -> None:
  peer.sendall(json.dumps(message).encode() + b"\n")


def _send_all(peers: Iterable[socket.socket], message: dict[str, Any]) -> None:
  for peer in peers:
    try:
      _send(peer, message)
    except OSError:  # It has hung up, which `_has_left` detects.
      pass


def _has_left(peer: socket.socket) -> bool:
  try:
    return not peer.recv(1, socket.MSG_PEEK)
  except BlockingIOError:
    return False
  except OSError:
    return True


def _split(address: str) -> tuple[str, int]:
  host, _, port = address.rpartition(":")
  if not port.isdigit():
    raise ValueError(f"{address!r} is not an address; use HOST:PORT")
  return host.strip("[]"), int(port)


def _hosts(numbers: list[int]) -> str:
  """The numbers as text: "host 3", or "hosts 1, 2 and 5 more"."""
  shown = ", ".join(map(str, numbers[:8]))
  more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
  return f"host{'s' if len(numbers) > 1 else ''} {shown}{more}"
