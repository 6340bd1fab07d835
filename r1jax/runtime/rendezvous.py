"""All processes of a job find each other, before JAX's own service begins.

JAX waits for the last process in one blocking call: it names nobody, no signal
ends it, and when it gives up it aborts. So they meet here first, over plain TCP
at the coordinator's address, which is free again when the last has come.

Process 0 listens. Every other one sends a line of JSON that says who it is, and
is sent lines: {"missing": [3, 4]} from time to time, {"error": "..."} if it
cannot be, {"go": true} at the end.
"""

import errno
import json
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

PERIOD = 5.0  # Seconds between two words on what is awaited.
PULSE = 0.5  # Seconds after which a wait looks around; signals are seen then.
LONGEST = 4096  # Bytes of a line.

Say = Callable[[str], None]


def meet(
  address: str,
  count: int,
  process: int,
  *,
  say: Say,
  bind: str | None = None,
  seconds: float = 300.0,
) -> None:
  """Returns when all processes of the job are there.

  Args:
    address: "HOST:PORT" of process 0.
    count: processes of the job.
    process: this one, from 0.
    say: is told every few seconds what is awaited.
    bind: "HOST:PORT" that process 0 listens at; None is every interface.
    seconds: after which those who are missing are given up.

  Raises ValueError that names who did not come, or what cannot be.
  """
  wait = _Wait(say, seconds)
  if process == 0:
    _host(address, count, bind, wait)
  else:
    _visit(address, count, process, wait)


class _Wait:
  """How long something was waited for, and for how long it may be."""

  def __init__(self, say: Say, seconds: float):
    self._say, self.seconds = say, seconds
    self._began = self._said = time.monotonic()

  def is_over(self) -> bool:
    """Whether the time is up."""
    return time.monotonic() - self._began > self.seconds

  def tell(self, what: str) -> bool:
    """Says what is awaited, every few seconds; whether it did."""
    now = time.monotonic()
    if now - self._said < PERIOD:
      return False
    self._said = now
    spent = f"{now - self._began:.0f} of {self.seconds:.0f} s"
    self._say(f"waiting for {what}, {spent} (Ctrl-C stops)")
    return True


def _host(address: str, count: int, bind: str | None, wait: _Wait) -> None:
  visitors: dict[int, socket.socket] = {}
  try:
    with _listen(address, bind) as server:
      while missing := sorted({*range(1, count)} - visitors.keys()):
        if select.select([server], [], [], PULSE)[0]:
          visitor = server.accept()[0]
          _welcome(visitor, count, visitors)
          _send_all([visitor], {"missing": missing})
        for process in [i for i, v in visitors.items() if _has_left(v)]:
          visitors.pop(process).close()
        if wait.is_over():
          raise ValueError(
            f"{_hosts(missing)} of {count} did not come to {address} within "
            f"{wait.seconds:.0f} s; start every process, with the same "
            "--coordinator_address and --num_processes"
          )
        if wait.tell(f"{_hosts(missing)} of {count} at {address}"):
          _send_all(visitors.values(), {"missing": missing})
    _send_all(visitors.values(), {"go": True})
    for visitor in visitors.values():  # They hang up: the port is free at once.
      visitor.settimeout(PERIOD)
      _receive(visitor)
  except ValueError as error:
    _send_all(visitors.values(), {"error": str(error)})
    raise
  finally:
    for visitor in visitors.values():
      visitor.close()


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


def _welcome(
  visitor: socket.socket, count: int, visitors: dict[int, socket.socket]
) -> None:
  """Takes in a process of this job; whatever else calls is hung up on."""
  visitor.settimeout(PERIOD)
  said = _receive(visitor)
  visitor.setblocking(False)
  process = said.get("process")
  if not isinstance(process, int) or "count" not in said:
    visitor.close()
    return
  problem = None
  if said["count"] != count:
    problem = (
      f"process {process} was started with --num_processes={said['count']}, "
      f"and process 0 with {count}"
    )
  elif process in visitors and not _has_left(visitors[process]):
    problem = f"two processes were started with --process_id={process}"
  if problem:
    visitors[-1 - len(visitors)] = visitor  # It is told like the others.
    raise ValueError(problem)
  if process in visitors:
    visitors.pop(process).close()
  visitors[process] = visitor


def _visit(address: str, count: int, process: int, wait: _Wait) -> None:
  host, port = _split(address)
  awaited, reason = "host 0", "it does not answer"
  while not wait.is_over():
    try:
      with socket.create_connection((host, port), PERIOD) as server:
        _send(server, {"process": process, "count": count})
        awaited, reason = f"host 0 of {count}", "it hung up"
        for said in _lines(server):
          if "error" in said:
            raise ValueError(said["error"])
          if said.get("go"):
            return
          if others := [i for i in said.get("missing", ()) if i != process]:
            awaited = f"{_hosts(others)} of {count}"
          wait.tell(f"{awaited} at {address}")
          if wait.is_over():
            break
    except OSError as error:
      reason = error.strerror or str(error) or "it does not answer"
      time.sleep(PULSE)
    wait.tell(f"host 0 at {address} ({reason})")
  raise ValueError(
    f"{awaited} did not come to {address} within {wait.seconds:.0f} s "
    f"({reason}); start every process, with the same --coordinator_address"
  )


def _lines(server: socket.socket) -> Iterator[dict[str, Any]]:
  """What host 0 sends until it hangs up; {} when it has been silent."""
  server.settimeout(PULSE)
  text = b""
  while True:
    try:
      read = server.recv(LONGEST)
    except TimeoutError:
      yield {}
      continue
    if not read:
      return
    *whole, text = (text + read).split(b"\n")
    yield from map(_parse, whole)


def _receive(peer: socket.socket) -> dict[str, Any]:
  """The next line, or {} if none comes."""
  try:
    with peer.makefile("rb") as file:
      return _parse(file.readline(LONGEST))
  except OSError:
    return {}


def _parse(line: bytes) -> dict[str, Any]:
  try:
    said = json.loads(line)
  except ValueError:
    return {}
  return said if isinstance(said, dict) else {}


def _send(peer: socket.socket, said: dict[str, Any]) -> None:
  peer.sendall(json.dumps(said).encode() + b"\n")


def _send_all(visitors: Iterable[socket.socket], said: dict[str, Any]) -> None:
  for visitor in visitors:
    try:
      _send(visitor, said)
    except OSError:  # It has left, which the next round sees.
      pass


def _has_left(visitor: socket.socket) -> bool:
  try:
    return not visitor.recv(1, socket.MSG_PEEK)
  except BlockingIOError:
    return False
  except OSError:
    return True


def _split(address: str) -> tuple[str, int]:
  host, _, port = address.rpartition(":")
  if not port.isdigit():
    raise ValueError(f"{address!r} is no address; give HOST:PORT")
  return host.strip("[]"), int(port)


def _hosts(numbers: list[int]) -> str:
  """As "host 3", or "hosts 1, 2 and 5 more"."""
  shown = ", ".join(map(str, numbers[:8]))
  more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
  return f"host{'s' if len(numbers) > 1 else ''} {shown}{more}"
