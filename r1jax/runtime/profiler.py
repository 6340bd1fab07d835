"""What the devices did in a few rounds: a trace for XProf or Perfetto.

    python -m r1jax train --config=... --workdir=... --profile=3:2

traces rounds 3 and 4, counted from 0 and from the beginning of the run, however
often it resumed. Each round is a step of the trace, and the loop's phases
(sampling, grading, scoring, learning) have their names in it.
"""

import contextlib
import pathlib
from collections.abc import Callable
from typing import NamedTuple


class Window(NamedTuple):
  """The rounds, or steps, to trace."""

  first: int
  count: int


def parse(text: str) -> Window:
  """The window that "3:2" names: two rounds, the first of them round 3.

  Raises ValueError if it is none.
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

      with Profiler(workdir, window, say=console.note) as profiler:
        while ...:
          profiler.begin(round)

  Without a window it does nothing. `say` is told where the trace is, or why
  there is none.
  """

  def __init__(
    self,
    workdir: str,
    window: Window | None,
    *,
    unit: str = "round",
    say: Callable[[str], None] = print,
  ):
    self._folder = pathlib.Path(workdir) / "profile"
    self._window, self._unit, self._say = window, unit, say
    self._stack = contextlib.ExitStack()  # The round that is being traced.
    self._traced = 0
    self._tracing = self._told = False

  def begin(self, number: int) -> None:
    """Ends the round before, if any, and begins this one."""
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
      if number >= first + count and not self._told:
        self._tell(f"the run goes on from {self._unit} {number}")

  def __enter__(self) -> "Profiler":
    return self

  def __exit__(self, *error) -> None:
    self._stack.close()
    self._stop()
    if self._window is not None and not self._told:
      self._tell(f"the run ended before {self._unit} {self._window.first}")

  def _stop(self) -> None:
    if self._tracing:
      import jax

      jax.profiler.stop_trace()
      self._tracing = False
      self._told = True
      self._say(
        f"the trace of {self._traced} {self._unit}"
        f"{'s' if self._traced > 1 else ''} is in {self._folder}; open it with "
        "xprof, or the .trace.json.gz in it at ui.perfetto.dev"
      )

  def _tell(self, why: str) -> None:
    first, count = self._window
    self._told = True
    self._say(f"nothing is traced for --profile={first}:{count}: {why}")
