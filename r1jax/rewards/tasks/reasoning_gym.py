"""Grades answers to reasoning-gym's tasks by the library's own scorers.

Some scorers run `eval` or sympy's `parse_expr` on the text that they are given,
and through it any code the policy may write: a guard reads the text first. They
run in the grader pool like all accuracy, under its limits of time and memory.
"""

import functools
import re
from collections.abc import Callable

from r1jax.rewards.maths import arithmetic
from r1jax.text import Example

# Text that calls nothing and computes nothing, whatever executes it.
INERT = re.compile(r"[\w\s,.:;'\"\[\]-]*")
# Formulas: numbers, single letters, functions that sympy has, and operators.
FORMULA = re.compile(
  r"(?:\s|\d{1,30}(?:\.\d{1,30})?|(?<![\w.])(?:[a-zA-Z]|pi|sqrt|exp|log|ln|Abs"
  r"|a?(?:sin|cos|tan|cot|sec|csc)h?)(?![\w.])|\*\*|[-+*/^(),])*"
)
TOWER = re.compile(r"(?:\*\*|\^)(?:[^+-]*(?:\*\*|\^)|\s*\(?\s*-?\d{4})")


def is_expression(text: str) -> bool:
  """True for integers, + - * / and ()."""
  return arithmetic.parse(text) is not None


def is_inert(text: str) -> bool:
  """True for text without brackets that call, and without operators."""
  return INERT.fullmatch(text) is not None


def is_formula(text: str) -> bool:
  """True for a formula whose powers are small."""
  return FORMULA.fullmatch(text) is not None and not TOWER.search(text)


# What may be shown to the scorer of a task; True lets the text through.
GUARDS: dict[str, Callable[[str], bool]] = {
  "binary_matrix": is_inert,
  "countdown": is_expression,
  "intermediate_integration": is_formula,
  "n_queens": is_inert,
  "polynomial_multiplication": is_formula,
  "puzzle24": is_expression,
  "simple_integration": is_formula,
  "spiral_matrix": is_inert,
  "string_insertion": is_inert,
}

# It hands the answer to the scorer of any task.
REFUSED = {"composite"}


def grade(example: Example, answer: str) -> float:
  """1 if the library gives the answer its full score, or 0.

  The library's credit for answers that are nearly right is not given.
  Raises ValueError for a task whose scorer executes the answer.
  """
  task = example.domain.partition("/")[2]
  if task in REFUSED:
    raise ValueError(
      f"{task}: its scorer in reasoning-gym may execute the answer; name the "
      "single tasks in its place"
    )
  if len(answer) > arithmetic.MAX_LENGTH + 2 * len(example.answer):
    return 0.0
  if task in GUARDS and not GUARDS[task](answer):
    return 0.0
  entry = {
    "question": example.prompt,
    "answer": example.answer,
    "metadata": dict(example.metadata),
  }
  try:
    return float(_scorer(task)(answer, entry) == 1.0)
  except Exception:
    if answer == example.answer:
      raise  # Else the scorer stumbled over what the policy wrote.
    return 0.0


@functools.cache
def _scorer(task: str) -> Callable[[str, dict], float]:
  from reasoning_gym import get_score_answer_fn  # A second to import.

  return get_score_answer_fn(task)
