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

A second signal, while the first is still being dealt with, ends the process at
once: what was done since the last checkpoint is lost, and it says so.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
  """Raised by SIGINT or SIGTERM under `guard`.

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
    os.write(
      2,
      b"\nstopped at once, before a checkpoint could be written: "
      b"the work since the last one is lost\n",
    )
    os._exit(128 + signum)
  _State.received = signum
  if _State.held:
    os.write(2, b"\nstopping together with the other hosts ...\n")
  elif _State.depth:
    os.write(2, b"\nstopping as soon as this update is saved ...\n")
  else:
    raise Interrupted(signum)


@contextlib.contextmanager
def guard() -> Iterator[None]:
  """Turns SIGINT and SIGTERM into `Interrupted`, in the main thread.

  Nested guards are one guard; the old handlers return when it ends.
  """
  main = threading.current_thread() is threading.main_thread()
  if _State.guarded or not main:
    yield
    return
  old = {signum: signal.getsignal(signum) for signum in SIGNALS}
  _State.guarded, _State.depth, _State.received = True, 0, None
  try:
    for signum in SIGNALS:
      signal.signal(signum, _handle)
    yield
  finally:
    for signum, handler in old.items():
      signal.signal(signum, handler)
    _State.guarded = False


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
  _State.depth += 1
  before = _State.received
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
