"""Stopping a run between two updates, never within one.

    with interrupt.guard():
      try:
        while ...:
          ...  # Ctrl-C raises Interrupted here, at once,
          with interrupt.deferred():
            ...  # and here only when the block ends: state and files agree.
      except interrupt.Interrupted:
        with interrupt.deferred():
          checkpoint.save(...)
        raise

A second SIGINT or SIGTERM, while the first is still being dealt with, ends the
process at once, even one that is waiting in a library's own code: what was done
since the last checkpoint is lost, and it says so. A second SIGHUP does not: the
shell and the system may both send one when a terminal is closed.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
  """Raised by a signal under `guard`.

  Like KeyboardInterrupt it is no Exception, so that no library swallows it.
  """

  def __init__(self, signum: int = signal.SIGINT):
    super().__init__(signal.Signals(signum).name)
    self.signum = signum


class _State:
  """Signals are the process's own, so there is one of this."""

  guarded = False
  depth = 0  # Of nested `deferred` blocks.
  held = False  # Whoever asks `received` raises, and nobody else.
  received: int | None = None  # The first signal.


def _handle(signum, frame):
  del frame
  if _State.received is not None:
    return  # `_watch` deals with it.
  _State.received = signum
  if _State.held:
    _say("stopping together with the other hosts ...")
  elif _State.depth:
    _say("stopping as soon as this update is saved ...")
  else:
    raise Interrupted(signum)


def _watch(pipe: int) -> None:
  """Reads which signals arrive, and ends the process on the second.

  Python's own handlers must wait for the main thread, which may be in a
  library's code for long.
  """
  stops = 0
  while byte := os.read(pipe, 1):
    stops += byte[0] in (signal.SIGINT, signal.SIGTERM)
    if stops > 1:
      _say(
        "stopped at once, before a checkpoint could be written: the work since "
        "the last one is lost"
      )
      os._exit(128 + byte[0])
  os.close(pipe)


def _say(text: str) -> None:
  with contextlib.suppress(OSError):  # A terminal that is gone.
    os.write(2, f"\n{text}\n".encode())


@contextlib.contextmanager
def guard() -> Iterator[None]:
  """Turns SIGINT, SIGTERM and SIGHUP into `Interrupted`, in the main thread.

  Nested guards are one guard; the old handlers return when it ends. A SIGHUP
  that is ignored, as under nohup, stays so.
  """
  main = threading.current_thread() is threading.main_thread()
  if _State.guarded or not main:
    yield
    return
  old = {signum: signal.getsignal(signum) for signum in SIGNALS}
  if old[signal.SIGHUP] == signal.SIG_IGN:
    del old[signal.SIGHUP]
  _State.guarded, _State.depth, _State.received = True, 0, None
  arrivals, arrived = os.pipe()
  os.set_blocking(arrived, False)
  wakeup = signal.set_wakeup_fd(arrived, warn_on_full_buffer=False)
  threading.Thread(target=_watch, args=(arrivals,), daemon=True).start()
  try:
    for signum in old:
      signal.signal(signum, _handle)
    yield
  finally:
    for signum, handler in old.items():
      signal.signal(signum, handler)
    signal.set_wakeup_fd(wakeup)
    os.close(arrived)
    _State.guarded = False


def give_up() -> None:
  """From here on, nothing is left to save: a signal ends the process."""
  for signum in SIGNALS:
    signal.signal(signum, signal.SIG_DFL)


@contextlib.contextmanager
def held() -> Iterator[None]:
  """A block in which a signal is only noted, until `received` is asked.

  For a job of several hosts, which have to stop at the same step.
  """
  _State.held = True
  try:
    yield
  finally:
    _State.held = False


def received() -> int | None:
  """The first signal that came, if any did."""
  return _State.received


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """A block that is never interrupted; what came meanwhile is raised after it.

  An exception of the block's own goes first. Outside `guard` it does nothing.
  """
  _raise_swallowed()
  before = _State.received  # Read first: from the next line on, it may change.
  _State.depth += 1
  try:
    yield
  finally:
    _State.depth -= 1
  waits = _State.held or _State.depth > 0
  if _State.guarded and not waits and _State.received != before:
    raise Interrupted(_State.received)


def _raise_swallowed():
  """Raises again what was raised where no exception can leave from.

  A signal that arrives inside a destructor or a callback of the garbage
  collector only prints "Exception ignored in". It shows here: a signal was
  received, and nobody is dealing with it.
  """
  free = _State.guarded and not _State.held and _State.depth == 0
  if (
    free
    and _State.received is not None
    and not isinstance(sys.exception(), Interrupted)
  ):
    raise Interrupted(_State.received)
