r"""Compares formulas by their values at several points.

Rational values are computed exactly, all others to 100 digits. Formulas without
variables are equal if their values are. Otherwise each variable is replaced by
a rational number at each of several points: formulas that agree at all points
are equal (Schwartz, "Fast probabilistic algorithms for verification of
polynomial identities", 1980). Ambiguous notation has no value: 1/2x, or roots
of negative numbers. f(x) is treated as a variable of that name.
"""

import functools
import math
import re
import zlib
from fractions import Fraction

import mpmath

MP = mpmath.mp.clone()  # sympy changes the precision of the shared context.
MP.dps = 100
TOLERANCE = MP.mpf(10) ** -60  # Relative; larger than any rounding error.
ZERO = MP.mpf(10) ** -80  # Differences below this count as 0.
MAX_BITS = 2**15  # Of an exact number; enough for 3000!.
MAX_FACTORS = 3000  # The largest n of n!.
MAX_EXPONENT = 2**20  # Of inexact numbers.

TOKEN = re.compile(
  r"\\(?:vec|hat|bar|dot|ddot|tilde|overline|mathbf|mathcal)\{[^{}]*\}"
  r"|\\[a-zA-Z]+|\d+(?:\.\d+)?|\.\d+|\s+|.",
  re.DOTALL,
)
FUNCTIONS = {
  r"\sin": MP.sin,
  r"\cos": MP.cos,
  r"\tan": MP.tan,
  r"\cot": MP.cot,
  r"\sec": MP.sec,
  r"\csc": MP.csc,
  r"\sinh": MP.sinh,
  r"\cosh": MP.cosh,
  r"\tanh": MP.tanh,
  r"\arcsin": MP.asin,
  r"\arccos": MP.acos,
  r"\arctan": MP.atan,
  r"\exp": MP.exp,
  r"\ln": MP.ln,
  r"\lg": MP.log10,
}
SYMBOLS = {
  "\\" + name
  for name in (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota "
    "kappa lambda mu nu xi rho varrho sigma tau upsilon phi varphi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega hbar ell"
  ).split()
}
CONSTANTS = {r"\pi": MP.pi, "e": MP.e, "i": MP.mpc(0, 1)}
PRODUCTS = {"*", r"\cdot", r"\times"}
ENDS = {"", "+", "-", ")", "]", "}", "/", r"\div", "^", "!", *PRODUCTS}
CLOSED_BY = {"(": ")", "[": "]", "{": "}", "|": "|"}
APPLIED = set("fghFGHP")  # Letters that are functions before a bracket.

# The points: the size of the variables' values, and whether some are negative.
# Identities such as ln(xy) = ln x + ln y hold only for positive values, so that
# a difference at the points with negative values does not mean "unequal".
POSITIVE = (1, 40)
MIXED_SIGNS = (-1, -3, -40, -1000, -100_000)

Number = Fraction | MP.mpf | MP.mpc


def compare(one: str, other: str) -> bool | None:
  """Whether two formulas are equal; None if that cannot be decided."""
  names = variables(one) | variables(other)
  applied = any("(" in name for name in names)
  for point in POSITIVE if names else POSITIVE[:1]:
    values = value(one, point), value(other, point)
    if None in values:
      return None
    if not same(*values):
      # f(1+x) and f(x+1) are equal, but are two variables here.
      return None if variables(one) and variables(other) and applied else False
  for point in MIXED_SIGNS if names else ():
    values = value(one, point), value(other, point)
    if values != (None, None) and (None in values or not same(*values)):
      return None
  return True


def same(one: Number, other: Number) -> bool:
  """Whether two numbers are equal: exact ones exactly, others to 60 digits."""
  if isinstance(one, Fraction) and isinstance(other, Fraction):
    return one == other
  difference = abs(inexact(one) - inexact(other))
  if not (one and other):
    return difference < ZERO
  return difference <= TOLERANCE * max(abs(inexact(one)), abs(inexact(other)))


def inexact(number: Number) -> Number:
  """Returns a number as a decimal number of 100 digits."""
  if isinstance(number, Fraction):
    return MP.mpf(number.numerator) / number.denominator
  return number


def proportional(one: str, other: str) -> bool | None:
  """Whether one formula is a multiple of the other; None if undecided."""
  ratios = []
  for point in (*POSITIVE, *MIXED_SIGNS):
    values = value(one, point), value(other, point)
    if None in values:
      return None
    if (values[0] == 0) != (values[1] == 0):
      return False
    if values[0]:
      ratios.append(_over(*values))
  if not ratios or not (variables(one) and variables(other)):
    return None
  if all(same(ratio, ratios[0]) for ratio in ratios):
    return True
  applied = any("(" in name for name in variables(one) | variables(other))
  return None if applied else False


def constant(text: str) -> Number | None:
  """Returns the value of a formula without variables; None for any other."""
  number, names = _evaluate(text, 1)
  return None if names else number


def variables(text: str) -> set[str]:
  """Returns the names of a formula's variables, with their subscripts."""
  return {*_evaluate(text, 1)[1]}


def value(text: str, point: int = 1) -> Number | None:
  """Returns a formula's value at a point; None if it has none or is invalid."""
  return _evaluate(text, point)[0]


@functools.lru_cache(8192)
def _evaluate(text: str, point: int) -> tuple[Number | None, frozenset[str]]:
  """Returns the value at a point, and the variables read up to an error."""
  reader = _Reader(text, {}, point)
  result = reader.read()
  return result, frozenset(reader.variables)


def value_with(text: str, values: dict[str, Fraction]) -> Number | None:
  """Returns a formula's value; None if `values` lacks one of its variables."""
  reader = _Reader(text, values)
  result = reader.read()
  return result if reader.variables <= {*values} else None


class _Reader:
  """A recursive descent parser that evaluates a formula while it parses it.

  Each method parses one rule of the grammar and returns its value.
  """

  def __init__(self, text: str, values: dict[str, Fraction], point: int = 1):
    self.tokens = [t for t in TOKEN.findall(text) if not t.isspace()] + [""]
    self.at = 0
    self.bars = 0  # Absolute values that are open: their "|".
    self.values = values
    self.point = point
    self.variables: set[str] = set()

  def read(self) -> Number | None:
    try:
      result = self.sum()
      if self.next == "" and MP.isfinite(inexact(result)):
        return result
    except (ArithmeticError, ValueError, IndexError, RecursionError):
      pass
    return None

  @property
  def next(self) -> str:
    return self.tokens[self.at]

  def take(self) -> str:
    self.at += 1
    return self.tokens[self.at - 1]

  def accept(self, *tokens: str) -> bool:
    found = self.next in tokens
    self.at += found
    return found

  def sum(self) -> Number:
    negative = self.next == "-"
    self.accept("+", "-")
    total = self.product()
    total = -total if negative else total
    while self.next in ("+", "-"):
      add = self.take() == "+"
      term = self.product()
      total = _plus(total, term if add else -term)
    return total

  def product(self) -> Number:
    result = self.power()
    while True:
      if self.accept(*PRODUCTS):
        result = _times(result, self.power())
      elif self.accept("/", r"\div"):
        result = _over(result, self.power())
        if self.next not in ENDS and not (self.bars and self.next == "|"):
          raise ValueError("1/2x has two readings")
      elif self.next in ENDS or self.bars and self.next == "|":
        return result
      else:
        result = _times(result, self.power())

  def power(self) -> Number:
    negative = self.accept("-")
    base = self.atom()
    if self.accept("!"):
      base = _factorial(base)
    if self.accept("^"):
      if "".join(self.tokens[self.at : self.at + 3]) == r"{\circ}":
        self.at += 3
        base = _times(base, MP.pi / 180)
      else:
        base = _raise(base, self.argument())
    return -base if negative else base

  def atom(self) -> Number:
    token = self.take()
    if token[:1].isdigit() or token[:1] == ".":
      return self.mixed(token) if token.isdigit() else Fraction(token)
    if token in CLOSED_BY:
      return self.bracketed(token)
    if token == r"\frac":
      return _over(self.argument(), self.argument())
    if token == r"\binom":
      return _binomial(self.argument(), self.argument())
    if token == r"\sqrt":
      degree = self.bracketed("[") if self.accept("[") else Fraction(2)
      return _root(self.argument(), degree)
    if token in FUNCTIONS or token == r"\log":
      return self.function(token)
    if token in CONSTANTS and self.next != "_":
      number = CONSTANTS[token]
      return +number if token != "i" else number
    if token in SYMBOLS or re.match(r"[a-zA-Z]|\\\w+\{", token):
      return self.variable(token)
    raise ValueError(f"unknown: {token}")

  def mixed(self, whole: str) -> Fraction:
    r"""Parses an integer or a mixed number: 2\frac{1}{2} is 5/2."""
    shape = self.tokens[self.at : self.at + 7]
    if "".join(shape[:2] + shape[3:5] + shape[6:]) == r"\frac{}{}":
      over, under = shape[2], shape[5]
      if over.isdigit() and under.isdigit() and 0 < int(over) < int(under):
        self.at += 7
        return int(whole) + Fraction(int(over), int(under))
    return Fraction(whole)

  def bracketed(self, opening: str) -> Number:
    bars, self.bars = self.bars, int(opening == "|")
    result = self.sum()
    if self.take() != CLOSED_BY[opening]:
      raise ValueError("brackets do not match")
    self.bars = bars
    return abs(result) if opening == "|" else result

  def argument(self) -> Number:
    """Parses an argument: a group in brackets, or a single token."""
    if self.next == "-":
      return self.power()
    if self.next in ("{", "(") or re.match(r"\w|\\", self.next):
      return self.atom()
    raise ValueError("an argument is missing")

  def function(self, name: str) -> Number:
    r"""Parses a function and its argument: \sin^2 x, \ln 2x, \log_2(3)."""
    base = None
    if name == r"\log" and self.accept("_"):
      base = self.argument()
    exponent = self.argument() if self.accept("^") else Fraction(1)
    if exponent == -1:
      raise ValueError("f^{-1} is the inverse function or 1/f")
    if self.next in ("(", "{", "[", "|"):
      inner = self.bracketed(self.take())
    else:
      inner = self.power()
      while re.match(r"[\d.a-zA-Z]|\\(?:frac|sqrt|pi)$", self.next) or (
        self.next in SYMBOLS
      ):
        inner = _times(inner, self.power())
      if self.next == "/":
        raise ValueError("the end of the argument is ambiguous")
    inner = inexact(inner)
    if name != r"\log":
      result = FUNCTIONS[name](inner)
    elif base is None:  # The base is e or 10, so that a factor is unknown.
      result = MP.ln(inner) * inexact(self.variable(name))
    else:
      result = MP.ln(inner) / MP.ln(inexact(base))
    return _raise(result, exponent)

  def variable(self, name: str) -> Fraction:
    """Parses a variable; its name includes its subscript and primes."""
    if self.accept("_"):
      opening = self.take()
      subscript = [opening]
      while opening == "{" and subscript.count("{") > subscript.count("}"):
        subscript.append(self.take())
        if not subscript[-1]:
          raise ValueError("a subscript does not end")
      name += "_" + "".join(subscript).removeprefix("{").removesuffix("}")
    while self.accept("'"):
      name += "'"
    if name in APPLIED and self.next == "(":
      start = self.at
      self.bracketed(self.take())
      name += "".join(self.tokens[start : self.at])
    self.variables.add(name)
    if name in self.values:
      return self.values[name]
    # The value has few bits, so that high powers stay small.
    seed = zlib.crc32(f"{name} {self.point}".encode())
    number = abs(self.point) * (1 + Fraction(seed % 2**14, 2**16))
    return -number if self.point < 0 and seed >> 31 else number


def _small(number: Fraction) -> Fraction:
  bits = number.numerator.bit_length() + number.denominator.bit_length()
  if bits > MAX_BITS:
    raise ValueError("too large to compare")
  return number


def _plus(one: Number, other: Number) -> Number:
  """Returns the sum; 0 if only rounding errors are left of it."""
  if isinstance(one, Fraction) and isinstance(other, Fraction):
    return _small(one + other)
  one, other = inexact(one), inexact(other)
  return Fraction(0) if abs(one + other) < ZERO * abs(one) else one + other


def _times(one: Number, other: Number) -> Number:
  if isinstance(one, Fraction) and isinstance(other, Fraction):
    return _small(one * other)
  return inexact(one) * inexact(other)


def _over(one: Number, other: Number) -> Number:
  if not other:
    raise ZeroDivisionError
  return _times(one, 1 / other)


def _whole(number: Number) -> bool:
  return isinstance(number, Fraction) and number.denominator == 1


def _factorial(number: Number) -> Fraction:
  if not _whole(number) or not 0 <= number <= MAX_FACTORS:
    raise ValueError("a factorial of no small number")
  return Fraction(math.factorial(int(number)))


def _binomial(total: Number, chosen: Number) -> Fraction:
  if not (_whole(total) and _whole(chosen)) or not 0 <= total <= MAX_FACTORS:
    raise ValueError("a binomial of no small numbers")
  return Fraction(math.comb(int(total), int(chosen)) if chosen >= 0 else 0)


def _raise(base: Number, exponent: Number) -> Number:
  if _whole(exponent) and isinstance(base, Fraction):
    bits = base.numerator.bit_length() + base.denominator.bit_length()
    if abs(exponent) * (bits - 1) > MAX_BITS:
      raise ValueError("too large to compare")
    return base ** int(exponent)
  if not _whole(exponent) and (
    MP.im(inexact(base)) or MP.re(inexact(base)) < 0
  ):
    raise ValueError("roots of negative numbers have two readings")
  if abs(exponent) > MAX_EXPONENT:
    raise ValueError("too large to compare")
  return MP.power(inexact(base), inexact(exponent))


def _root(number: Number, degree: Number) -> Number:
  if not _whole(degree) or degree < 2:
    raise ValueError("a root of no whole degree")
  if MP.im(inexact(number)) == 0 and MP.re(inexact(number)) < 0:
    if degree % 2:
      return -_root(-number, degree)
    if degree > 2:
      raise ValueError("roots of negative numbers have two readings")
    return MP.sqrt(inexact(number))  # Imaginary.
  return _raise(number, 1 / degree)
