"""Splits text into words, in any script."""

import re

# Scripts without spaces between words, in which each character is a word.
UNSPACED = (
  "\u3005-\u3007"  # Iteration marks of Han.
  "\u3041-\u3096\u309d-\u309f"  # Hiragana
  "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Katakana
  "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fa1f"  # Han
  "\u0e01-\u0e3a\u0e40-\u0e4e"  # Thai
  "\u0e81-\u0ebd\u0ec0-\u0ece"  # Lao
  "\u1000-\u109f"  # Burmese
  "\u1780-\u17d3"  # Khmer
)
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
