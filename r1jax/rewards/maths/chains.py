"""Chains of equal sides: m + n = 256 + 37 = 293 says that it is 293."""

import re

from r1jax.rewards.maths import formulas, latex, quantity, structure

# What a value is given to: x, f(x), \angle ABC, \overline{AB}, P(A), \cos A.
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
  """What stands between signs of equality; one text where there is none."""
  if not EQUALITY.search(text):
    return [text]
  return structure.split(EQUALITY.sub("=", text), "=")


def named(chain: list[str]) -> list[str]:
  """What a name, or a ratio of two, is said to equal; nothing otherwise."""
  first, *_, last = map(latex.squeeze, chain)
  if FUNCTION.fullmatch(first) or WORDS.fullmatch(chain[0]):
    return [chain[-1]]
  return [chain[0]] if FUNCTION.fullmatch(last) else []


def values(chain: list[str]) -> list[str]:
  """Those sides of a chain that are numbers."""
  return [side for side in chain if _number(side) is not None]


def _number(text: str) -> formulas.Number | None:
  head, _ = quantity.split_unit(text)
  if number := quantity.read(head):
    return number.value / 100 if number.percent else number.value
  return formulas.constant(head)


def is_consistent(chain: list[str]) -> bool:
  """Whether the numbers of a chain are one, some of them rounded."""
  numbers = values(chain)
  return all(map(_rounds_to, numbers[1:], numbers))


def _rounds_to(one: str, other: str) -> bool:
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
  """What a 1 in the last place of a decimal number is worth; 0 for others."""
  match = re.search(r"\d\.(\d+)", text)
  return 10.0 ** -len(match[1]) if match else 0.0
