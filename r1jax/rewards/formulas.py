r"""Formulas evaluated at one point, to tell quickly that two are different.

Formulas that are equal have equal values wherever both have one. So different
values decide; equal ones, and formulas that are not understood here, do not.
Every letter is a number of its own, as is a function's name: f(x+1) = f(1+x)
holds for a product too. Powers of negative numbers, logarithms without a base
and the like are read in several ways, and are not understood.
"""

import cmath
import functools
import math
import re
import zlib

TOKEN = re.compile(
  r"\\[a-zA-Z]+|\d+(?:\.\d+)?|\.\d+|[a-zA-Z](?:_\w|_\{\w+\})?|\s+|.", re.DOTALL
)
FUNCTIONS = {
  r"\sin": cmath.sin,
  r"\cos": cmath.cos,
  r"\tan": cmath.tan,
  r"\cot": lambda x: 1 / cmath.tan(x),
  r"\sec": lambda x: 1 / cmath.cos(x),
  r"\csc": lambda x: 1 / cmath.sin(x),
  r"\exp": cmath.exp,
  r"\ln": cmath.log,
}
GREEK = {rf"\{name}" for name in "alpha beta gamma theta lambda mu phi".split()}
CONSTANTS = {r"\pi": math.pi, "e": math.e, "i": 1j}
VARIABLE = re.compile(
  rf"\\(?:{'|'.join(sorted(name[1:] for name in GREEK))})"
  r"|(?<!\\)(?<![a-zA-Z])[a-df-hj-zA-Z]"
)
PRODUCTS = {"*", r"\cdot", r"\times"}
ENDS = {"", "+", "-", ")", "]", "}", "/", "^", "!", *PRODUCTS}
CLOSED_BY = {"(": ")", "[": "]", "{": "}"}
LARGEST = 1e9  # Of a power; of larger ones, floats say too little.


def differ(one: str, other: str) -> bool:
  """True if the formulas have different values; False if that is not known."""
  values = value(one), value(other)
  if None in values:
    return False
  scale = max(1.0, *map(abs, values))
  return abs(values[0] - values[1]) > 1e-6 * scale


def are_one_constant(one: str, other: str) -> bool:
  """True if they have no variables, and one value to nine digits."""
  if VARIABLE.search(one) or VARIABLE.search(other):
    return False
  values = value(one), value(other)
  if None in values:
    return False
  return cmath.isclose(*values, rel_tol=1e-9, abs_tol=1e-12)


@functools.lru_cache(4096)
def value(text: str) -> complex | None:
  """The formula's value at the point; None if it has none, or is not read."""
  tokens = [token for token in TOKEN.findall(text) if not token.isspace()]
  tokens.append("")
  tokens.reverse()  # So that the next one is popped.
  try:
    result = _sum(tokens)
    whole = tokens == [""] and cmath.isfinite(result)
    return result if whole else None
  except (ArithmeticError, ValueError, IndexError, RecursionError):
    return None


def _sum(tokens: list[str]) -> complex:
  total, sign = 0j, 1
  if tokens[-1] in ("+", "-"):
    sign = -1 if tokens.pop() == "-" else 1
  total = sign * _product(tokens)
  while tokens[-1] in ("+", "-"):
    sign = -1 if tokens.pop() == "-" else 1
    total += sign * _product(tokens)
  return total


def _product(tokens: list[str]) -> complex:
  result = _power(tokens)
  while True:
    if tokens[-1] in PRODUCTS:
      tokens.pop()
      result *= _power(tokens)
    elif tokens[-1] == "/":
      tokens.pop()
      result /= _power(tokens)
      if tokens[-1] not in ENDS:
        raise ValueError("1/2x has two readings")
    elif tokens[-1] in ENDS:
      return result
    else:
      result *= _power(tokens)


def _power(tokens: list[str]) -> complex:
  negative = tokens[-1] == "-"
  if negative:
    tokens.pop()
  base = _atom(tokens)
  if tokens[-1] == "!":
    tokens.pop()
    if base.imag or base.real not in range(21):
      raise ValueError("a factorial of no small number")
    base = complex(math.factorial(int(base.real)))
  if tokens[-1] == "^":
    tokens.pop()
    base = _raise(base, _argument(tokens))
  return -base if negative else base


def _raise(base: complex, exponent: complex) -> complex:
  whole = not exponent.imag and exponent.real == round(exponent.real)
  if not whole and (base.imag or base.real < 0):
    raise ValueError("roots of negative numbers have two readings")
  result = base**exponent
  if abs(result) > LARGEST:
    raise ValueError("too large to compare")
  return result


def _atom(tokens: list[str]) -> complex:
  token = tokens.pop()
  if token[:1].isdigit() or token[:1] == ".":
    return complex(float(token))
  if token in ("(", "[", "{"):
    result = _sum(tokens)
    if tokens.pop() != CLOSED_BY[token]:
      raise ValueError("brackets do not match")
    return result
  if token == r"\frac":
    over = _argument(tokens)
    return over / _argument(tokens)
  if token == r"\sqrt" and "".join(tokens[-3:]).endswith("-{"):
    if re.match(r"[\d.]", tokens[-3]) and tokens[-4] == "}":
      return 1j * abs(_argument(tokens)) ** 0.5
  if token == r"\sqrt":
    degree = _atom(tokens) if tokens[-1] == "[" else 2 + 0j
    under = _argument(tokens)
    if not under.imag and under.real < 0 and degree in (3, 5, 7):
      return -_raise(-under, 1 / degree)
    return _raise(under, 1 / degree)
  if token in FUNCTIONS:
    if tokens[-1] not in ("(", "{") or tokens[-1] == "^":
      raise ValueError("where the argument ends is not plain")
    return FUNCTIONS[token](_atom(tokens))
  if token in CONSTANTS:
    return complex(CONSTANTS[token])
  if token in GREEK or re.match("[a-zA-Z]", token):
    # Little above 1, so that high powers stay small.
    return complex(1.05 + 0.2 * zlib.crc32(token.encode()) / 2**32)
  raise ValueError(f"unknown: {token}")


def _argument(tokens: list[str]) -> complex:
  """What stands in braces, or one sign."""
  if tokens[-1] == "-" or tokens[-1] == "{":
    return _power(tokens) if tokens[-1] == "-" else _atom(tokens)
  if re.match(r"\d|[a-zA-Z]$", tokens[-1]):
    return _atom(tokens)
  if tokens[-1] in CONSTANTS or tokens[-1] == "(":
    return _atom(tokens)
  raise ValueError("an argument is missing")
