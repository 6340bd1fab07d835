"""Splits text into words, in any script."""

import re

from r1jax.text import UNSPACED

WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def split(text: str) -> list[str]:
  """Returns the words of a text; single characters in UNSPACED scripts.

  Words without a letter, such as numbers and punctuation, are left out.
  """
  return [
    word
    for word in WORD.findall(text)
    if any(map(str.isalpha, word)) or is_mark(word)
  ]


def is_mark(word: str) -> bool:
  """Whether a word is a single vowel or tone sign, as in Thai."""
  return len(word) == 1 and re.match(rf"[{UNSPACED}]", word) is not None
