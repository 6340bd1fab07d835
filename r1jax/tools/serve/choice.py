"""One choice of an answer: from tokens to text, thought, and the reason to end.

A stream and a whole answer are made of the same deltas.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from r1jax.data.templates import BEGIN_THOUGHT, END_THOUGHT
from r1jax.data.tokenizer import TextStream
from r1jax.tools.thoughts import ThoughtStream, overlap
from r1jax.types import FINISH_STOP, Tokenizer

REASONS = {0: None, FINISH_STOP: "stop"}  # Of others: "length".


class Token(NamedTuple):
  """A token with its log-probability, in nats."""

  id: int
  logprob: float | None  # None of a text's first token.
  top: Sequence[tuple[int, float]]  # The most probable tokens, in order.


class Delta(NamedTuple):
  """What a choice grows by."""

  reasoning: str = ""
  content: str = ""
  tokens: Sequence[Token] = ()
  finish: str | None = None  # Why it ends: "stop" or "length".
  prompt: Sequence[Token] = ()  # Those of an echo.

  def __bool__(self) -> bool:
    """Whether a client has anything of it."""
    return bool(self.reasoning or self.content or self.finish)


def merged(deltas: Iterable[Delta]) -> Delta:
  """All deltas as one."""
  deltas = [*deltas]
  return Delta(
    "".join(delta.reasoning for delta in deltas),
    "".join(delta.content for delta in deltas),
    [token for delta in deltas for token in delta.tokens],
    next((delta.finish for delta in deltas if delta.finish), None),
    [token for delta in deltas for token in delta.prompt],
  )


class StopText:
  """Text before the first stop string, as far as it can be told.

  Text that may be the beginning of a stop string is held back.
  """

  def __init__(self, strings: Sequence[str]):
    """Nothing is read yet."""
    self._strings, self._held = strings, ""
    self._stopped = False

  def push(self, text: str) -> str:
    """The text that is final now."""
    if self._stopped:
      return ""
    text = self._held + text
    found = [text.find(string) for string in self._strings]
    found = [place for place in found if place >= 0]
    self._stopped = bool(found)
    if found:
      cut, self._held = min(found), ""
    else:
      held = max((overlap(text, s) for s in self._strings), default=0)
      cut = len(text) - held
      self._held = text[cut:]
    return text[:cut]

  def flush(self) -> str:
    """What was held back when the text ends."""
    held, self._held = self._held, ""
    return held


class Choice:
  """One choice, put together token by token."""

  def __init__(
    self,
    tokenizer: Tokenizer,
    *,
    stop_strings: Sequence[str] = (),
    stop_ids: Collection[int] = (),
    prefill: str | None = None,
    separate_reasoning: bool = True,
  ):
    """Nothing is sampled yet.

    Args:
      tokenizer: of the tokens.
      stop_strings: the first of them ends the text, and is not a part of it.
      stop_ids: a token of these is not a part of the text that it ends.
      prefill: the beginning of the answer that the template wrote; it may open
        the thought. None for a text that is no answer and has no thought.
      separate_reasoning: whether the thought is apart from the content; if not,
        the content begins with the prefill.
    """
    self._stream, self._stop = TextStream(tokenizer), StopText(stop_strings)
    self._stop_ids = frozenset(stop_ids)
    self._thoughts = None
    self._has_thought = self._has_reasoning = self._has_content = False
    self._before = ""  # Text that goes in front of the first delta.
    if prefill is not None and separate_reasoning:
      self._thoughts = ThoughtStream()
      self._split(self._thoughts.push(prefill))
    elif prefill is not None:
      self._before = prefill

  @property
  def thinking(self) -> bool:
    """Whether all there is belongs to a thought that has not ended."""
    return self._thoughts is not None and bool(self._thoughts.thinking)

  def push(self, tokens: Sequence[Token], finish: int) -> Delta:
    """What further tokens add; `finish` is 0 while the choice goes on."""
    ids, texts = [token.id for token in tokens], [self._before]
    self._before = ""
    if finish == FINISH_STOP and ids[-1:] and ids[-1] in self._stop_ids:
      ids = ids[:-1]
    for number in ids:
      texts.append(self._stop.push(self._stream.push([number])))
    if finish:
      texts += [self._stop.push(self._stream.flush()), self._stop.flush()]
    reason, text = REASONS.get(finish, "length"), "".join(texts)
    if self._thoughts is None:
      return Delta("", text, tokens, reason)
    parts = self._thoughts.push(text)
    if finish:
      parts += self._thoughts.flush()
    return Delta(*self._split(parts), tokens, reason)

  def _split(self, parts: Sequence[tuple[bool, str]]) -> tuple[str, str]:
    """The thought without its tags, and the content, of parts of an answer.

    Neither begins with white space, unless there was no thought at all.
    """
    reasoning, content = [], []
    for is_thought, text in parts:
      if is_thought:
        if not self._has_thought:
          text = text.partition(BEGIN_THOUGHT)[2]
        self._has_thought = True
        if not self.thinking:
          text = text.removesuffix(END_THOUGHT)
        text = text if self._has_reasoning else text.lstrip()
        self._has_reasoning |= bool(text)
        reasoning.append(text)
      else:
        if self._has_thought and not self._has_content:
          text = text.lstrip()
        self._has_content |= bool(text)
        content.append(text)
    return "".join(reasoning), "".join(content)
