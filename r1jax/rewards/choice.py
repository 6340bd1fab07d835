"""Grades multiple choice: the letter, or the text of the choice itself."""

import re
from collections.abc import Sequence

from r1jax.rewards import math
from r1jax.types import Example

MAX_LENGTH = 2048  # Characters of an answer that may quote a choice.

ALONE = re.compile(r"[\W_]*([A-Za-z](?:[\s,;&、]*(?:and\s+)?[A-Z])*)[\W_]*")
# "C) Paris", "(C) Paris", "C: Paris", "C. Paris"
LABELLED = re.compile(r"[\s*]*(?:\(([A-Z])\)|([A-Z])\s*[).:：、．])\s*\S")
NAMED = re.compile(
  r"\b(?:answer|option|choice)s?\b(?:\s+is)?\s*[:=]?\s*[*(\[\s]*([A-Z])\b"
  r"|(?:答案|选项?)(?:是|为|：|:)?\s*[*(（\s]*([A-Z])(?![a-z])"
)
WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


def grade(example: Example, answer: str) -> float:
  """1 if the answer names the example's letter, or letters, and no other.

  `metadata["choices"]`, in the order of the letters and optional, lets an
  answer say the choice's text in place of its letter.
  """
  choices = example.metadata.get("choices") or ()
  gold = letters(example.answer, choices)
  given = letters(answer, choices)
  if gold is None:  # It is no letter: a text to be matched.
    return float(_fold(answer) == _fold(example.answer))
  return float(given == gold)


def letters(answer: str, choices: Sequence[str] = ()) -> str | None:
  """The letters that an answer names, sorted; None if it names none."""
  text = answer[:MAX_LENGTH].replace("$", " ")
  while (unwrapped := WRAPPER.sub(r" \1 ", text)) != text:
    text = unwrapped
  text = text.replace("\\", " ").strip()
  for i, choice in enumerate(choices):
    if _fold(choice) and _fold(choice) == _fold(answer):
      return chr(ord("A") + i)
  if match := ALONE.fullmatch(text):
    named = sorted({c for c in match[1].upper() if c.isalpha()} - {""})
    return (
      "".join(named) if "AND" not in match[1].upper() else _joined(match[1])
    )
  if match := LABELLED.match(text):
    return match[1] or match[2]
  named = {a or b for a, b in NAMED.findall(text)}
  return named.pop() if len(named) == 1 else None


def _joined(text: str) -> str:
  return "".join(sorted(set(re.findall(r"\b[A-Z]\b", text))))


def _fold(text: str) -> str:
  return "".join(math.normalise(text).lower().split())
