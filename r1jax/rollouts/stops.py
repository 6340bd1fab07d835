"""Stop strings: found in the text of tokens, wherever tokens begin and end."""

from collections.abc import Sequence

from r1jax.data.tokenizer import TextStream
from r1jax.types import Tokenizer


class StopWatch:
  """Follows the text of one completion until it holds a stop string."""

  def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]):
    """Nothing is read yet."""
    self._stream, self._strings = TextStream(tokenizer), tuple(strings)
    self._text = ""
    self._start = 0  # Where the next stop string may begin.

  def push(self, token: int, *, sampled: bool) -> str | None:
    """The text before the first stop string, once `token` completes one.

    Forced tokens end nothing: a stop string begins behind them.
    """
    seen = len(self._text)
    self._text += self._stream.push([token])
    if not sampled:
      self._start = len(self._text)
      return None
    found = []
    for string in self._strings:
      first = max(self._start, seen - len(string) + 1)
      found.append(self._text.find(string, first))
    found = [place for place in found if place >= 0]
    if not found:
      return None
    self._start = len(self._text)
    return self._text[: min(found)]
