"""What counts as a word, in any script."""

import re

# Written without spaces between words: each character counts as a word.
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
  """Words between spaces, and single characters where a script has no spaces.

  Words without a letter (numbers, signs) are left out.
  """
  return [w for w in WORD.findall(text) if any(map(str.isalpha, w)) or mark(w)]


def mark(word: str) -> bool:
  """True for a vowel or tone sign that stands alone, as Thai is split."""
  return len(word) == 1 and re.match(rf"[{UNSPACED}]", word) is not None
