r"""math-verify, asked about two formulas and nothing else.

It is handed one \boxed{} alone: of whole texts it may pick another answer than
the last, and of a gold answer without delimiters it reads only a part. Its own
timeouts need signals and the main thread, so they are off: the pool's limit
holds instead.
"""

import functools
import logging
import math
import re

from r1jax.rewards.maths.latex import MAX_LENGTH

MAX_DEPTH = 16  # Nested brackets of an answer.

# Numbers that the library would compute, digit by digit, and what its parser
# reads in more ways the more there is of it.
HUGE = re.compile(
  r"\^\s*[{(][^{}a-zA-Z\\]*\^|\^[\s{(]*-?[\d.]+[\s}]*\^"  # 9^{9^9}
  r"|\^[^()]*\d{3}[^()]*\)\s*\^\s*\{?\d{3}"  # (9^{999})^{999}
  r"|(\^|\*\*)[\s{(]*-?\d{5}"  # 9^{99999}
  r"|\d{5}[\s})]*!|!\s*(?:\\right)?[)}\]]*\s*!"  # 99999!, (99!)!
  r"|binom\s*\{\s*\d{5,}\s*\}\s*\{?\s*\d{3}"
  r"|\\exp\W*\\exp|_\{[^{}]*_\{[^{}]*_\{|(?:\|[^|]*){9}",
  re.DOTALL,
)
# t as an argument, which math-verify cannot read without brackets.
ARGUMENT = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc)(?:\^\{?\d\}?)?)\s*t\b")

MAX_TERMS = 1000  # Of a power of a sum, were it multiplied out.
MAX_FACTORS = 10_000  # Of a factorial, and what is made of such.

# Formulas of many kinds: the parser learns its way from what it has read, and
# the first of a kind takes up to a tenth of a second.
COMMON = (
  r"\frac{\sqrt{3}}{2}",
  r"-3x^{2}+2x-1",
  r"(-\infty,2]\cup[3,5)",
  r"(1,-2)",
  r"x=5",
  r"50^{\circ}",
)


class UnreadableGold(Exception):
  """The example's own answer is nothing that answers can be compared with."""


def well_formed(text: str) -> bool:
  """True if its braces close, no box ends within it, and little is nested."""
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
def equivalent(gold: str, given: str, equations: bool = False) -> bool:
  """What math-verify says of two formulas, or of two that should be 0.

  Raises UnreadableGold if it cannot read the first.
  """
  if HUGE.search(gold) or not well_formed(gold):
    raise UnreadableGold(gold)
  if HUGE.search(given) or not well_formed(given):
    return False
  try:
    parsed = _parse_gold(gold)
  except Exception as error:
    raise UnreadableGold(gold) from error
  if not parsed:
    raise UnreadableGold(gold)
  try:
    other = _parse(given)
    if _is_vast(parsed[0]) or _is_vast(other[0]):
      return str(parsed[0]) == str(other[0])  # Terms in one order.
    if equations:
      return _proportional(parsed[0], other[0])
    numbers = parsed[0], other[0]
    if all(getattr(n, "is_number", 0) and n.is_finite for n in numbers):
      return _same_number(*numbers)
    return _verify(parsed, other)
  except Exception:  # The library stumbled over what the policy wrote.
    return False


def warm() -> None:
  """Has the library read COMMON formulas, so that others are read faster."""
  for text in COMMON:
    _verify(_parse(text), _parse(text))


def _is_vast(formula) -> bool:
  """True where a comparison would compute more than fits into its time."""
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
  """Relatively: math-verify rounds to six decimals, and 1e-7 would be 0."""
  difference = (one - other).evalf(30, maxn=200)
  scale = max(abs(one.evalf(30)), abs(other.evalf(30)))
  return bool(difference.is_number and abs(difference) <= 1e-15 * scale)


def _proportional(one, other) -> bool:
  import sympy

  ratio = sympy.cancel(one / other)
  return bool(ratio.is_number and ratio.is_finite and ratio != 0)


@functools.lru_cache(4096)
def _parse_gold(text: str) -> list:
  return _parse(text)


def _parse(text: str) -> list:
  """What math-verify makes of an answer; empty if it cannot be read."""
  library, config = _math_verify()
  text = ARGUMENT.sub(r"\1(t)", text.strip().strip("$"))
  return library.parse(
    rf"\boxed{{{text}}}",
    [config],
    fallback_mode="no_fallback",
    extraction_mode="first_match",
    parsing_timeout=None,
  )


def _verify(gold: list, given: list) -> bool:
  """Whether they are equal; the order matters to math-verify."""
  library, _ = _math_verify()
  return library.verify(gold, given, timeout_seconds=None)


@functools.cache
def _math_verify():
  import math_verify  # Half a second to import.

  logging.getLogger("math_verify").setLevel(logging.ERROR)  # "No timeout."
  return math_verify, math_verify.LatexExtractionConfig(
    boxed_match_priority=0, try_extract_without_anchor=False
  )
