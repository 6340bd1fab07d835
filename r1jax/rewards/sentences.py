"""Splits English text into sentences, and into words."""

import re

# A full stop after these does not end a sentence.
ABBREVIATIONS = frozenset(
  "dr mr mrs ms prof sr jr st vs etc e.g i.e inc ltd co corp dept est fig gen "
  "gov hon jan feb mar apr jun jul aug sep sept oct nov dec lt col sgt capt "
  "rev vol pp approx ca cf a.m p.m u.s u.k u.n ph.d m.d b.a m.a mt ft".split()
)
END = re.compile(
  r"[.!?\u2026]+[\"'\u201d\u2019)\]}*_]*(?=\s|$)|[。！？]+[」』”）]*"
)
# The number of an item in a list: "1.", "**2.", "(b)", "iv.".
NUMBERING = re.compile(
  r"[\W_]*(?:\d{1,3}(?:\.\d+)*|[a-z]|[ivx]+)[.)\]*_]*", re.IGNORECASE
)
REACH = 40  # Characters on either side of a full stop that are examined.
# Words that begin a new sentence even after an abbreviation.
STARTERS = frozenset(
  "the he she it we they this that these those there in on at but and if when "
  "however then you my our his her their its what who why how after as so for "
  "finally also next first second".split()
)
# What is split off words: punctuation, and the endings of contractions.
TOKEN = re.compile(
  r"""[\[\](){}<>"`;@#$%&?!,:\u201c\u201d\u2018\u2026]+|\.{2,}|--+"""
)
TAILS = re.compile(r"(?i)(.+?)(n't|'(?:s|re|ve|ll|d|m))$")
JOINED = re.compile(r"(?i)(can)(not)|(gim|lem)(me)|(gon|wan)(na)|(got)(ta)")


def split(text: str) -> list[str]:
  """Returns the sentences of a text; a line break alone ends no sentence.

  The number of an item in a list belongs to the sentence after it.
  """
  parts, start = [], 0
  for match in END.finditer(text):
    before = text[max(start, match.start() - REACH) : match.start()]
    after = text[match.end() : match.end() + REACH]
    line = before.rpartition("\n")[2]
    if re.match(r"\.(?!\.)", match[0]) and NUMBERING.fullmatch(line):
      continue
    if match[0] == "." and _goes_on(before, after):
      continue
    parts.append(text[start : match.end()].strip())
    start = match.end()
  parts.append(text[start:].strip())
  return [part for part in parts if part]


def tokens(text: str) -> list[str]:
  """Returns words without punctuation; contractions are split, hyphens not."""
  result = []
  for word in TOKEN.sub(" ", text.replace("\u2019", "'")).split():
    match = TAILS.fullmatch(word) or JOINED.fullmatch(word.rstrip("."))
    if match:
      result += [group for group in match.groups() if group]
    else:
      result.append(word)
  return result


def _goes_on(before: str, after: str) -> bool:
  """Whether a full stop belongs to the word before it and ends no sentence."""
  words, following = before.split(), after.split()
  last = words[-1].lstrip("(\"'*") if words else ""
  first = following[0].strip("\"'*,") if following else ""
  if first[:1].isupper() and first.lower() in STARTERS:
    return False
  initial = len(last) == 1 and last.isalpha() and last != "I"
  return initial or last.lower() in ABBREVIATIONS
