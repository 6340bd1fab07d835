"""Signals: a run is interrupted between two updates, never within one.

    with interrupt.guard():
      try:
        while ...:
          ...  # Here, Ctrl-C raises Interrupted immediately.
          with interrupt.deferred():
            ...  # Here, it raises when the block ends: state and files agree.
      except interrupt.Interrupted:
        with interrupt.deferred():
          checkpoint.save(...)
        raise

A second SIGINT or SIGTERM, before the first has been handled, ends the process
immediately, even while it waits in C++ code. Work since the last checkpoint is
lost, and a message says so. A second SIGHUP is ignored, because the shell and
the system may both send one when a terminal is closed.
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

  Like KeyboardInterrupt, it is not an Exception, so libraries do not catch it.
  """

  def __init__(self, signum: int = signal.SIGINT):
    super().__init__(signal.Signals(signum).name)
    self.signum = signum


class _State:
  """State of the process; signals are global, so it is a singleton."""

  guarded = False
  depth = 0  # The number of nested `deferred` blocks.
  only_recorded = False  # See `only_recorded`.
  received: int | None = None  # The first signal.


def _handle(signum, frame):
  del frame
  if _State.received is not None:
    return  # `_watch` handles it.
  _State.received = signum
  if _State.only_recorded:
    _log("stopping together with the other hosts ...")
  elif _State.depth:
    _log("stopping as soon as this update is saved ...")
  else:
    raise Interrupted(signum)


def _watch(pipe: int) -> None:
  """Reads the arriving signals, and ends the process on the second stop.

  Python's handlers run in the main thread only, which may be in C++ code for a
  long time; this runs in a thread of its own.
  """
  stops = 0
  while byte := os.read(pipe, 1):
    stops += byte[0] in (signal.SIGINT, signal.SIGTERM)
    if stops > 1:
      _log(
        "stopped immediately, before a checkpoint could be written: the work "
        "since the last one is lost"
      )
      os._exit(128 + byte[0])
  os.close(pipe)


def _log(text: str) -> None:
  with contextlib.suppress(OSError):  # The terminal may be closed.
    os.write(2, f"\n{text}\n".encode())


@contextlib.contextmanager
def guard() -> Iterator[None]:
  """A block in which SIGINT, SIGTERM and SIGHUP raise `Interrupted`.

  They raise it in the main thread. Nested guards act as one. The previous
  handlers are restored at the end. If SIGHUP was ignored, as under nohup, it is
  still ignored.
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


def restore_default_handlers() -> None:
  """From here on, a signal ends the process; use it when all is saved."""
  for signum in SIGNALS:
    signal.signal(signum, signal.SIG_DFL)


@contextlib.contextmanager
def only_recorded() -> Iterator[None]:
  """A block in which signals are recorded and never raise.

  It is for jobs of several hosts, which poll `received` and must all stop at
  the same step.
  """
  _State.only_recorded = True
  try:
    yield
  finally:
    _State.only_recorded = False


def received() -> int | None:
  """The first signal that was received, or None."""
  return _State.received


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """A block that is never interrupted; a signal raises when the block ends.

  An exception raised by the block takes precedence. Outside `guard` it does
  nothing.
  """
  _raise_swallowed()
  before = _State.received  # Read before `depth` changes; a signal may follow.
  _State.depth += 1
  try:
    yield
  finally:
    _State.depth -= 1
  waits = _State.only_recorded or _State.depth > 0
  if _State.guarded and not waits and _State.received != before:
    raise Interrupted(_State.received)


def _raise_swallowed():
  """Raises an interrupt again that Python swallowed.

  An exception in a destructor or garbage collector callback only prints
  "Exception ignored in". Such a case is detected here: a signal was received,
  and no `Interrupted` is being handled.
  """
  free = _State.guarded and not _State.only_recorded and _State.depth == 0
  if (
    free
    and _State.received is not None
    and not isinstance(sys.exception(), Interrupted)
  ):
    raise Interrupted(_State.received)
