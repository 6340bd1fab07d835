"""Grades Countdown: an expression that uses each number once equals the target.

The expression is parsed and computed in exact fractions, never run as code.
"""

import re
from collections import Counter

from r1jax.rewards.maths import arithmetic, latex
from r1jax.text import Example

OPERATORS = (
  (re.compile(r"\A\s*\*\*(.+)\*\*\s*\Z", re.DOTALL), r"\1"),  # Bold.
  (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])"), "*"),
  (re.compile(r"(?<=[\d)\s])[xX](?=[\s(\d])"), "*"),
  (re.compile(r"\\div(?![a-zA-Z])"), "/"),
  (re.compile(r"\\(?:left|right|text|mathrm)(?![a-zA-Z])"), ""),
  (re.compile(r"\\[][(),;:!]|[$`]"), ""),
  (re.compile(r"[\[{]"), "("),
  (re.compile(r"[\]}]"), ")"),
)
FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")


def grade(example: Example, answer: str) -> float:
  """Returns 1.0 if the answer is a valid expression of the target, else 0.0.

  `example.metadata` has `numbers` (or `nums`) and `target`. The expression may
  use + - * / and brackets, in Python's notation or in LaTeX. A result after "="
  is optional, and must be correct. Raises ValueError if the metadata lack a
  field.
  """
  numbers = example.metadata.get("numbers", example.metadata.get("nums"))
  target = example.metadata.get("target")
  if numbers is None or target is None:
    raise ValueError(
      f"countdown: example {example.id!r} has metadata {[*example.metadata]}; "
      "it needs 'numbers' and 'target'"
    )
  if len(answer) > arithmetic.MAX_LENGTH:
    return 0.0
  expression, equals, result = _plain(answer).partition("=")
  tree = arithmetic.parse(expression)
  if tree is None or Counter(arithmetic.integers(tree)) != Counter(numbers):
    return 0.0
  if equals and arithmetic.number(result) != target:
    return 0.0
  return float(arithmetic.value(tree) == target)


def _plain(text: str) -> str:
  """Returns the expression in Python's notation."""
  text = text.translate(latex.CHARACTERS)
  while (shorter := FRACTION.sub(r"((\1)/(\2))", text)) != text:
    text = shorter[: 2 * latex.MAX_LENGTH]
  for pattern, sign in OPERATORS:
    text = pattern.sub(sign, text)
  return " ".join(text.split()).removesuffix(".").strip()
