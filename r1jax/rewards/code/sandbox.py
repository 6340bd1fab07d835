"""Runs untrusted programs in sandboxes, and returns their results.

Each program has a sandbox of its own, made by bubblewrap. It has no network, no
environment, no privileges, no view of other processes, and only the system
calls that `seccomp` allows. It can read the system's files and write to a small
/tmp, which is its working directory, HOME and /dev/shm, and at first holds
nothing but the files of its standard streams. `runner` is the first process
there. Within its `Limits` a program may use

    threads     threads and processes, 32 together; multiprocessing, pipes and
                local sockets work
    memory      1 GiB together, stacks included (the main thread of a Python
                program has about 100 MiB of stack)
    time        wall-clock time for its build and all its tests
    streams     the standard streams, also as /dev/stdin, /dev/fd/0 and so on;
                there is no /proc
    packages    Python's standard library, whose common names need no import
                (see `prelude`), and the packages that the limits name, in
                /packages; GCC's C++17 standard library; Node's modules

Known limits: the kernel is shared with the host; the kernel limits the memory
of each process, but the sum of all is only checked every TICK; memory that the
kernel uses for pipes and empty files is limited by time alone.
"""

import contextlib
import functools
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from r1jax.rewards.code import bubblewrap, values

logger = logging.getLogger(__name__)

KINDS = ("bwrap", "none")
START_SECONDS = 20.0  # Time limit for the start of a sandbox.
TICK = 0.05  # Seconds between two checks of the memory in use.
OVERHEAD_MIB = 64  # Memory of `runner` and bubblewrap themselves.
MAX_INPUT = 2**25  # Bytes.
PATIENCE = 1.0  # Seconds to wait for the end of a killed sandbox.


class Limits(NamedTuple):
  """The resources that a program may use."""

  seconds: float = 4.0  # Wall-clock time in all, and CPU time per process.
  memory_mib: int = 1024  # Memory in all, and address space per process.
  processes: int = 32  # Processes and threads.
  disk_mib: int = 64  # Files in /tmp, without the input.
  output_mib: int = 8  # Standard output.
  packages: tuple[str, ...] = ()  # Packages that Python can import.
  # Whether a program can start no processes or threads, so that its CPU time
  # is all that it uses. It does not hold for builds, and for Node, which needs
  # threads.
  alone: bool = False


class Language(NamedTuple):
  """How programs of a language are built and run; Python needs no command."""

  tags: tuple[str, ...]  # The language's names after the fence of a block.
  file: str = ""
  build: tuple[str, ...] = ()
  command: tuple[str, ...] = ()
  check: tuple[str, ...] = ()  # Whether it can be built, where `build` is not.
  reserved_mib: int = 0  # Address space in addition to the limit.
  processes: int = 0  # Processes and threads in addition to the limit.


LANGUAGES = {
  "python": Language(("python", "py", "python3")),
  "cpp": Language(
    ("cpp", "c++", "cc", "cxx"),
    file="main.cpp",
    build=("g++", "-O2", "-std=c++17", "-o", "main", "main.cpp"),
    command=("./main",),
  ),
  "javascript": Language(
    ("javascript", "js", "node"),
    file="main.js",
    command=("node", "main.js"),
    check=("node", "--check", "main.js"),
    reserved_mib=2048,
    processes=16,
  ),
}


class Ended(Exception):
  """The program has used up its time or memory, or ended its sandbox."""


class Run(NamedTuple):
  """The result of a build or a run."""

  status: int  # The exit status, or minus the number of a signal.
  output: bytes  # Standard output.
  errors: str  # The end of standard error.
  cpu_seconds: float  # Of its processes; those that it left alone may lack.


# Prints each forbidden action that succeeds. Its input names a file of the
# host.
PROBE = """
import mmap, os, signal, socket
def fork():
  for _ in range(64):
    if not os.fork():
      signal.pause()
attempts = {
  "read files": lambda: open(input()),
  "write files": lambda: open("/usr/probe", "w"),
  "use the network": lambda: socket.socket(socket.AF_INET),
  "have all memory": lambda: mmap.mmap(-1, 2**34),
  "start any number of processes": fork,
  "be root": lambda: os.setresuid(0, 0, 0),
}
for what, attempt in attempts.items():
  try:
    attempt()
  except OSError:
    continue
  print(what, end=", ")
"""


@functools.cache
def check(kind: str, packages: tuple[str, ...] = ()) -> None:
  """Raises ValueError unless a sandbox of this kind starts here and is safe.

  Raises it for packages that cannot be imported in the sandbox, too.
  """
  if kind not in KINDS:
    raise ValueError(f"sandbox must be one of {[*KINDS]}, got {kind!r}")
  if kind == "none":
    logger.warning(
      "sandbox='none': the policy's programs run with all of your rights"
    )
  else:
    _probe(kind)
  limits = Limits(seconds=60.0, packages=packages)
  for name in packages:
    _, run = run_cases("python", f"import {name}", [""], kind, limits)
    if run.status:
      raise ValueError(
        f"packages: {name!r} cannot be imported in the sandbox; name its "
        f"dependencies, too: {run.errors.strip()[-300:]}"
      )


def _probe(kind: str) -> None:
  """Raises ValueError if PROBE can do anything that is forbidden."""
  advice = "; set sandbox='none' to run the policy's programs without isolation"
  with tempfile.NamedTemporaryFile() as file:
    os.chmod(file.name, 0o644)  # Only the sandbox may prevent reading it.
    try:
      _, run = run_cases("python", PROBE, [file.name], kind, Limits())
    except (RuntimeError, ValueError, Ended) as error:
      raise ValueError(f"no sandbox here: {error}{advice}") from error
  if run.status or run.output:
    actions = run.output.decode() or run.errors
    raise ValueError(f"the sandbox is not safe, programs can {actions}{advice}")


def run_cases(
  language: str, source: str, inputs: Sequence[str], kind: str, limits: Limits
) -> Iterator[Run]:
  """Yields the result of the build, then of a run on each input.

  Without inputs, a program that needs no build is only checked for its syntax.
  If the build fails, nothing follows it. Raises `Ended` if the program exceeds
  its limits, RuntimeError if the sandbox cannot be started, and ValueError for
  an input of more than MAX_INPUT bytes.
  """
  data = [each.encode("utf-8", "surrogatepass") for each in inputs]
  largest = max(map(len, data), default=0)
  if largest > MAX_INPUT:
    raise ValueError(f"an input of {largest} bytes; at most {MAX_INPUT}")
  settings = LANGUAGES[language]
  program = tool(language)
  if program and not shutil.which(program, path=bubblewrap.ENVIRONMENT["PATH"]):
    raise RuntimeError(f"programs in {language} need {program}: install it")
  limits = limits._replace(
    processes=limits.processes + settings.processes,
    disk_mib=limits.disk_mib + math.ceil(largest / 2**20),
  )
  work = dict(
    source=source,
    file=settings.file,
    build=list(settings.build if inputs else settings.build or settings.check),
    command=list(settings.command),
    count=len(data),
    limit=limits.output_mib * 2**20,
    alone=limits.alone and not settings.processes,
  )
  with _start(work, kind, limits, settings.reserved_mib) as connection:
    yield Run(*connection.receive())
    for each in data:
      connection.send(values.encode(each))
      yield Run(*connection.receive())


def tool(language: str) -> str:
  """Returns the compiler or interpreter of a language; "" for Python."""
  settings = LANGUAGES[language]
  return (settings.build or settings.command or ("",))[0]


class Statement(NamedTuple):
  """A statement of tests in Python."""

  code: bytes  # The code object, marshalled.
  counts: bool  # True for a test, False for setup.
  independent: bool  # True if it does not depend on the program.


class Tests(NamedTuple):
  """Tests of functions, which the program never sees."""

  setup: str  # Python text that runs first: definitions that the tests use.
  names: Mapping[str, str]  # Name in the tests -> name in the program.
  statements: Sequence[Statement]


def run_tests(
  prefix: str, source: str, tests: Tests, kind: str, limits: Limits
) -> Iterator[tuple[int, bool, str, float]]:
  """Yields (number, whether it holds, message, CPU seconds) of statements.

  It does so for each statement that counts as a test, and for others that fail.
  The CPU time is that of the program so far. The program is the prefix, then
  the source; one that is incomplete by itself continues the prefix. Raises as
  `run_cases` does, and ValueError for tests that cannot be run here.
  """
  work = dict(prefix=prefix, source=source, alone=limits.alone)
  with _start(work, kind, limits) as connection:
    connection.send(values.encode(tests._asdict()))
    while (report := connection.receive()) is not None:
      number, holds, message, cpu_seconds = report
      if holds is None:
        raise ValueError(f"these tests cannot be run: {message}")
      yield number, holds, message, cpu_seconds


class _Connection:
  """The connection to the first process of a sandbox.

  Its methods raise `Ended` when the program exceeds its limits.
  """

  def __init__(self, pid: int, connection: socket.socket, memory: int):
    self._pid, self._connection, self._memory = pid, connection, memory
    self.deadline = time.monotonic() + START_SECONDS

  def send(self, *frames: bytes) -> None:
    sized = (len(frame).to_bytes(8, "big") + frame for frame in frames)
    with self._ended_on_errors():
      self._wait()
      self._connection.sendall(b"".join(sized))

  def receive(self) -> Any:
    with self._ended_on_errors():
      return values.decode(values.receive(self._read))

  @contextlib.contextmanager
  def _ended_on_errors(self) -> Iterator[None]:
    try:
      yield
    except TimeoutError:
      raise Ended("out of time") from None
    except (OSError, EOFError, ValueError):
      raise Ended("the process has ended") from None

  def _read(self, size: int) -> bytes:
    while True:
      self._wait(TICK)
      with contextlib.suppress(TimeoutError):
        return self._connection.recv(size)
      if _resident(self._pid) > self._memory:
        raise Ended("out of memory")

  def _wait(self, at_most: float = math.inf) -> None:
    left = self.deadline - time.monotonic()
    if left <= 0:
      raise TimeoutError
    self._connection.settimeout(min(left, at_most))


def _children(pid: int) -> list[int]:
  """Returns the ids of a process's children, from all of its threads."""
  paths = Path(f"/proc/{pid}/task").glob("*/children")
  return [int(child) for path in paths for child in path.read_text().split()]


def _resident(pid: int) -> int:
  """Returns the bytes of memory in use by a process and its descendants."""
  try:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    below = sum(map(_resident, _children(pid)))
  except (OSError, IndexError):
    return 0  # It has ended.
  return pages * os.sysconf("SC_PAGE_SIZE") + below


@contextlib.contextmanager
def _start(
  work: dict, kind: str, limits: Limits, reserved_mib: int = 0
) -> Iterator[_Connection]:
  """Starts a sandbox, sends it its work, and kills it when the block ends."""
  mib = 2**20
  job = dict(
    work=work,
    user=None,
    path=[],
    limits=dict(
      AS=(limits.memory_mib + reserved_mib) * mib,
      CORE=0,
      CPU=int(limits.seconds) + 1,
      FSIZE=limits.disk_mib * mib,
      MSGQUEUE=0,
      NOFILE=256,
      NPROC=limits.processes + 2,  # Plus `runner`, and one of bubblewrap's.
      STACK=None,  # Limited by the memory alone.
    ),
  )
  ours, theirs = socket.socketpair()
  with contextlib.ExitStack() as stack:
    stack.enter_context(ours)
    with theirs:
      if kind == "bwrap":
        if os.geteuid() == 0:  # A unique user, because NPROC counts per user.
          job["user"] = 62000 + threading.get_native_id() % 3000
        job["path"] += [bubblewrap.PACKAGES] if limits.packages else []
        process = stack.enter_context(
          bubblewrap.isolated(theirs, limits.disk_mib, limits.packages)
        )
      elif kind != "none":
        raise ValueError(f"sandbox must be one of {[*KINDS]}, got {kind!r}")
      else:
        home = stack.enter_context(tempfile.TemporaryDirectory())
        paths = bubblewrap.paths(limits.packages)
        job["path"] += sorted({str(path.parent) for path in paths})
        del job["limits"][
          "NPROC"
        ]  # It would count all of the user's processes.
        process = stack.enter_context(bubblewrap.bare(theirs, home))
    stack.callback(_kill, process, kind)
    memory = (limits.memory_mib + OVERHEAD_MIB) * mib
    connection = _Connection(process.pid, ours, memory)
    try:
      connection.send(bubblewrap.modules(), values.encode(job))
      connection.receive()  # Before the program runs: a failure is not its own.
    except Ended as error:
      _kill(process, kind)
      output = process.stderr.read().decode(errors="replace")[-1000:].strip()
      raise RuntimeError(
        f"the sandbox cannot start, {error}: {output}"
      ) from None
    connection.deadline = time.monotonic() + limits.seconds
    yield connection


def _kill(process: subprocess.Popen, kind: str) -> None:
  """Kills a sandbox, and waits until all of its processes have ended."""
  with contextlib.suppress(OSError):
    if kind == "none":
      os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
      # All others end with its first process, for which bubblewrap waits.
      for pid in _children(process.pid) or [process.pid]:
        os.kill(pid, signal.SIGKILL)
  try:
    process.wait(PATIENCE)
  except subprocess.TimeoutExpired:
    process.kill()
    process.wait()
