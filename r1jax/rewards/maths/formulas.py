r"""Formulas evaluated at points, to decide whether two are equal.

What is rational is computed exactly, everything else to 100 digits. Formulas
without variables are equal if their values are. For others each letter stands
for a rational number, a different one at each of several points (Schwartz,
"Fast probabilistic algorithms for verification of polynomial identities",
1980): one point where the values differ decides, and agreement at all of them
does too.
What has several readings, such as 1/2x or roots of negative numbers, has no
value here; f(x) is a variable of that name.
"""

import functools
import math
import re
import zlib
from fractions import Fraction

import mpmath

MP = mpmath.mp.clone()  # sympy changes the precision of the shared context.
MP.dps = 100
TOLERANCE = MP.mpf(10) ** -60  # Relative; how far rounding errors may reach.
ZERO = MP.mpf(10) ** -80  # A difference that cancels to less is 0.
MAX_BITS = 2**15  # Of an exact number; 3000! is one.
MAX_FACTORS = 3000  # Of a factorial.
MAX_EXPONENT = 2**20  # Of a number that is not exact.

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
APPLIED = set("fghFGHP")  # Before a bracket these may be functions.

# Where formulas are compared: the size of the variables, and whether some of
# them are negative. Identities such as ln(xy) = ln x + ln y hold where all is
# positive, and decide nothing elsewhere.
POSITIVE = (1, 40)
MIXED_SIGNS = (-1, -3, -40, -1000, -100_000)

Number = Fraction | MP.mpf | MP.mpc


def compare(one: str, other: str) -> bool | None:
  """Whether two formulas are equal; None if that is not known."""
  names = variables(one) | variables(other)
  applied = any("(" in name for name in names)
  for point in POSITIVE if names else POSITIVE[:1]:
    values = value(one, point), value(other, point)
    if None in values:
      return None
    if not same(*values):
      # f(1+x) is f(x+1), but no number.
      return None if variables(one) and variables(other) and applied else False
  for point in MIXED_SIGNS if names else ():
    values = value(one, point), value(other, point)
    if values != (None, None) and (None in values or not same(*values)):
      return None
  return True


def same(one: Number, other: Number) -> bool:
  """Whether two numbers are equal: exactly, if both are exact."""
  if isinstance(one, Fraction) and isinstance(other, Fraction):
    return one == other
  difference = abs(inexact(one) - inexact(other))
  if not (one and other):
    return difference < ZERO
  return difference <= TOLERANCE * max(abs(inexact(one)), abs(inexact(other)))


def inexact(number: Number) -> Number:
  """The number to 100 digits."""
  if isinstance(number, Fraction):
    return MP.mpf(number.numerator) / number.denominator
  return number


def proportional(one: str, other: str) -> bool | None:
  """Whether one formula is a multiple of the other; None if not known."""
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
  """The value of a formula without variables; None for any other."""
  number, names = _evaluate(text, 1)
  return None if names else number


def variables(text: str) -> set[str]:
  """The letters that stand for numbers, with their subscripts."""
  return {*_evaluate(text, 1)[1]}


def value(text: str, point: int = 1) -> Number | None:
  """The formula's value at a point; None if it has none, or is not read."""
  return _evaluate(text, point)[0]


@functools.lru_cache(8192)
def _evaluate(text: str, point: int) -> tuple[Number | None, frozenset[str]]:
  """The value at a point, and the variables as far as they were read."""
  reader = _Reader(text, {}, point)
  result = reader.read()
  return result, frozenset(reader.variables)


def value_with(text: str, values: dict[str, Fraction]) -> Number | None:
  """The formula's value where its variables have these values, and no other."""
  reader = _Reader(text, values)
  result = reader.read()
  return result if reader.variables <= {*values} else None


class _Reader:
  """Reads and evaluates a formula in one pass."""

  def __init__(self, text: str, values: dict[str, Fraction], point: int = 1):
    self.tokens = [t for t in TOKEN.findall(text) if not t.isspace()] + [""]
    self.at = 0
    self.bars = 0  # Open ones, of absolute values.
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
    r"""2\frac{1}{2} is two and a half."""
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
    """What stands in braces, or one sign."""
    if self.next == "-":
      return self.power()
    if self.next in ("{", "(") or re.match(r"\w|\\", self.next):
      return self.atom()
    raise ValueError("an argument is missing")

  def function(self, name: str) -> Number:
    r"""\sin x, \sin^2 x, \ln 2x, \log_2(3)."""
    base = None
    if name == r"\log" and self.accept("_"):
      base = self.argument()
    exponent = self.argument() if self.accept("^") else Fraction(1)
    if exponent == -1:
      raise ValueError("an inverse, or one over it")
    if self.next in ("(", "{", "[", "|"):
      inner = self.bracketed(self.take())
    else:
      inner = self.power()
      while re.match(r"[\d.a-zA-Z]|\\(?:frac|sqrt|pi)$", self.next) or (
        self.next in SYMBOLS
      ):
        inner = _times(inner, self.power())
      if self.next == "/":
        raise ValueError("where the argument ends is not plain")
    inner = inexact(inner)
    if name != r"\log":
      result = FUNCTIONS[name](inner)
    elif base is None:  # Of base e or 10: a factor that is not known.
      result = MP.ln(inner) * inexact(self.variable(name))
    else:
      result = MP.ln(inner) / MP.ln(inexact(base))
    return _raise(result, exponent)

  def variable(self, name: str) -> Fraction:
    """A letter's value, which depends on its subscript and primes too."""
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
    if name in APPLIED and self.next == "(":  # It may be a function.
      start = self.at
      self.bracketed(self.take())
      name += "".join(self.tokens[start : self.at])
    self.variables.add(name)
    if name in self.values:
      return self.values[name]
    # Of few bits, so that high powers stay small.
    seed = zlib.crc32(f"{name} {self.point}".encode())
    number = abs(self.point) * (1 + Fraction(seed % 2**14, 2**16))
    return -number if self.point < 0 and seed >> 31 else number


def _small(number: Fraction) -> Fraction:
  bits = number.numerator.bit_length() + number.denominator.bit_length()
  if bits > MAX_BITS:
    raise ValueError("too large to compare")
  return number


def _plus(one: Number, other: Number) -> Number:
  """The sum: exact if both are, and 0 where they cancel but for rounding."""
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
    return MP.sqrt(inexact(number))  # i, times the root of what is positive.
  return _raise(number, 1 / degree)
