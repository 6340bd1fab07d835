"""Console output of a run: a progress line, and events printed above it.

On a terminal the progress line is redrawn in place. In a file or pipe, plain
lines are printed at most every two seconds. Text that a model wrote is printed
literally, never as markup or terminal control codes. A run continues when its
terminal or pipe is closed; further output is then discarded.
"""

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

PERIOD = 2.0  # Seconds between plain progress lines.
LIMIT = 2000  # The most characters of a completion to show.
MEGABYTE = 1_000_000


class DetachableStream:
  """A text stream that discards output once its reader is gone."""

  def __init__(self, stream: Any):
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """The number of characters written or discarded."""
    try:
      return self._stream.write(text)
    except OSError:
      self._detach()
      return len(text)

  def flush(self) -> None:
    """Flushes the stream if its reader still exists."""
    try:
      self._stream.flush()
    except OSError:
      self._detach()

  def _detach(self) -> None:
    """Redirects the file descriptor to the null device, for libraries too."""
    _open_null(self._stream.fileno())


def tolerate_closed_streams() -> None:
  """Makes the process independent of whether its standard streams are open.

  Descriptors that were closed before the start are opened on the null device.
  Otherwise the next file that is opened would get the number of, say, standard
  output, and prints would go to that file.
  """
  for number, name in enumerate(("stdin", "stdout", "stderr")):
    try:
      os.fstat(number)
    except OSError:
      _open_null(number)
    if getattr(sys, name) is None:
      setattr(sys, name, open(number, "w" if number else "r", closefd=False))
  sys.stdout, sys.stderr = (
    DetachableStream(sys.stdout),
    DetachableStream(sys.stderr),
  )


def _open_null(number: int) -> None:
  null = os.open(os.devnull, os.O_RDWR)
  if null != number:
    os.dup2(null, number)
    os.close(null)


class Console:
  """Prints progress and events to `file`, by default standard output."""

  def __init__(self, *, file: io.TextIOBase | None = None, quiet: bool = False):
    self._file = file or sys.stdout
    self._quiet = quiet
    self._printed = time.monotonic()  # Time of the last line of any kind.
    self._progressed = -PERIOD  # Time of the last plain progress line,
    self._done: int | None = None  # and the progress that it showed.
    self._shown = ""
    self._phase = ""
    self._first: tuple[float, int] | None = None  # To estimate the time left.
    self._bar: Any = None
    self._live = (
      not quiet
      and self._file.isatty()
      and os.environ.get("TERM", "dumb") != "dumb"
    )
    if hasattr(self._file, "reconfigure"):
      self._file.reconfigure(errors="replace")  # The terminal may lack Unicode.

  def progress(
    self, done: int, total: int, *, unit: str = "round", **shown
  ) -> None:
    """Shows that `done` of `total` units are done, the time left, and numbers.

    The time left is estimated from the first call on, which leaves out the time
    to compile.
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
    """Shows progress in bytes; megabytes are rounded up."""
    self.progress(-(-done // MEGABYTE), -(-total // MEGABYTE), unit="MB")

  def phase(self, name: str) -> None:
    """Shows the current activity, such as "sampling" or "evaluating".

    Without a terminal it is printed only if nothing else was for ten seconds.
    """
    self._phase = name
    if self._live:
      self._draw()
    elif time.monotonic() - self._printed >= 5 * PERIOD:
      self._print(f"{name} ...")

  def note(self, text: str) -> None:
    """Prints an event above the progress line."""
    self._print(_printable(text))

  @contextlib.contextmanager
  def compiling(self, name: str) -> Iterator[None]:
    """A block that compiles; prints "compiling the sampler ... 7.3 s"."""
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
    """Prints a prompt, its completion, and the rewards of the completion."""
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
    """Ends the live progress line, and prints its last state."""
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
    """The live progress bar, started on first use."""
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
  """Seconds as text: 0:42, 12:03 or 1:02:03."""
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
  """`text` with terminal control characters replaced."""
  return "".join(
    c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text
  )
