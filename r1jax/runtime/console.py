"""What a person sees of a run: one live line, and what happened above it.

On a terminal the line is redrawn in place; elsewhere (a file, a pipe) plain
lines come at most every two seconds. Text that a model wrote is shown as it is:
never as markup, never as a terminal's control codes. A run goes on without
those who look at it: what is written to a closed pipe or terminal is dropped.
"""

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

PERIOD = 2.0  # Seconds between plain progress lines.
LIMIT = 2000  # Characters of a completion that are shown.
MEGABYTE = 1_000_000


class Lasting:
  """A text stream that writes to nowhere once its reader is gone."""

  def __init__(self, stream: Any):
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """`write` of the stream, or nothing."""
    try:
      return self._stream.write(text)
    except OSError:
      self._give_up()
      return len(text)

  def flush(self) -> None:
    """`flush` of the stream, or nothing."""
    try:
      self._stream.flush()
    except OSError:
      self._give_up()

  def _give_up(self) -> None:
    """Sends what the process writes there, libraries included, to nowhere."""
    _open_null(self._stream.fileno())


def outlive_streams() -> None:
  """Lets the process go on when its standard streams are closed, or will be.

  The number of a stream that was closed before the start would be given to the
  next file that is opened, and be written to by mistake.
  """
  for number, name in enumerate(("stdin", "stdout", "stderr")):
    try:
      os.fstat(number)
    except OSError:
      _open_null(number)
    if getattr(sys, name) is None:
      setattr(sys, name, open(number, "w" if number else "r", closefd=False))
  sys.stdout, sys.stderr = Lasting(sys.stdout), Lasting(sys.stderr)


def _open_null(number: int) -> None:
  null = os.open(os.devnull, os.O_RDWR)
  if null != number:
    os.dup2(null, number)
    os.close(null)


class Console:
  """Shows progress and events on `file`, by default standard output."""

  def __init__(self, *, file: io.TextIOBase | None = None, quiet: bool = False):
    self._file = file or sys.stdout
    self._quiet = quiet
    self._printed = time.monotonic()  # When anything was.
    self._progressed = -PERIOD  # When a plain line of progress was,
    self._done: int | None = None  # and what it said.
    self._shown = ""
    self._phase = ""
    self._first: tuple[float, int] | None = None  # For the time left.
    self._bar: Any = None
    self._live = (
      not quiet
      and self._file.isatty()
      and os.environ.get("TERM", "dumb") != "dumb"
    )
    if hasattr(self._file, "reconfigure"):
      self._file.reconfigure(errors="replace")  # A terminal without Unicode.

  def progress(
    self, done: int, total: int, *, unit: str = "round", **shown
  ) -> None:
    """Says that `done` of `total` rounds are done, and a few of their numbers.

    Time left is reckoned from the second call on, so it leaves out compilation.
    """
    now = time.monotonic()
    if self._first is None or done < self._first[1]:
      self._first = (now, done)
    began, first = self._first
    left = ""
    if done > first:
      left = f"{duration((now - began) / (done - first) * (total - done))} left"
    numbers = [_number(name, value) for name, value in shown.items()]
    parts = [f"{unit} {done}/{total}", *([left] if left else []), *numbers]
    self._shown = "  ".join(parts)
    if self._live:
      self._draw(completed=done, total=total)
    elif now - self._progressed >= PERIOD or done == total != self._done:
      self._print(self._shown)
      self._progressed, self._done = now, done

  def megabytes(self, done: int, total: int) -> None:
    """`progress` of bytes; a megabyte counts as soon as it is begun."""
    self.progress(-(-done // MEGABYTE), -(-total // MEGABYTE), unit="MB")

  def phase(self, name: str) -> None:
    """Says what the run is doing now: "sampling", "learning", "evaluating".

    Plain lines leave it out, unless there was none for a while.
    """
    self._phase = name
    if self._live:
      self._draw()
    elif time.monotonic() - self._printed >= 5 * PERIOD:
      self._print(f"{name} ...")

  def note(self, text: str) -> None:
    """Prints an event; it stays above the live line."""
    self._print(_printable(text))

  @contextlib.contextmanager
  def compiling(self, name: str) -> Iterator[None]:
    """Says that a block compiles: "compiling the sampler ... 7.3 s"."""
    began, phase = time.monotonic(), self._phase
    text = f"compiling the {name} ... "
    if self._live:
      self.phase(text)
    else:
      self._print(text, end="")
    end = "stopped"
    try:
      yield
      end = f"{time.monotonic() - began:.1f} s"
    finally:
      if self._live:
        self._phase = phase
        self._print(text + end)
      else:
        self._print(end)

  def show_completion(
    self,
    prompt: str,
    completion: str,
    rewards: Mapping[str, float],
    *,
    title: str = "a sampled completion",
  ) -> None:
    """Prints a prompt, what the policy wrote, and what each reward gave it."""
    prompt, completion = _excerpt(prompt), _excerpt(completion)
    scores = "  ".join(_number(k, v) for k, v in rewards.items())
    if not self._live:
      self._print(f"--- {title}\n{prompt}\n>>>\n{completion}\n--- {scores}")
      return
    from rich.panel import Panel
    from rich.text import Text

    text = Text(prompt.strip() + "\n", style="dim")
    text.append(completion.strip(), style="default not dim")
    self._start().console.print(
      Panel(
        text,
        title=Text(title),
        title_align="left",
        subtitle=Text(scores),
        subtitle_align="right",
        border_style="cyan",
      )
    )

  def close(self) -> None:
    """Ends the live line; what it last said stays."""
    if self._bar is not None:
      self._bar.stop()
      self._bar = None
      self._print(self._shown)

  def _print(self, text: str, end: str = "\n") -> None:
    if self._quiet:
      return
    self._printed = time.monotonic()
    if self._bar is not None:
      self._bar.console.print(text, end=end, markup=False, highlight=False)
    else:
      print(text, end=end, file=self._file, flush=True)

  def _start(self) -> Any:
    """The live line, drawn from now on."""
    if self._bar is None:
      from rich.console import Console as RichConsole
      from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

      console = RichConsole(file=self._file)
      columns = [
        SpinnerColumn(),
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[shown]}", markup=False),
      ]
      if console.width < 100:
        phase = TextColumn("{task.description}", markup=False)
        columns = [columns[3], phase]
      self._bar = Progress(
        *columns, console=console, refresh_per_second=4, transient=True
      )
      self._bar.add_task("", total=None, shown="")
      self._bar.start()
    return self._bar

  def _draw(self, **fields) -> None:
    bar = self._start()
    bar.update(
      bar.task_ids[0], description=self._phase, shown=self._shown, **fields
    )


def duration(seconds: float) -> str:
  """Seconds as 0:42, 12:03 or 1:02:03."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minutes:02}:{seconds:02}"
  return f"{minutes}:{seconds:02}"


def _number(name: str, value: Any) -> str:
  if value is None or value != value:
    text = "-"
  elif abs(value) >= 100 or float(value).is_integer():
    text = f"{value:,.0f}"
  else:
    text = f"{value:.3g}"
  if name == "tokens_per_second":
    return f"{text} tokens/s"
  return f"{name.replace('_', ' ')} {text}"


def _excerpt(text: str) -> str:
  if len(text) > LIMIT:
    half = LIMIT // 2
    text = f"{text[:half]}\n[... {len(text) - LIMIT} more ...]\n{text[-half:]}"
  return _printable(text)


def _printable(text: str) -> str:
  """`text` without what could steer a terminal."""
  return "".join(
    c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text
  )
