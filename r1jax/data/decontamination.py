"""Finds texts of evaluation sets in training data, and prompts that repeat.

DeepSeek-R1 (arXiv:2501.12948v2, appendix D.1) leaves out a text that shares a
sequence of 10 words with a question or a solution of its evaluation sets:

    index = index_of(evaluation, size=10)
    is_contaminated(index, "What is ...")

Words are compared without case and punctuation. Numbers and operators are words
too; in scripts without spaces, each character is one.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from r1jax.text import UNSPACED, Example

WORD = re.compile(
  rf"[{UNSPACED}]|[^\W_{UNSPACED}]+|[-+*/^=<>\u00d7\u00f7\u2212]"
)
COMMON = 10  # Texts that may share words before these are a frame.


class Index(NamedTuple):
  """Digests of the sequences of words in evaluation sets."""

  size: int  # Words of a sequence.
  sequences: frozenset[int]
  whole: frozenset[int]  # Texts without such a sequence.


def words(text: str) -> list[str]:
  """The words that are compared.

  Examples:
    >>> words("So x = 3, is-it?")
    ['so', 'x', '=', '3', 'is', '-', 'it']
  """
  return WORD.findall(text.casefold())


def index_of(texts: Iterable[str], *, size: int = 10) -> Index:
  """The index of evaluation texts.

  The problems of a task share a frame, such as "State the final answer to the
  following problem", which says nothing about any of them. So a sequence is
  left out if half as many words within it are in more than `COMMON` different
  texts. A text of which nothing is left, or which has fewer than `size` words,
  is found only where it is the whole text.

  Raises ValueError for a `size` below 2.
  """
  if size < 2:
    raise ValueError(f"decontamination: size must be 2 or more, got {size}")
  half, counts = size // 2, Counter()
  distinct = sorted({" ".join(words(text)) for text in texts} - {""})
  for text in distinct:
    counts.update({*_sequences(text.split(" "), half)})
  frames = {key for key, count in counts.items() if count > COMMON}
  sequences, whole = set(), set()
  for text in distinct:
    split = text.split(" ")
    is_frame = [key in frames for key in _sequences(split, half)]
    left = [
      key
      for start, key in enumerate(_sequences(split, size))
      if not any(is_frame[start : start + size - half + 1])
    ]
    sequences.update(left)
    if not left:
      whole.add(_digest(split))
  return Index(size, frozenset(sequences), frozenset(whole))


def is_contaminated(index: Index, text: str) -> bool:
  """Whether a text shares a sequence of words with the evaluation sets."""
  split = words(text)
  return _digest(split) in index.whole or any(
    key in index.sequences for key in _sequences(split, index.size)
  )


def texts_of(examples: Iterable[Example]) -> Iterator[str]:
  """The questions of evaluation problems, and their solutions if they have any.

  An answer alone, such as a number, is no text.
  """
  for example in examples:
    yield example.prompt
    solution = _solution(example.metadata)
    if solution is not None:
      yield solution


def _solution(metadata: Mapping[str, Any]) -> str | None:
  solution = metadata.get("solution")
  return solution if isinstance(solution, str) else None


class Prompts(NamedTuple):
  """The prompts of a dataset that may be used, and how many may not."""

  positions: list[int]
  repeated: int
  contaminated: int  # Of those that do not repeat others.


def choose(prompts: Iterable[str], index: Index) -> Prompts:
  """The prompts that occur for the first time and in no evaluation set."""
  prompts = [*prompts]
  first = [*first_occurrences(prompts)]
  clean = [not is_contaminated(index, prompt) for prompt in prompts]
  return Prompts(
    [i for i in range(len(prompts)) if first[i] and clean[i]],
    repeated=first.count(False),
    contaminated=sum(f and not c for f, c in zip(first, clean)),
  )


def first_occurrences(texts: Iterable[str]) -> Iterator[bool]:
  """For each text, whether it is the first; only case and spaces may differ."""
  seen = set()
  for text in texts:
    key = _digest(text.casefold().split())
    yield key not in seen
    seen.add(key)


def _sequences(split: Sequence[str], size: int) -> Iterator[int]:
  for start in range(len(split) - size + 1):
    yield _digest(split[start : start + size])


def _digest(split: Sequence[str]) -> int:
  data = " ".join(split).encode("utf-8", "surrogatepass")
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
