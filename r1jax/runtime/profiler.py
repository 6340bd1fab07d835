"""Profiler traces of a few rounds, for XProf or Perfetto.

    r1jax train --config=... --workdir=... --profile=3:2

traces rounds 3 and 4, counted from 0 since the beginning of the run, resumed or
not. Each round is a step of the trace, with the phases of the loop (sampling,
grading, scoring, learning) as named regions.
"""

import contextlib
import pathlib
from collections.abc import Callable
from typing import NamedTuple


class Window(NamedTuple):
  """The rounds (of SFT, steps) to trace."""

  first: int
  count: int


def parse(text: str) -> Window:
  """The window "FIRST:COUNT"; "3:2" is two rounds, from round 3.

  Raises ValueError if `text` does not have this form.
  """
  first, _, count = text.partition(":")
  numbers = [n for n in (first, count) if n.isascii() and n.isdigit()]
  if len(numbers) != 2 or int(count) < 1:
    raise ValueError(
      f"--profile={text}: give FIRST:COUNT, such as 3:2 for the two rounds (of "
      "supervised fine-tuning: steps) from round 3, counted from 0"
    )
  return Window(int(first), int(count))


class Profiler:
  """Traces the rounds of a window into WORKDIR/profile.

      with Profiler(workdir, window, log=console.note) as profiler:
        while ...:
          profiler.begin(round)

  It does nothing if the window is None. `log` is called with a message that
  says where the trace is, or why there is none.
  """

  def __init__(
    self,
    workdir: str,
    window: Window | None,
    *,
    unit: str = "round",
    log: Callable[[str], None] = print,
  ):
    self._folder = pathlib.Path(workdir) / "profile"
    self._window, self._unit, self._log = window, unit, log
    self._stack = contextlib.ExitStack()  # Holds the annotation of a round.
    self._traced = 0
    self._tracing = self._reported = False

  def begin(self, number: int) -> None:
    """Ends the previous round of the trace, if any, and starts this one."""
    if self._window is None:
      return
    import jax

    self._stack.close()
    first, count = self._window
    if first <= number < first + count:
      if not self._tracing:
        jax.profiler.start_trace(str(self._folder))
        self._tracing = True
      self._stack.enter_context(
        jax.profiler.StepTraceAnnotation(self._unit, step_num=number)
      )
      self._traced += 1
    else:
      self._stop()
      if number >= first + count and not self._reported:
        self._report_nothing(f"the run resumed at {self._unit} {number}")

  def __enter__(self) -> "Profiler":
    return self

  def __exit__(self, *error) -> None:
    self._stack.close()
    self._stop()
    if self._window is not None and not self._reported:
      self._report_nothing(
        f"the run ended before {self._unit} {self._window.first}"
      )

  def _stop(self) -> None:
    if self._tracing:
      import jax

      jax.profiler.stop_trace()
      self._tracing = False
      self._reported = True
      self._log(
        f"the trace of {self._traced} {self._unit}"
        f"{'s' if self._traced > 1 else ''} is in {self._folder}; open it with "
        "xprof, or the .trace.json.gz in it at ui.perfetto.dev"
      )

  def _report_nothing(self, why: str) -> None:
    first, count = self._window
    self._reported = True
    self._log(f"nothing is traced for --profile={first}:{count}: {why}")
