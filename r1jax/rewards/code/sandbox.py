"""Runs a program that nobody trusts, and hands back what it computed.

Each program gets a sandbox of its own, by bubblewrap: no network, no files but
the system's to read and a small directory to write (/tmp, where it starts, and
which is HOME and /dev/shm too; only the files of its standard streams are
there), no environment, no sight of other processes, no rights, and only the
system calls that `seccomp` allows. `inside` is what runs there. Within its
`Limits` it may use

    threads     and processes, 32 together; multiprocessing, pipes and local
                sockets work
    memory      1 GiB for all together; the stack is a part of it (a Python
                program's main thread has about 100 MiB)
    time        of wall clock, for its build and all its tests
    streams     standard ones, also as /dev/stdin, /dev/fd/0 and so on; there is
                no /proc
    packages    Python's standard library, whose usual names need no import, and
                the packages that the limits name, which stand in /packages.
                C++17 has GCC's standard library, JavaScript Node's modules

Limits that remain: the kernel is shared; memory is limited for each process by
the kernel, for all together only by a look at it every TICK; and what the
kernel keeps itself for pipes and empty files is limited by time alone.
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
START_SECONDS = 20.0  # To set a sandbox up, on a busy machine.
TICK = 0.05  # Seconds between two looks at the memory in use.
OVERHEAD_MIB = 64  # Of `inside` and bubblewrap, beside what a program uses.
MAX_INPUT = 2**25  # Bytes.
PATIENCE = 1.0  # Seconds until a sandbox that does not end is left behind.


class Limits(NamedTuple):
  """What a program may use."""

  seconds: float = 4.0  # Of wall clock, for all; of CPU, per process.
  memory_mib: int = 1024  # In use, of all; of address space, per process.
  processes: int = 32  # Threads count too.
  disk_mib: int = 64  # Beside the input.
  output_mib: int = 8  # That it prints.
  packages: tuple[str, ...] = ()  # That Python can import.


class Language(NamedTuple):
  """How programs of a language are built and run; Python needs neither."""

  tags: tuple[str, ...]  # Of fenced blocks.
  file: str = ""
  build: tuple[str, ...] = ()
  command: tuple[str, ...] = ()
  reserved_mib: int = 0  # Of address space, on top of the limit.
  processes: int = 0  # On top of the limit.


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
    reserved_mib=2048,
    processes=16,
  ),
}


class Ended(Exception):
  """The program has used up its time, or brought its sandbox down."""


class Run(NamedTuple):
  """How a build or a run ended."""

  status: int  # The exit status; minus the number of a signal.
  output: bytes
  errors: str  # The end of it.


# Prints what a sandbox must not let it do; its input names a file of the host.
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
  """Raises ValueError unless a sandbox of this kind can be had, and holds.

  So it does for packages that cannot be imported there.
  """
  if kind not in KINDS:
    raise ValueError(f"sandbox must be one of {[*KINDS]}, got {kind!r}")
  if kind == "none":
    logger.warning("sandbox='none': the policy's programs may do all you may")
  else:
    _probe(kind)
  limits = Limits(seconds=60.0, packages=packages)
  for name in packages:
    _, run = run_cases("python", f"import {name}", [""], kind, limits)
    if run.status:
      raise ValueError(
        f"packages: {name!r} cannot be imported in the sandbox; name what it "
        f"needs, too: {run.errors.strip()[-300:]}"
      )


def _probe(kind: str) -> None:
  """Raises ValueError unless the sandbox keeps PROBE in."""
  advice = "; say sandbox='none' to run the policy's programs without isolation"
  with tempfile.NamedTemporaryFile() as file:
    os.chmod(file.name, 0o644)  # Only the sandbox is in the way of reading it.
    try:
      _, run = run_cases("python", PROBE, [file.name], kind, Limits())
    except (RuntimeError, ValueError, Ended) as error:
      raise ValueError(f"no sandbox here: {error}{advice}") from error
  if run.status or run.output:
    did = run.output.decode() or run.errors
    raise ValueError(f"the sandbox does not hold, programs can {did}{advice}")


def run_cases(
  language: str, source: str, inputs: Sequence[str], kind: str, limits: Limits
) -> Iterator[Run]:
  """Yields how the program was built, then how it ran on each input.

  Ends early if it cannot be built. Raises `Ended`, RuntimeError if the sandbox
  cannot be started, and ValueError for an input that is too large for it.
  """
  data = [each.encode("utf-8", "surrogatepass") for each in inputs]
  largest = max(map(len, data), default=0)
  if largest > MAX_INPUT:
    raise ValueError(f"an input of {largest} bytes; at most {MAX_INPUT}")
  how = LANGUAGES[language]
  program = tool(language)
  if program and not shutil.which(program, path=bubblewrap.ENVIRONMENT["PATH"]):
    raise RuntimeError(f"programs in {language} need {program}: install it")
  limits = limits._replace(
    processes=limits.processes + how.processes,
    disk_mib=limits.disk_mib + math.ceil(largest / 2**20),
  )
  work = dict(
    source=source,
    file=how.file,
    build=list(how.build),
    command=list(how.command),
    count=len(data),
    limit=limits.output_mib * 2**20,
  )
  with _start(work, kind, limits, how.reserved_mib) as box:
    yield Run(*box.receive())
    for each in data:
      box.send(values.encode(each))
      yield Run(*box.receive())


def tool(language: str) -> str:
  """The program that has to be installed for a language; "" for Python."""
  how = LANGUAGES[language]
  return (how.build or how.command or ("",))[0]


class Statement(NamedTuple):
  """A statement of tests in Python."""

  code: bytes  # Marshalled.
  counts: bool  # True for a test, False for what only prepares one.
  independent: bool  # True if nothing of the program is in it.


class Tests(NamedTuple):
  """Tests of functions, which stay out of the program's sight."""

  setup: str  # Python, run first: definitions that the tests use.
  names: Mapping[str, str]  # What the tests use of the program, as it names it.
  statements: Sequence[Statement]


def run_tests(
  prefix: str, source: str, tests: Tests, kind: str, limits: Limits
) -> Iterator[tuple[int, bool, str]]:
  """Yields the number of a statement, whether it holds, and why not.

  It does so for all that count, and for others that fail. The program is the
  source alone, after the prefix, or the prefix continued. Raises as `run_cases`
  does, and ValueError for tests that cannot be run here.
  """
  with _start(dict(prefix=prefix, source=source), kind, limits) as box:
    box.send(values.encode(tests._asdict()))
    while (report := box.receive()) is not None:
      number, holds, message = report
      if holds is None:
        raise ValueError(f"these tests cannot be run: {message}")
      yield number, holds, message


class _Box:
  """The outer side of a sandbox."""

  def __init__(self, pid: int, connection: socket.socket, memory: int):
    self._pid, self._connection, self._memory = pid, connection, memory
    self.deadline = time.monotonic() + START_SECONDS

  def send(self, *frames: bytes) -> None:
    sized = (len(frame).to_bytes(8, "big") + frame for frame in frames)
    with self._telling_why():
      self._wait()
      self._connection.sendall(b"".join(sized))

  def receive(self) -> Any:
    with self._telling_why():
      return values.decode(values.receive(self._read))

  @contextlib.contextmanager
  def _telling_why(self) -> Iterator[None]:
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
  """The processes that one has started, in any of its threads."""
  paths = Path(f"/proc/{pid}/task").glob("*/children")
  return [int(child) for path in paths for child in path.read_text().split()]


def _resident(pid: int) -> int:
  """Bytes of memory in use by a process, and by all below it."""
  try:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    below = sum(map(_resident, _children(pid)))
  except (OSError, IndexError):
    return 0  # It has ended.
  return pages * os.sysconf("SC_PAGE_SIZE") + below


@contextlib.contextmanager
def _start(
  work: dict, kind: str, limits: Limits, reserved_mib: int = 0
) -> Iterator[_Box]:
  """A sandbox that has been given its work; gone when the block ends."""
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
      NPROC=limits.processes + 2,  # `inside`, and a process of bubblewrap's.
      STACK=None,  # As much as there is memory.
    ),
  )
  ours, theirs = socket.socketpair()
  with contextlib.ExitStack() as stack:
    stack.enter_context(ours)
    with theirs:
      if kind == "bwrap":
        if os.geteuid() == 0:  # A user that nobody else is, to be counted.
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
        del job["limits"]["NPROC"]  # It counts all that the user runs.
        process = stack.enter_context(bubblewrap.bare(theirs, home))
    stack.callback(_kill, process, kind)
    memory = (limits.memory_mib + OVERHEAD_MIB) * mib
    box = _Box(process.pid, ours, memory)
    try:
      box.send(bubblewrap.modules(), values.encode(job))
      box.receive()  # The program has not begun: what fails here, we have done.
    except Ended as error:
      _kill(process, kind)
      words = process.stderr.read().decode(errors="replace")[-1000:].strip()
      raise RuntimeError(
        f"the sandbox cannot start, {error}: {words}"
      ) from None
    box.deadline = time.monotonic() + limits.seconds
    yield box


def _kill(process: subprocess.Popen, kind: str) -> None:
  """Ends the sandbox, and waits until all that ran there is gone."""
  with contextlib.suppress(OSError):
    if kind == "none":
      os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
      # Its first process takes all others along, and bubblewrap waits for it.
      for pid in _children(process.pid) or [process.pid]:
        os.kill(pid, signal.SIGKILL)
  try:
    process.wait(PATIENCE)
  except subprocess.TimeoutExpired:
    process.kill()
    process.wait()
