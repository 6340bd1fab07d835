r"""Compares two formulas with the library math-verify.

The library always receives a single \boxed{}. In a whole text it may pick an
answer other than the last, and of a gold answer without delimiters it reads
only a part. Its timeouts are off, because they need signals and the main
thread; the grader pool limits the time instead.
"""

import functools
import logging
import math
import re

from r1jax.rewards.maths.latex import MAX_LENGTH

MAX_DEPTH = 16  # Nested brackets of an answer.

# Numbers with so many digits that the library would not finish, and notation
# for which its parser takes exponential time.
HUGE = re.compile(
  r"\^\s*[{(][^{}a-zA-Z\\]*\^|\^[\s{(]*-?[\d.]+[\s}]*\^"  # 9^{9^9}
  r"|\^[^()]*\d{3}[^()]*\)\s*\^\s*\{?\d{3}"  # (9^{999})^{999}
  r"|(\^|\*\*)[\s{(]*-?\d{5}"  # 9^{99999}
  r"|\d{5}[\s})]*!|!\s*(?:\\right)?[)}\]]*\s*!"  # 99999!, (99!)!
  r"|binom\s*\{\s*\d{5,}\s*\}\s*\{?\s*\d{3}"
  r"|\\exp\W*\\exp|_\{[^{}]*_\{[^{}]*_\{|(?:\|[^|]*){9}",
  re.DOTALL,
)
# The argument t, which math-verify cannot parse without brackets.
ARGUMENT = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc)(?:\^\{?\d\}?)?)\s*t\b")
# A name with primes, which math-verify would drop: f' is not f.
PRIMES = re.compile(
  r"([a-zA-Z]|\\[a-zA-Z]+)(?:_(?:\{([^{}]*)\}|([a-zA-Z\d])))?('+)"
)

MAX_TERMS = 1000  # Of a power of a sum, after expansion.
MAX_FACTORS = 10_000  # Of factorials, binomials and gamma functions.

# One formula of each kind. The parser caches its decisions; the first formula
# of a kind takes up to a tenth of a second.
COMMON = (
  r"\frac{\sqrt{3}}{2}",
  r"-3x^{2}+2x-1",
  r"(-\infty,2]\cup[3,5)",
  r"(1,-2)",
  r"x=5",
  r"50^{\circ}",
)


class UnreadableGold(Exception):
  """The gold answer cannot be compared with anything."""


def well_formed(text: str) -> bool:
  """Whether the braces of a text match and are at most MAX_DEPTH deep."""
  if len(text) > MAX_LENGTH:
    return False
  depth = braces = 0
  for char in text.replace(r"\{", "(").replace(r"\}", ")"):
    braces += (char == "{") - (char == "}")
    depth += (char in "{([") - (char in "})]")
    if braces < 0 or depth > MAX_DEPTH:
      return False
  return braces == 0


@functools.lru_cache(4096)
def equivalent(gold: str, answer: str, equations: bool = False) -> bool:
  """Whether math-verify finds two formulas equal.

  With `equations`, the formulas are the left sides of two equations whose right
  side is 0, and are equal if one is a multiple of the other.

  Raises UnreadableGold if the first formula cannot be parsed.
  """
  if HUGE.search(gold) or not well_formed(gold):
    raise UnreadableGold(gold)
  if HUGE.search(answer) or not well_formed(answer):
    return False
  try:
    parsed = _parse_gold(gold)
  except Exception as error:
    raise UnreadableGold(gold) from error
  if not parsed:
    raise UnreadableGold(gold)
  try:
    other = _parse(answer)
    if _is_vast(parsed[0]) or _is_vast(other[0]):
      return str(parsed[0]) == str(other[0])  # sympy sorts the terms.
    if equations:
      return _proportional(parsed[0], other[0])
    numbers = parsed[0], other[0]
    if all(getattr(n, "is_number", 0) and n.is_finite for n in numbers):
      return _same_number(*numbers)
    return _verify(parsed, other)
  except Exception:  # The policy's text can raise anything in the library.
    return False


def warm() -> None:
  """Parses the COMMON formulas, so that the library parses others faster."""
  for text in COMMON:
    _verify(_parse(text), _parse(text))


def _is_vast(formula) -> bool:
  """Whether comparing a formula would take longer than the grader may."""
  import sympy

  if not isinstance(formula, sympy.Basic):
    return False
  for part in sympy.postorder_traversal(formula):
    match part:
      case sympy.Pow(base=sympy.Add(args=terms), exp=sympy.Integer(p=power)):
        if math.comb(abs(power) + len(terms) - 1, abs(power)) > MAX_TERMS:
          return True
      case sympy.factorial() | sympy.binomial() | sympy.gamma():
        if any(n.is_number and abs(n) > MAX_FACTORS for n in part.args):
          return True
  return False


def _same_number(one, other) -> bool:
  """Whether two numbers agree to 15 digits.

  math-verify itself rounds to six decimals, so that 1e-7 would equal 0.
  """
  difference = (one - other).evalf(30, maxn=200)
  scale = max(abs(one.evalf(30)), abs(other.evalf(30)))
  return bool(difference.is_number and abs(difference) <= 1e-15 * scale)


def _proportional(one, other) -> bool:
  """Whether one formula is a multiple of the other."""
  import sympy

  ratio = sympy.cancel(one / other)
  return bool(ratio.is_number and ratio.is_finite and ratio != 0)


@functools.lru_cache(4096)
def _parse_gold(text: str) -> list:
  return _parse(text)


def _parse(text: str) -> list:
  """Returns math-verify's readings of an answer; none if it cannot parse it."""
  library, config = _math_verify()
  text = ARGUMENT.sub(r"\1(t)", text.strip().strip("$"))
  text = PRIMES.sub(_subscript, text)
  return library.parse(
    rf"\boxed{{{text}}}",
    [config],
    fallback_mode="no_fallback",
    extraction_mode="first_match",
    parsing_timeout=None,
  )


def _subscript(name: re.Match) -> str:
  """A name whose primes are part of its subscript."""
  letter, braced, single, primes = name.groups(default="")
  return f"{letter}_{{{braced}{single}{'prime' * len(primes)}}}"


def _verify(gold: list, answer: list) -> bool:
  """Whether two parsed answers are equal; math-verify depends on the order."""
  library, _ = _math_verify()
  return library.verify(gold, answer, timeout_seconds=None)


@functools.cache
def _math_verify():
  """Returns the library and the config under which it reads a box."""
  import math_verify  # Half a second to import.

  logging.getLogger("math_verify").setLevel(logging.ERROR)  # "No timeout."
  return math_verify, math_verify.LatexExtractionConfig(
    boxed_match_priority=0, try_extract_without_anchor=False
  )
