"""The grader processes. `pool` runs this file by its path.

    pool -- control socket --> server -- fork --> worker <-- socket --> pool

The server imports the graders once and never receives the policy's text. On
request it ends the worker of a slot and forks a new one, which takes
milliseconds. All of these processes end when the pool does. Processes that a
worker has started become children of the server when their parent ends, and
are killed together with the next worker that is ended.
"""

import concurrent.futures
import contextlib
import ctypes
import gc
import json
import math
import os
import pickle
import pkgutil
import resource
import signal
import socket
import sys
import time
import types
from pathlib import Path

# Options of Linux's prctl.
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main(options: str) -> None:
  """Serves until the pool closes its end of the socket that is stdin."""
  options = json.loads(options)
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
  # A terminal or a launcher may tell all processes of a run to stop; the run
  # may then still need its grades, and the pool ends this process.
  for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(signum, signal.SIG_IGN)
  forbid_jax()
  gc.disable()  # Nothing that is loaded here is ever freed.
  load(options["preload"])
  gc.freeze()  # A collection in a worker would copy the pages that it shares.
  control = socket.socket(fileno=0)
  workers = {}  # Process id by slot.
  while True:
    message, fds, *_ = socket.recv_fds(control, 1, 1)
    if not message:
      break
    slot = message[0]
    if slot in workers:
      end(workers.pop(slot))
      end_strays(workers)
    workers[slot] = os.fork()
    if not workers[slot]:
      work(socket.socket(fileno=fds[0]), options["memory"])
    with contextlib.suppress(OSError):
      os.setpgid(workers[slot], workers[slot])
    os.close(fds[0])
  for pid in workers.values():
    end(pid)
  end_strays({})
  os._exit(0)  # Half a second faster than a regular exit.


def load(names: list[str]) -> None:
  """Imports modules in order, and runs functions "module:name" in threads."""
  # reasoning-gym generates some problems with this package, but no scorer needs
  # it. Its import takes half a second, mostly for matplotlib.
  sys.modules["cellpylib"] = types.ModuleType("cellpylib")
  with concurrent.futures.ThreadPoolExecutor() as threads:
    loaded = map(pkgutil.resolve_name, names)
    running = [threads.submit(each) for each in loaded if callable(each)]
  for each in running:
    each.result()


def forbid_jax() -> None:
  """Makes `import jax` fail, because graders must not depend on it."""
  sys.modules["jax"] = None


def end(pid: int) -> None:
  """Kills a worker and its process group, and waits for its end."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(pid, signal.SIGKILL)
  os.waitpid(pid, 0)


def end_strays(workers: dict[int, int]) -> None:
  """Kills processes that workers started outside of their process groups.

  When one is killed, its children become the server's, and are killed too. Only
  on Linux.
  """
  children = Path(f"/proc/self/task/{os.getpid()}/children")
  with contextlib.suppress(OSError):
    while strays := {*map(int, children.read_text().split())} - {
      *workers.values()
    }:
      for pid in strays:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def work(pool: socket.socket, memory: int) -> None:
  """Replies to calls with a line of JSON each, until the pool closes its end.

  Replies are not pickled, because the pool must not trust this process.
  """
  if sys.platform == "linux":  # End together with the server.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
  with contextlib.suppress(OSError):
    os.setpgid(0, 0)
  for kind, most in (resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0):
    with contextlib.suppress(OSError, ValueError):
      resource.setrlimit(kind, (most, most))
  null = os.open(os.devnull, os.O_RDWR)
  for fd in range(3):  # This closes the control socket, too.
    os.dup2(null, fd)
  gc.enable()
  gc.set_threshold(50_000)  # Formulas are many objects with few cycles.
  pool.sendall(b"\n")
  frames = pool.makefile("rb")
  with contextlib.suppress(EOFError, OSError):
    while True:
      calls, cpu_seconds = pickle.load(frames)
      for frame in calls:
        limit_cpu(cpu_seconds)
        pool.sendall(answer(frame) + b"\n")
  os._exit(0)


def limit_cpu(seconds: float) -> None:
  """Lets the kernel kill this process after so much more CPU time."""
  _, hard = resource.getrlimit(resource.RLIMIT_CPU)
  until = math.ceil(time.process_time() + seconds)
  with contextlib.suppress(OSError, ValueError):
    resource.setrlimit(resource.RLIMIT_CPU, (until, hard))


def answer(frame: bytes) -> bytes:
  """Returns the value of a pickled call, or its exception, as JSON."""
  try:
    function, args, kwargs = pickle.loads(frame)
    return json.dumps({"value": function(*args, **kwargs)}).encode()
  except BaseException as error:  # math-verify's timeouts are not Exceptions.
    message = f"{type(error).__name__}: {error}"
    return json.dumps({"error": message[:1000]}).encode()


if __name__ == "__main__":
  main(sys.argv[1])
