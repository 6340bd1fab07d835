"""Grades answers to reasoning-gym's tasks by the library's own scorers.

Some scorers run `eval` or sympy's `parse_expr` on the text that they are given,
and through it any code the policy may write: a guard reads the text first.
"""

import functools
from collections.abc import Callable

from r1jax.rewards import arithmetic
from r1jax.types import Example

# What may be shown to the scorer of a task; True lets the text through.
GUARDS: dict[str, Callable[[str], bool]] = {
  "countdown": lambda text: arithmetic.parse(text) is not None,
  "puzzle24": lambda text: arithmetic.parse(text) is not None,
}

# Their scorers execute what they are given, and no guard is written yet.
REFUSED = {
  "binary_matrix",
  "composite",
  "intermediate_integration",
  "n_queens",
  "polynomial_multiplication",
  "simple_integration",
  "spiral_matrix",
  "string_insertion",
}


def grade(example: Example, answer: str) -> float:
  """1 if the library gives the answer its full score, or 0.

  The library's credit for answers that are nearly right is not given.
  Raises ValueError for a task whose scorer executes the answer.
  """
  task = example.domain.partition("/")[2]
  if task in REFUSED:
    raise ValueError(
      f"{task}: its scorer in reasoning-gym executes the answer; write a guard "
      "in r1jax/rewards/reasoning_gym.py, or take another task"
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
