"""Grades multiple choice by the letter, or by the text of the choice."""

import re
import unicodedata
from collections.abc import Sequence

from r1jax.rewards.maths import answers
from r1jax.text import Example

MAX_LENGTH = 2048  # Characters; longer answers are wrong.

# "C", "(c)", "**C**."; and "A, B and D", "ABD".
ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
SEVERAL = re.compile(
  r"[\W_]*(?:[A-J](?:(?:[\W_]|and\b)*[A-J])+|[A-Z](?:(?:[\W_]|\band\b)+[A-Z])+)[\W_]*"
)
# "C) Paris", "(C) Paris", "C: Paris", "C. Paris", "C, because ..."
LABELLED = re.compile(
  r"[\s*]*(?:\(([A-Za-z])\)"
  r"|([A-Z])(?:\s*(?:[).:;!?。]|[,、](?!\s*[A-Z]\b)|[-–—]+|\()|\s*\n"
  r"|\s+(?=because\b|since\b)|\s*(?=[\u4e00-\u9fff])(?![或和与及])))\s*\S"
)
LABEL = re.compile(r"\(([A-Z])\)|(?<!\w)([A-J])[).:](?=\s)")
NO_OTHER = r"(?!\W*(?:(?:or|and)\b|[,/&])\W*[A-Z]\b)"
LEAD = (
  r"(?i:\b(?:answer|option|choice)s?\b(?:\s+(?:is|are|must\sbe|will\sbe))?"
  r"(?:\s+(?:clearly|therefore|thus|hence|definitely|obviously|simply|then"
  r"|certainly|surely|the|option|choice|letter))*)\s*[:=]?\s*"
)
NAMED = re.compile(
  rf"{LEAD}[*(\[\s]*([A-Z])\b{NO_OTHER}"
  rf"|(?i:\b(?:choose|chose|pick|select)\b)[*(\[\s]*([A-Z])\b(?!['’]){NO_OTHER}"
  rf"|{LEAD}(?:\(([a-z])\)|([a-z])\W*\Z)"
  r"|^\W*([A-Z])\W*\s(?:is|was)\s(?:the\s)?(?:correct|right|answer|best)\b"
  r"|(?:答案|选项?)(?:是|为|：|:)?\s*[*(（\s]*([A-Z])(?![A-Za-z])(?!\s*[、,/或和]\s*[A-Z])"
)
WRAPPER = re.compile(
  r"\\(?:text|textbf|mathrm|mathbf|mbox|boxed)\s*\{([^{}]*)\}"
)


def grade(example: Example, answer: str) -> float:
  """Returns 1.0 if the answer names exactly the example's letters, else 0.0.

  With `metadata["choices"]`, the texts of the choices in the order of their
  letters, an answer may be the text of a choice. A gold answer without a letter
  is compared as text.
  """
  choices = example.metadata.get("choices") or ()
  gold = letters(example.answer, choices)
  if gold is None:
    return float(_fold(answer) == _fold(example.answer))
  return float(letters(answer, choices) == gold)


def letters(answer: str, choices: Sequence[str] = ()) -> str | None:
  """Returns the letters that an answer names, sorted; None if it names none."""
  if len(answer) > MAX_LENGTH:
    return None
  text = unicodedata.normalize("NFKC", answer).replace("$", " ")  # Ｂ is B.
  while (unwrapped := WRAPPER.sub(r" \1 ", text)) != text:
    text = unwrapped
  text = text.replace("\\", " ").strip()
  alone = ALONE.fullmatch(text)
  if alone and (alone[1].isupper() or "(" in text):
    return alone[1].upper()
  same = _same(answer, choices)
  if len(same) == 1:
    return chr(ord("A") + same[0])
  if alone:
    return alone[1].upper()
  if SEVERAL.fullmatch(text):
    return "".join(sorted({*re.findall("[A-Z]", text)}))
  if match := LABELLED.match(text):
    others = {"".join(label) for label in LABEL.findall(text, match.end() - 1)}
    if others - {match[match.lastindex].upper()}:
      return None  # The answer lists several choices.
    return match[match.lastindex].upper()
  label, _, rest = text.partition(" ")
  if [label.upper()] == [chr(ord("A") + i) for i in _same(rest, choices)]:
    return label.upper()
  named = {"".join(groups).upper() for groups in NAMED.findall(text)}
  return named.pop() if len(named) == 1 else None


def _same(answer: str, choices: Sequence[str]) -> list[int]:
  """Returns the indices of the choices whose text equals the answer."""
  text = _fold(answer)
  return [i for i, choice in enumerate(choices) if text == _fold(choice) != ""]


def _fold(text: str) -> str:
  return "".join(answers.normalise(text).lower().split())
