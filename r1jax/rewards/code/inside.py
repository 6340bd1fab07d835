"""What a sandbox starts: it gives up its rights, and does the one job it gets.

A program that reads and prints runs here once for each input; the verdict on
what it prints is reached outside. `checker` is for those whose functions are
tested. `bubblewrap` hands both over compiled; they import next to nothing, for
speed.
"""

import builtins
import os
import sys

from r1jax.rewards.code.checker import MAX_MESSAGE, describe, run_tests
from r1jax.rewards.code.usual import provide
from r1jax.rewards.code.values import decode, encode, receive, send

SIGKILL = 9  # Linux's; to import `signal` takes as long as Python's start.
STREAMS = (".stdin", ".stdout", ".stderr")  # /dev/stdin and so on lead to them.
EXCLUSIVE = os.O_CREAT | os.O_EXCL


def open_streams(given: bytes) -> tuple[int, int]:
  """Makes the standard streams of a run; gives the ends to read of 1 and 2.

  They have names, by which programs open them where there is no /proc. What is
  printed goes through a FIFO: to open it once more neither truncates it nor
  starts over, as it would with a file.
  """
  for name in STREAMS:
    try:
      os.unlink(name)
    except OSError:
      pass  # It is the first run.
  file = os.open(STREAMS[0], os.O_WRONLY | EXCLUSIVE, 0o600)
  rest = memoryview(given)
  while rest:
    rest = rest[os.write(file, rest) :]
  os.close(file)
  os.mkfifo(STREAMS[1], 0o600)
  # For reading and writing: so it does not end when a program closes it.
  output = os.open(STREAMS[1], os.O_RDWR | os.O_NONBLOCK)
  return output, os.open(STREAMS[2], os.O_RDWR | EXCLUSIVE, 0o600)


def run(start, hear, limit: int) -> tuple[int, bytes, str]:
  """The exit status, output and last errors of `start` in a new process.

  `start` is to end the process; `hear` gives its input, which no one keeps. Its
  children end with it, and it ends when it has printed more than `limit` bytes.
  """
  import select

  output, errors = open_streams(hear())
  pid = os.fork()
  if not pid:
    os.setsid()
    flags = os.O_RDONLY, os.O_WRONLY, os.O_WRONLY | os.O_APPEND
    files = [os.open(*each) for each in zip(STREAMS, flags)]
    for fd, file in enumerate(files):
      os.dup2(file, fd)
    os.closerange(3, 256)
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
  _, status = os.waitpid(pid, 0)
  before = max(os.fstat(errors).st_size - MAX_MESSAGE, 0)
  message = os.pread(errors, MAX_MESSAGE, before).decode(errors="replace")
  for fd in (end, output, errors):
    os.close(fd)
  if size > limit:
    return -SIGKILL, b"", f"more than {limit} bytes printed"
  return os.waitstatus_to_exitcode(status), b"".join(pieces), message


def drain(fd: int, pieces: list, limit: int) -> int:
  """Reads what is there, at most `limit` bytes; gives their number."""
  size = 0
  while size < limit:
    try:
      pieces.append(os.read(fd, min(limit - size, 2**20)))
    except BlockingIOError:
      break
    size += len(pieces[-1])
  return size


def interpret(code) -> None:
  """Runs a Python program; the process ends as the interpreter does."""
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
) -> None:
  """Reports on the build, then on each run; no command stands for Python.

  The inputs come in one by one, each when it is needed.
  """
  built = (0, b"", "")
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
      built = (1, b"", describe(error))
  send(control, encode(built))
  if not built[0]:
    hear = lambda: decode(receive(read))
    for _ in range(count):
      send(control, encode(run(start, hear, limit)))


# Where it starts.


def confine(limits: dict, user: int | None) -> None:
  """Gives up what the program must not have, for good."""
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
  """Empties the sets of capabilities: another user still has inheritable ones.

  By what `ctypes` stands on, which loads in a fifth of its time.
  """
  import _ctypes

  capset = _ctypes.dlsym(_ctypes.dlopen(None, 0), "capset")
  header = (0x20080522).to_bytes(4, sys.byteorder) + bytes(4)  # Version, self.
  if _ctypes.call_function(capset, (header, bytes(24))):
    raise OSError("capabilities cannot be dropped")


def main() -> None:
  """Does the one job that comes in through stdin."""
  control = os.dup(0)
  null = os.open(os.devnull, os.O_RDWR)
  for fd in range(3):
    os.dup2(null, fd)
  read = lambda size: os.read(control, size)
  job = decode(receive(read))
  confine(job["limits"], job["user"])
  sys.path += job["path"]
  sys.set_int_max_str_digits(0)
  builtins.exit = builtins.quit = sys.exit  # As `site` has them, half as slow.
  send(control, encode("ready"))
  do = run_cases if "count" in job["work"] else run_tests
  do(control, read, **job["work"])
  read(1)  # To be ended from outside is to be ended whole.


if __name__ == "__main__":
  main()
