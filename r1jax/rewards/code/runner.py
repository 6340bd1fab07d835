"""The first process in a sandbox: drops its privileges and runs one job.

A program that reads standard input and prints runs here once per input; its
output is compared outside of the sandbox. `checker` tests the functions of a
program. `bubblewrap` sends both modules to the sandbox in compiled form. They
import little, because they are loaded for each program.
"""

import builtins
import os
import sys

from r1jax.rewards.code.checker import (
  MAX_MESSAGE,
  describe,
  forbid_processes,
  run_tests,
)
from r1jax.rewards.code.prelude import provide
from r1jax.rewards.code.values import decode, encode, receive, send

SIGKILL = 9  # Linux's; to import `signal` takes as long as Python's start.
STREAMS = (".stdin", ".stdout", ".stderr")  # /dev/stdin etc. link to them.
EXCLUSIVE = os.O_CREAT | os.O_EXCL


def open_streams(stdin: bytes) -> tuple[int, int]:
  """Makes the standard streams of a run; returns readers of output and errors.

  The streams have names, so that programs can open them without /proc. Standard
  output is a FIFO: opening it again does not truncate it, as with a file.
  """
  for name in STREAMS:
    try:
      os.unlink(name)
    except OSError:
      pass  # It is the first run.
  file = os.open(STREAMS[0], os.O_WRONLY | EXCLUSIVE, 0o600)
  rest = memoryview(stdin)
  while rest:
    rest = rest[os.write(file, rest) :]
  os.close(file)
  os.mkfifo(STREAMS[1], 0o600)
  # Opened for writing too, so that it does not end when a program closes it.
  output = os.open(STREAMS[1], os.O_RDWR | os.O_NONBLOCK)
  return output, os.open(STREAMS[2], os.O_RDWR | EXCLUSIVE, 0o600)


def run(
  start, receive_input, limit: int, alone: bool = False
) -> tuple[int, bytes, str, float]:
  """Returns status, output, last errors and CPU seconds of a new process.

  Args:
    start: a function that does not return.
    receive_input: returns the bytes of standard input.
    limit: the process is killed when it has printed more bytes than this.
    alone: whether it can start no processes or threads.

  Its child processes are killed when it ends. The CPU time is that of the
  process and of those for which it has waited.
  """
  import select

  output, errors = open_streams(receive_input())
  pid = os.fork()
  if not pid:
    os.setsid()
    flags = os.O_RDONLY, os.O_WRONLY, os.O_WRONLY | os.O_APPEND
    files = [os.open(*each) for each in zip(STREAMS, flags)]
    for fd, file in enumerate(files):
      os.dup2(file, fd)
    os.closerange(3, 256)
    if alone:
      forbid_processes()
    start()
  end = os.pidfd_open(pid)
  poll = select.poll()
  for fd in (end, output):
    poll.register(fd, select.POLLIN)
  pieces, size, ended = [], 0, False
  while size <= limit and not ended:
    ended = end in dict(poll.poll())
    size += drain(output, pieces, limit + 1 - size)
  try:
    os.killpg(pid, SIGKILL)
  except OSError:
    pass  # All of them have ended.
  _, status, usage = os.wait4(pid, 0)
  cpu = usage.ru_utime + usage.ru_stime
  before = max(os.fstat(errors).st_size - MAX_MESSAGE, 0)
  message = os.pread(errors, MAX_MESSAGE, before).decode(errors="replace")
  for fd in (end, output, errors):
    os.close(fd)
  if size > limit:
    return -SIGKILL, b"", f"more than {limit} bytes printed", cpu
  return os.waitstatus_to_exitcode(status), b"".join(pieces), message, cpu


def drain(fd: int, pieces: list, limit: int) -> int:
  """Reads what is available, at most `limit` bytes; returns their number."""
  size = 0
  while size < limit:
    try:
      pieces.append(os.read(fd, min(limit - size, 2**20)))
    except BlockingIOError:
      break
    size += len(pieces[-1])
  return size


def interpret(code) -> None:
  """Runs a Python program, and exits as the interpreter does."""
  main = sys.modules["__main__"] = type(sys)("__main__")
  sys.argv = ["program"]
  provide(code, main.__dict__)
  exec(code, main.__dict__)
  sys.exit()


def run_cases(
  control: int,
  read,
  source: str,
  file: str,
  build: list,
  command: list,
  count: int,
  limit: int,
  alone: bool,
) -> None:
  """Sends the result of the build, then of a run on each input.

  An empty command means Python. Inputs are received one by one, when needed.
  """
  built = (0, b"", "", 0.0)
  if command:
    start = lambda: os.execvp(command[0], command)
    with open(file, "wb") as stream:
      stream.write(source.encode("utf-8", "surrogatepass"))
    if build:
      built = run(lambda: os.execvp(build[0], build), bytes, limit)
  else:
    start = lambda: interpret(code)
    try:
      code = compile(source, "program", "exec")
    except Exception as error:
      built = (1, b"", describe(error), 0.0)
  send(control, encode(built))
  if not built[0]:
    receive_input = lambda: decode(receive(read))
    for _ in range(count):
      send(control, encode(run(start, receive_input, limit, alone)))


# The entry point.


def confine(limits: dict, user: int | None) -> None:
  """Drops privileges and sets limits, for this process and its children."""
  import resource

  if user is not None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    drop_capabilities()
  for name, value in limits.items():
    kind = getattr(resource, "RLIMIT_" + name)
    _, hard = resource.getrlimit(kind)
    if value is None:
      value = hard
    elif hard != resource.RLIM_INFINITY:
      value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def drop_capabilities() -> None:
  """Empties the sets of capabilities, of which setuid keeps the inheritable.

  It uses `_ctypes`, which loads in a fifth of the time of `ctypes`.
  """
  import _ctypes

  capset = _ctypes.dlsym(_ctypes.dlopen(None, 0), "capset")
  header = (0x20080522).to_bytes(4, sys.byteorder) + bytes(4)  # Version, self.
  if _ctypes.call_function(capset, (header, bytes(24))):
    raise OSError("capabilities cannot be dropped")


def main() -> None:
  """Runs the job that is received through stdin."""
  control = os.dup(0)
  null = os.open(os.devnull, os.O_RDWR)
  for fd in range(3):
    os.dup2(null, fd)
  read = lambda size: os.read(control, size)
  job = decode(receive(read))
  confine(job["limits"], job["user"])
  sys.path += job["path"]
  sys.set_int_max_str_digits(0)
  builtins.exit = builtins.quit = sys.exit  # As `site` does, which is slow.
  send(control, encode("ready"))
  work = run_cases if "count" in job["work"] else run_tests
  work(control, read, **job["work"])
  read(1)  # Wait to be killed, together with all other processes.


if __name__ == "__main__":
  main()
