"""A pool of grader processes, each of which may be killed at any moment.

    with GraderPool(num_workers=2, timeout=5.0) as pool:
      grading = pool.submit([Call(reward, (example, completion)), ...])
      for index, value in grading: ...  # In the order in which they finish.

The time limit is enforced here, outside of the process that may hang. `worker`
is the code of the grader processes.
"""

import json
import logging
import os
import pickle
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from r1jax.rewards import accuracy
from r1jax.rewards.pool import worker
from r1jax.text import Completion, Example

logger = logging.getLogger(__name__)

START_TIMEOUT = 120.0  # Seconds within which the graders must be imported.
BATCH = 16  # Calls per message to a worker.
MAX_LINE = 2**20  # Bytes of a worker's reply.


# What is loaded before workers are forked; see `worker.load`.
PRELOAD = (
  "r1jax.rewards.language:load",
  "math_verify",
  "reasoning_gym",
  "r1jax.rewards.maths.verifier:warm",
)


class Call(NamedTuple):
  """A function and its arguments, all of which are pickled."""

  function: Callable[..., float | str | None]
  args: tuple = ()
  kwargs: Mapping[str, Any] = {}


def _canary(answer: str) -> Call:
  """Returns a call that grades `answer` against 1/2."""
  example = Example("", r"\frac{1}{2}", "math")
  text = rf"<think></think><answer>\boxed{{{answer}}}</answer>"
  return Call(accuracy.reward, (example, Completion(text)))


# Calls and their known values, which every slot computes first. A broken grader
# mostly returns 0 for everything, which no curve would show.
CANARIES = ((_canary(r"\sqrt{1/4}"), 1.0), (_canary(r"\sqrt{1/5}"), 0.0))


class Grading:
  """The results of calls that a pool computes; read once, by one thread."""

  def __init__(self, size: int):
    self.counts = {"timeouts": 0, "crashes": 0}  # Of the values read so far.
    self._size = size
    self._finished: queue.SimpleQueue = queue.SimpleQueue()

  def __iter__(self) -> Iterator[tuple[int, Any]]:
    """Yields (index, value) as calls finish; failed calls have the value None.

    Raises RuntimeError if the pool breaks down or is closed.
    """
    for _ in range(self._size):
      index, outcome = self._finished.get()
      if isinstance(outcome, Exception):
        raise RuntimeError("the grader pool is not working") from outcome
      if failure := outcome.get("failure"):
        if "error" in outcome and not self.counts["crashes"]:
          logger.warning("a grader raised %s", outcome["error"])
        self.counts[failure] += 1
      yield index, outcome.get("value")

  def values(self) -> list:
    """Returns all values in the order of the calls, after waiting for them."""
    values = dict(self)
    return [values[i] for i in range(self._size)]


class _Job(NamedTuple):
  """Pickled calls that one worker computes one after the other."""

  grading: Grading
  indices: Sequence[int]
  frames: Sequence[bytes]


class GraderPool:
  """Worker processes that compute calls within limits of time and memory.

  If a call takes longer than `timeout` seconds, or uses more than `cpu_seconds`
  of CPU time, its value is None and counts in `timeouts`; its worker, with all
  processes that this has started, is killed and replaced. If a call raises an
  exception or ends its process, its value is None and counts in `crashes`.
  Other calls are not affected, except that they wait for the worker. Any thread
  may use a pool. The constructor does not wait for the workers to start; `warm`
  does.

  Args:
    num_workers: from 1 to 256; twice the number of cores if many calls hang.
    timeout: seconds of wall-clock time per call.
    cpu_seconds: seconds of CPU time per call, rounded up; None for `timeout`.
    memory_gib: address space per worker.
    preload: modules, and functions "module:name" to run; see `worker.load`.
    canaries: calls and their known values, which every slot computes first.
  """

  def __init__(
    self,
    *,
    num_workers: int,
    timeout: float,
    cpu_seconds: float | None = None,
    memory_gib: float = 4.0,
    preload: Sequence[str] = PRELOAD,
    canaries: Sequence[tuple[Call, float]] = CANARIES,
  ):
    if not 1 <= num_workers <= 256:
      raise ValueError(f"num_workers must be 1 to 256, got {num_workers}")
    memory = int(memory_gib * 2**30)
    self._options = dict(preload=[*preload], memory=memory)
    self._limits = timeout, timeout if cpu_seconds is None else cpu_seconds
    self._canaries = canaries
    self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
    self._lock = threading.Lock()
    self._closed = False
    self._launch()
    self._ready = [Future() for _ in range(num_workers)]
    self._threads = [
      threading.Thread(target=self._run_slot, args=(slot,), daemon=True)
      for slot in range(num_workers)
    ]
    for thread in self._threads:
      thread.start()

  def submit(self, calls: Sequence[Call]) -> Grading:
    """Starts the calls, and returns without waiting for them."""
    frames = [pickle.dumps(tuple(call)) for call in calls]
    grading = Grading(len(frames))
    with self._lock:
      if self._closed:
        raise RuntimeError("the grader pool is closed")
      for start in range(0, len(frames), BATCH):
        batch = frames[start : start + BATCH]
        indices = range(start, start + len(batch))
        self._jobs.put(_Job(grading, indices, batch))
    return grading

  def map(self, calls: Sequence[Call]) -> list:
    """Returns the values of the calls; failed calls have the value None."""
    return self.submit(calls).values()

  def warm(self) -> None:
    """Waits until all workers have started and passed the canaries.

    Raises RuntimeError if a worker does not start, or fails a canary.
    """
    for ready in self._ready:
      ready.result()

  def close(self) -> None:
    """Kills all processes, even in the midst of a call, and waits for them."""
    with self._lock:
      self._closed = True
      self._control.close()  # Then the server ends its workers and itself.
    for _ in self._threads:
      self._jobs.put(None)
    for thread in self._threads:
      thread.join()
    self._server.wait()
    self._log.close()
    self._fail_jobs(RuntimeError("the grader pool was closed"))

  def __enter__(self) -> "GraderPool":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _run_slot(self, slot: int) -> None:
    """Runs the workers of one slot; the target of the slot's thread."""
    try:
      while self._run_worker(slot):
        pass
    except Exception as error:
      if not self._ready[slot].done():
        self._ready[slot].set_exception(error)
      self._fail_jobs(error, until_closed=True)

  def _run_worker(self, slot: int) -> bool:
    """Starts a worker, and gives it jobs until it is lost or the pool closes.

    Returns True if the worker is lost and the slot needs another one.
    """
    with self._fork(slot) as connection:
      if not self._ready[slot].done():
        self._check_canaries(connection)
        self._ready[slot].set_result(None)
      for job in iter(self._jobs.get, None):
        lost, done = False, 0
        for outcome in self._exchange(connection, job.frames, self._limits):
          lost = "failure" in outcome and "error" not in outcome
          job.grading._finished.put((job.indices[done], outcome))
          done += 1
        if done < len(job.frames):
          rest = _Job(job.grading, job.indices[done:], job.frames[done:])
          self._jobs.put(rest)
        if lost:
          return True
    return False

  def _exchange(
    self,
    connection: socket.socket,
    frames: Sequence[bytes],
    limits: tuple[float, float],
  ) -> Iterator[dict]:
    """Yields the outcome of each frame, up to one that ends the worker."""
    timeout, cpu_seconds = limits
    connection.settimeout(timeout)
    began = time.monotonic()
    try:
      with connection.makefile("rb") as lines:
        connection.sendall(pickle.dumps((list(frames), cpu_seconds)))
        for _ in frames:
          began = time.monotonic()
          line = lines.readline(MAX_LINE)
          if not line.endswith(b"\n"):
            raise ConnectionError("the worker has ended")
          outcome = json.loads(line)
          if "error" in outcome:
            outcome["failure"] = "crashes"
          yield outcome
    except TimeoutError:
      yield {"failure": "timeouts"}
    except (OSError, ValueError):
      spent = time.monotonic() - began >= cpu_seconds
      yield {"failure": "timeouts" if spent else "crashes"}

  def _check_canaries(self, connection: socket.socket) -> None:
    """Raises RuntimeError unless a worker computes the canaries' values."""
    frames = [pickle.dumps(tuple(call)) for call, _ in self._canaries]
    expected = [value for _, value in self._canaries]
    outcomes = [*self._exchange(connection, frames, (START_TIMEOUT,) * 2)]
    values = [outcome.get("value") for outcome in outcomes]
    if values != expected:
      raise RuntimeError(
        f"the graders do not work on this machine: they graded known answers "
        f"{values} ({outcomes}), not {expected}"
      )

  def _launch(self) -> None:
    """Starts the server process; only while holding the lock, or at first."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    one_thread = dict(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    self._control, theirs = socket.socketpair()
    self._log = tempfile.TemporaryFile()
    with theirs:
      self._server = subprocess.Popen(
        # -P: this package's `math` and `random` are not the standard library's.
        [sys.executable, "-P", worker.__file__, json.dumps(self._options)],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=self._log,
        start_new_session=True,
        # sympy's results depend on the order of sets, and so on hashes.
        env=os.environ | one_thread | dict(PYTHONPATH=path, PYTHONHASHSEED="0"),
      )

  def _fork(self, slot: int) -> socket.socket:
    """Returns a connection to a new worker; ends the slot's old worker."""
    ours, theirs = socket.socketpair()
    try:
      with theirs, self._lock:
        if self._closed:
          raise RuntimeError("the grader pool is closed")
        if self._server.poll() is not None and self._ready[slot].done():
          self._control.close()
          self._log.close()
          self._launch()
        socket.send_fds(self._control, [bytes([slot])], [theirs.fileno()])
      ours.settimeout(START_TIMEOUT)
      if ours.recv(1) != b"\n":
        raise RuntimeError(f"graders cannot start: {self._server_log()}")
    except BaseException:
      ours.close()
      raise
    return ours

  def _server_log(self) -> str:
    """Returns the end of the server's standard error."""
    with self._lock:
      if self._closed:
        return "the pool was closed"
      self._log.seek(0)
      return self._log.read().decode(errors="replace")[-2000:]

  def _fail_jobs(self, error: Exception, until_closed: bool = False) -> None:
    """Fails waiting jobs with `error`; with `until_closed`, later ones too."""
    while until_closed or not self._jobs.empty():
      job = self._jobs.get()
      if job is None:
        return
      for index in job.indices:
        job.grading._finished.put((index, error))
