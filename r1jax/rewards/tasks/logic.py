"""Grades logic: puzzles and predicted outputs whose answer is a value or text.

An answer that is JSON or a Python literal is compared by its value. Any other
answer is compared as text, up to case, whitespace and surrounding punctuation.
"""

import ast
import json
import re
from typing import Any

from r1jax.text import Example

MAX_LENGTH = 20_000  # Characters; a longer answer is compared as text.
MAX_DEPTH = 64  # Nested brackets.

FENCE = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
SAME = {"yes": "true", "no": "false"}


def grade(example: Example, answer: str) -> float:
  """Returns 1.0 if the answer equals the gold as text or value, else 0.0."""
  if match := FENCE.fullmatch(answer.strip()):
    answer = match[1]
  if _fold(answer) == _fold(example.answer):
    return 1.0
  gold, value = _value(example.answer), _value(answer)
  return float(gold is not None and value is not None and gold == value)


def _value(text: str) -> Any:
  """Returns a literal in a form that == can compare; None for other text."""
  text = text.strip()
  if len(text) > MAX_LENGTH or _depth(text) > MAX_DEPTH:
    return None
  for read in (json.loads, ast.literal_eval):
    try:
      return _plain(read(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
      continue
  return None


def _plain(value: Any) -> Any:
  """Returns (kind, value), recursively, so that True differs from 1.

  Tuples become lists, because JSON has none.
  """
  if isinstance(value, dict):
    items = [(repr(_plain(k)), _plain(v)) for k, v in value.items()]
    return "dict", sorted(items, key=lambda item: item[0])
  if isinstance(value, (list, tuple)):
    return "list", [_plain(part) for part in value]
  if isinstance(value, (set, frozenset)):
    return "set", sorted(repr(_plain(part)) for part in value)
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    return "number", value
  return type(value).__name__, value


def _depth(text: str) -> int:
  """Returns the number of nested brackets at the deepest place of a text."""
  depth = deepest = 0
  for char in text:
    depth += (char in "([{") - (char in ")]}")
    deepest = max(deepest, depth)
  return deepest


def _fold(text: str) -> str:
  folded = " ".join(text.lower().split()).strip(" .!\"'`*")
  return SAME.get(folded, folded)
