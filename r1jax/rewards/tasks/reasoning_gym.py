"""Grades answers to reasoning-gym's tasks with the library's scorers.

Some scorers pass the answer to `eval` or to sympy's `parse_expr`, which would
run any code that the policy writes. A guard checks the answers to these tasks
first. All scorers run in the grader pool, under its limits of time and memory.
"""

import functools
import re
from collections.abc import Callable

from r1jax.rewards.maths import arithmetic
from r1jax.text import Example

# Text that calls and computes nothing, even if it is executed.
INERT = re.compile(r"[\w\s,.:;'\"\[\]-]*")
# Formulas: numbers, single letters, functions of sympy, and operators.
FORMULA = re.compile(
  r"(?:\s|\d{1,30}(?:\.\d{1,30})?|(?<![\w.])(?:[a-zA-Z]|pi|sqrt|exp|log|ln|Abs"
  r"|a?(?:sin|cos|tan|cot|sec|csc)h?)(?![\w.])|\*\*|[-+*/^(),])*"
)
TOWER = re.compile(r"(?:\*\*|\^)(?:[^+-]*(?:\*\*|\^)|\s*\(?\s*-?\d{4})")


def is_expression(text: str) -> bool:
  """Whether a text is an expression of integers, + - * / and ()."""
  return arithmetic.parse(text) is not None


def is_inert(text: str) -> bool:
  """Whether a text has no calls and no operators."""
  return INERT.fullmatch(text) is not None


def is_formula(text: str) -> bool:
  """Whether a text is a formula whose powers are small."""
  return FORMULA.fullmatch(text) is not None and not TOWER.search(text)


# Tasks whose scorer executes the answer. An answer is passed to the scorer only
# if the guard returns True.
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

# Tasks that may pass the answer to the scorer of any task.
REFUSED = {"composite"}


def grade(example: Example, answer: str) -> float:
  """Returns 1.0 if the library's score is 1, and 0.0 otherwise.

  The library's partial credit for nearly correct answers counts as 0. Raises
  ValueError for the tasks in REFUSED.
  """
  task = example.domain.partition("/")[2]
  if task in REFUSED:
    raise ValueError(
      f"{task}: its scorer in reasoning-gym may execute the answer; use its "
      "single tasks instead"
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
      raise  # The scorer is broken. Otherwise, the answer is malformed.
    return 0.0


@functools.cache
def _scorer(task: str) -> Callable[[str, dict], float]:
  from reasoning_gym import get_score_answer_fn  # A second to import.

  return get_score_answer_fn(task)
