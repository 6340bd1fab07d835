"""Grades Countdown: a target made of given numbers, each used exactly once.

The expression is parsed, never evaluated as code, and computed in fractions.
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
  """1 if the answer is an expression of the numbers that makes the target.

  `metadata` has `numbers` (or `nums`) and `target`. Allowed are + - * / and
  brackets, in signs of Python or of LaTeX. The result may be written behind
  "=", and must be right then.
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
  """The expression in Python's signs."""
  text = text.translate(latex.CHARACTERS)
  while (shorter := FRACTION.sub(r"((\1)/(\2))", text)) != text:
    text = shorter[: 2 * latex.MAX_LENGTH]
  for pattern, sign in OPERATORS:
    text = pattern.sub(sign, text)
  return " ".join(text.split()).removesuffix(".").strip()
