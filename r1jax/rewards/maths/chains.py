"""Chains of equations: "m + n = 256 + 37 = 293" gives the value 293."""

import re

from r1jax.rewards.maths import formulas, latex, quantity, structure

# Names that have a value: x, f(x), \angle ABC, \overline{AB}, P(A), \cos A.
LETTERS = r"(?:[a-zA-Z]|\\[a-zA-Z]+)(?:_\w|_\{[^{}]*\}|\^\{-1\})?'?"
ARGUMENT = r"\([^()+=]*(?:\([^()+]*\))?[^()+]*\)"
ATOM = (
  rf"m?\\angle ?\w{{1,3}}|\\overline\{{?[A-Z]{{2}}\}}?|\\triangle ?[A-Z]{{3}}"
  rf"|[A-Z]{{2}}\^2|\|?[A-Z]{{1,2}}\|?|\|{LETTERS}\||\[[A-Z]{{3,6}}\]"
  rf"|\\lfloor ?{LETTERS}\\rfloor"
  rf"|\\(?:sin|cos|tan|cot|sec|csc|det|deg) ?{LETTERS}"
  rf"|[fghFGHPEV]\([^()]*\)|{LETTERS}(?:{ARGUMENT})?"
)
FUNCTION = re.compile(
  rf"(?:{ATOM})(?:[/:](?:{ATOM}))?|\\frac\{{(?:{ATOM})\}}\{{(?:{ATOM})\}}"
)
WORDS = re.compile(r"\\text\{[^{}]*\}")
DEGREE = "deg"
EQUALITY = re.compile(r"=|\\(?:approx|simeq|doteq)(?![a-zA-Z])")


def sides(text: str) -> list[str]:
  """Returns the sides of an equation; one side if there is no equals sign."""
  if not EQUALITY.search(text):
    return [text]
  return structure.split(EQUALITY.sub("=", text), "=")


def named(chain: list[str]) -> list[str]:
  """Returns the value that a chain gives to a name or to a ratio of two names.

  The list has one element, or none if neither end of the chain is a name.
  """
  first, *_, last = map(latex.squeeze, chain)
  if FUNCTION.fullmatch(first) or WORDS.fullmatch(chain[0]):
    return [chain[-1]]
  return [chain[0]] if FUNCTION.fullmatch(last) else []


def values(chain: list[str]) -> list[str]:
  """Returns the sides of a chain that are numbers."""
  return [side for side in chain if _number(side) is not None]


def _number(text: str) -> formulas.Number | None:
  head, _ = quantity.split_unit(text)
  if number := quantity.read(head):
    return number.value / 100 if number.percent else number.value
  return formulas.constant(head)


def is_consistent(chain: list[str]) -> bool:
  """Whether all numbers of a chain are equal, apart from rounding."""
  numbers = values(chain)
  return all(map(_rounds_to, numbers[1:], numbers))


def _rounds_to(one: str, other: str) -> bool:
  """Whether two numbers are equal up to rounding, or degrees and radians."""
  numbers = [formulas.inexact(_number(text)) for text in (one, other)]
  step = max(map(_last_digit, (one, other)))
  if formulas.same(*numbers) or abs(numbers[0] - numbers[1]) <= step / 2:
    return True
  degrees = [DEGREE in quantity.split_unit(text)[1] for text in (one, other)]
  if degrees[0] == degrees[1]:
    return False
  angle, number = numbers if degrees[0] else reversed(numbers)
  return formulas.same(angle * formulas.MP.pi / 180, number)  # 90 and pi/2


def _last_digit(text: str) -> float:
  """Returns the unit of the last decimal place: 0.01 for 3.14, 0 for 3."""
  match = re.search(r"\d\.(\d+)", text)
  return 10.0 ** -len(match[1]) if match else 0.0
