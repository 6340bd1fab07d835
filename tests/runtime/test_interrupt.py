"""A run stops between two updates, never within one."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from r1jax.runtime import interrupt

pytestmark = pytest.mark.usefixtures("without_nohup")

ROOT = pathlib.Path(__file__).parents[2]


def send(signum=signal.SIGINT):
  os.kill(os.getpid(), signum)
  time.sleep(0)  # Python handles it between two bytecodes.


@pytest.mark.parametrize("signum", interrupt.SIGNALS)
def test_a_signal_interrupts_at_once(signum):
  before = signal.getsignal(signum)
  with pytest.raises(interrupt.Interrupted) as stop:
    with interrupt.guard():
      send(signum)
      pytest.fail("went on")
  assert stop.value.signum == signum
  assert signal.getsignal(signum) is before


def test_a_block_is_finished_first():
  done = []
  with pytest.raises(interrupt.Interrupted):
    with interrupt.guard():
      with interrupt.deferred():
        with interrupt.deferred():
          send()
        done.append("inner")
        done.append("outer")
      done.append("after")
  assert done == ["inner", "outer"]


def test_saving_after_an_interrupt_is_left_in_peace():
  saved = []
  with pytest.raises(interrupt.Interrupted):
    with interrupt.guard():
      try:
        send()
      except interrupt.Interrupted:
        with interrupt.deferred():
          saved.append(1)
        raise
  assert saved


def test_what_a_destructor_swallowed_shows_at_the_next_block(monkeypatch):
  swallowed = []
  monkeypatch.setattr(sys, "unraisablehook", swallowed.append)

  class Sends:
    def __del__(self):
      send()

  with pytest.raises(interrupt.Interrupted):
    with interrupt.guard():
      Sends()
      assert swallowed[0].exc_type is interrupt.Interrupted
      with interrupt.deferred():
        pytest.fail("an update after the interrupt")


def test_an_error_in_a_block_goes_first():
  with pytest.raises(KeyError):
    with interrupt.guard():
      with interrupt.deferred():
        send()
        raise KeyError("x")


def test_guards_nest_and_start_afresh():
  for _ in range(2):
    with pytest.raises(interrupt.Interrupted):
      with interrupt.guard():
        with interrupt.guard():
          pass
        send()


def test_without_a_guard_nothing_is_deferred():
  # A shell that starts us in the background has signals ignored.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with pytest.raises(KeyboardInterrupt):
      with interrupt.deferred():
        send()
  finally:
    signal.signal(signal.SIGINT, before)


def test_no_library_swallows_it():
  with pytest.raises(interrupt.Interrupted):
    with interrupt.guard():
      try:
        send()
      except Exception:
        pytest.fail("swallowed")


TWICE = """
  import time
  from r1jax.runtime import interrupt
  with interrupt.guard():
    try:
      print("ready", flush=True)
      time.sleep(60)
    except interrupt.Interrupted:
      with interrupt.deferred():
        print("saving", flush=True)
        time.sleep(60)
"""


def test_the_second_signal_ends_it_at_once():
  process = subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(TWICE)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  with process:
    for line in ("ready", "saving"):
      assert process.stdout.readline().strip() == line
      process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 128 + signal.SIGINT
    assert "work since the last one is lost" in process.stderr.read()


STUCK = """
  import ctypes
  from r1jax.runtime import interrupt
  lock = ctypes.create_string_buffer(64)  # A mutex of the C library.
  libc = ctypes.CDLL(None)
  libc.pthread_mutex_lock(lock)
  with interrupt.guard(), interrupt.only_recorded():
    print("ready", flush=True)
    libc.pthread_mutex_lock(lock)  # For ever.
"""


def test_the_second_signal_ends_what_hangs_in_a_library():
  with subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(STUCK)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline().strip() == "ready"
    time.sleep(0.5)  # It is in the call by then, or about to be.
    for _ in range(2):
      process.send_signal(signal.SIGTERM)
      time.sleep(0.2)
    try:
      _, errors = process.communicate(timeout=30)
    finally:
      process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "work since the last one is lost" in errors


def test_a_terminal_that_closes_twice_interrupts_once():
  with pytest.raises(interrupt.Interrupted) as stop:
    with interrupt.guard():
      try:
        send(signal.SIGHUP)
      except interrupt.Interrupted:
        send(signal.SIGHUP)
        send(signal.SIGTERM)  # The first of its kind.
        raise
  assert stop.value.signum == signal.SIGHUP


def test_nohup_is_respected():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with interrupt.guard():
      send(signal.SIGHUP)
  finally:
    signal.signal(signal.SIGHUP, before)


def test_a_signal_that_comes_as_a_block_begins_is_not_lost():
  """At every line of `deferred`, and of the block."""
  code = interrupt.deferred.__wrapped__.__code__
  lines = {line for *_, line in code.co_lines() if line}
  for moment in sorted(lines - {code.co_firstlineno}):

    def trace(frame, event, _, moment=moment):
      if frame.f_code is code:
        if event == "line" and frame.f_lineno == moment:
          sys.settrace(None)
          frame.f_trace = None
          send()
        return trace

    reached = []
    with pytest.raises(interrupt.Interrupted):
      with interrupt.guard():
        sys.settrace(trace)
        try:
          with interrupt.deferred():
            pass
        finally:
          reached.append(sys.gettrace() is None)
          sys.settrace(None)
        if not reached[-1]:
          raise interrupt.Interrupted  # A line that is not on this path.


def test_held_a_signal_is_only_noted():
  with interrupt.guard():
    with interrupt.only_recorded():
      send(signal.SIGTERM)
      with interrupt.deferred():
        pass
      assert interrupt.received() == signal.SIGTERM
