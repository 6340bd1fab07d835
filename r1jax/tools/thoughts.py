"""The thought of an answer, told apart from the rest while text arrives."""

from r1jax.data.templates import BEGIN_THOUGHT, END_THOUGHT


class ThoughtStream:
  """Splits a text into its thought and the rest.

  The thought is the start of an answer, from <think> to the first </think>,
  tags included. Text that may be the beginning of a tag is held back.
  """

  def __init__(self):
    """Nothing is read yet."""
    self.thinking: bool | None = None  # None: not yet known.
    self._held = ""

  def push(self, text: str) -> list[tuple[bool, str]]:
    """The parts that are final now: whether each is thought, and its text."""
    parts, self._held = [], self._held + text
    if self.thinking is None:
      start = self._held.lstrip()
      if start.startswith(BEGIN_THOUGHT):
        self.thinking = True
      elif not BEGIN_THOUGHT.startswith(start):
        self.thinking = False
      else:
        return []
    if self.thinking:
      before, ended, after = self._held.partition(END_THOUGHT)
      if ended:
        parts.append((True, before + ended))
        self._held, self.thinking = after, False
      else:
        cut = len(self._held) - overlap(self._held, END_THOUGHT)
        parts.append((True, self._held[:cut]))
        self._held = self._held[cut:]
    if self.thinking is False:
      parts.append((False, self._held))
      self._held = ""
    return [(thought, part) for thought, part in parts if part]

  def flush(self) -> list[tuple[bool, str]]:
    """What was held back when the text ends, as `push` returns it."""
    held, self._held = self._held, ""
    return [(bool(self.thinking), held)] if held else []


def overlap(text: str, tag: str) -> int:
  """The number of characters at the end of `text` that may begin `tag`."""
  sizes = range(min(len(text), len(tag) - 1), 0, -1)
  return next((size for size in sizes if text.endswith(tag[:size])), 0)
