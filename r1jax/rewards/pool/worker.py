"""The process that grades. `grader` runs this file by its path.

    pool -- control socket --> server -- fork --> worker <-- socket --> pool

The server imports the graders once and never sees what a policy wrote. It forks
a worker when it is asked to, and ends the one that had the slot before, so that
a replaced worker is back in milliseconds. When the pool is gone, so are they,
and whatever they have started: it becomes the server's own child at the latest
when its parent ends, and dies with the next worker that is ended.
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
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  shut_out_jax()
  gc.disable()  # Nothing that is loaded here is ever garbage.
  load(options["preload"])
  gc.freeze()  # Workers share its memory as long as they do not look at it.
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
  os._exit(0)  # Half a second faster than a tidy end.


def load(names: list[str]) -> None:
  """Imports modules, in order; runs functions, "module:name", beside that."""
  # What reasoning-gym makes some problems with. It takes half a second to
  # import, most of it matplotlib, and no scorer needs it.
  sys.modules["cellpylib"] = types.ModuleType("cellpylib")
  with concurrent.futures.ThreadPoolExecutor() as threads:
    found = map(pkgutil.resolve_name, names)
    started = [threads.submit(each) for each in found if callable(each)]
  for run in started:
    run.result()


def shut_out_jax() -> None:
  """Makes `import jax` fail: a grader does without it."""
  sys.modules["jax"] = None


def end(pid: int) -> None:
  """Kills a worker and its process group; waits until it is gone."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(pid, signal.SIGKILL)
  os.waitpid(pid, 0)


def end_strays(workers: dict[int, int]) -> None:
  """Kills what workers had started outside of their process groups.

  The children of one that is killed come here in turn. Linux only.
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
  """Answers calls, one line of JSON each, until the pool closes its end.

  What comes back is never pickled: the pool must not trust this process.
  """
  if sys.platform == "linux":  # Not to outlive the server.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
  with contextlib.suppress(OSError):
    os.setpgid(0, 0)
  for kind, most in (resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0):
    with contextlib.suppress(OSError, ValueError):
      resource.setrlimit(kind, (most, most))
  null = os.open(os.devnull, os.O_RDWR)
  for fd in range(3):  # The control socket among them.
    os.dup2(null, fd)
  gc.enable()
  gc.set_threshold(50_000)  # Formulas are many small objects, few in cycles.
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
  """Has the kernel end this process when it has used that much more."""
  _, hard = resource.getrlimit(resource.RLIMIT_CPU)
  until = math.ceil(time.process_time() + seconds)
  with contextlib.suppress(OSError, ValueError):
    resource.setrlimit(resource.RLIMIT_CPU, (until, hard))


def answer(frame: bytes) -> bytes:
  """The value of a pickled call, or the exception that it raised."""
  try:
    function, args, kwargs = pickle.loads(frame)
    return json.dumps({"value": function(*args, **kwargs)}).encode()
  except BaseException as error:  # math-verify's timeouts are no Exception.
    message = f"{type(error).__name__}: {error}"
    return json.dumps({"error": message[:1000]}).encode()


if __name__ == "__main__":
  main(sys.argv[1])
