r"""Parses and compares sets of real numbers: intervals and inequalities.

(-\infty,3)\cup(3,\infty), \mathbb{R}\setminus\{3\} and x \ne 3 are the same
set. Every bound must be a number; `structure` handles bounds with variables.
"""

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from r1jax.rewards.maths import formulas, latex
from r1jax.rewards.maths.formulas import MP

MAX_PIECES = 64
INFINITY = MP.inf
ROUNDING = MP.mpf(10) ** -6  # Relative tolerance of bounds with decimals.

LIKELY = re.compile(
  r"[<>]|\\(?:le|ge|ne|cup|cap|mathbb|infty|emptyset)(?![a-zA-Z])|real|^R$"
  r"|^[^(\[]{0,24}[(\[].*[,;]"
)
RELATION = re.compile(r"(<|>|\\(?:le|ge|ne)(?![a-zA-Z]))")
UNITED = re.compile(
  r"\\text\{[\s,]*(?:or|或)[\s,]*\}|(?<![a-zA-Z\\])or(?![a-zA-Z])|或"
  r"|\\(?:cup|lor|vee)(?![a-zA-Z])"
)
COMMON = re.compile(
  r"\\text\{[\s,]*(?:and|且)[\s,]*\}|(?<![a-zA-Z\\])and(?![a-zA-Z])|且"
  r"|\\(?:cap|land|wedge)(?![a-zA-Z])"
)
WITHOUT = re.compile(
  r"\\(?:setminus|smallsetminus|backslash)(?![a-zA-Z])"
  r"|(?<=\\mathbb\{R\})\s*-\s*(?=\\\{)"
)
NAMED = re.compile(
  r"\s*(?:[a-zA-Z](?:_\w)?|\\[a-zA-Z]+)\s*(?:\\in(?![a-zA-Z])\s*|=\s*(?=[(\[\\]))"
)
EXCEPT = re.compile(
  r"(?:all)?real(?:s|numbers?)?(?:[a-z]?)except(?:for)?(?:[a-z]=)?(.+)"
)
BUILDER = re.compile(r"([^|:]*?)(?:\||\\mid(?![a-zA-Z])|:)(.*)", re.DOTALL)
APPLIED = re.compile(r"[a-zA-Z]\([^()]*\)")
FLIP = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}
REALS = {r"\mathbb{R}", r"\R", "allrealnumbers", "allreals", "realnumbers", "R"}
OF_SIGN = {
  ">": {r"\mathbb{R}^+", r"\mathbb{R}^{+}", r"\mathbb{R}_{>0}"},
  "<": {r"\mathbb{R}^-", r"\mathbb{R}^{-}", r"\mathbb{R}_{<0}"},
  r"\ge": {r"\mathbb{R}_{\ge0}", r"\mathbb{R}_0^+", r"\mathbb{R}_{0}^{+}"},
  r"\le": {r"\mathbb{R}_{\le0}", r"\mathbb{R}_0^-", r"\mathbb{R}_{0}^{-}"},
  r"\ne": {r"\mathbb{R}^*", r"\mathbb{R}^{*}", r"\mathbb{R}^{\times}"},
}


class Piece(NamedTuple):
  """An interval, with or without each of its bounds."""

  low: formulas.Number
  high: formulas.Number
  with_low: bool
  with_high: bool


Pieces = tuple[Piece, ...]
ALL: Pieces = (Piece(-INFINITY, INFINITY, False, False),)


@functools.lru_cache(4096)
def read(text: str) -> Pieces | None:
  """Returns a set as disjoint intervals in ascending order.

  None if the clean text is not a set of real numbers.
  """
  if not LIKELY.search(text) or len(text) > latex.MAX_LENGTH:
    return None
  pieces = _read(text)
  return None if pieces is None or len(pieces) > MAX_PIECES else pieces


def equal(one: Pieces, other: Pieces, rounded: bool) -> bool:
  """Whether two sets are equal; `rounded` bounds may be off by a millionth."""
  return len(one) == len(other) and all(
    a[2:] == b[2:] and all(map(functools.partial(_same, rounded), a[:2], b[:2]))
    for a, b in zip(one, other, strict=True)
  )


def _same(rounded: bool, one: formulas.Number, other: formulas.Number) -> bool:
  if abs(one) == INFINITY or abs(other) == INFINITY:
    return one == other
  close = rounded and abs(one - other) <= ROUNDING * min(1, abs(one))
  return bool(close) or formulas.same(one, other)


def _read(text: str) -> Pieces | None:
  """`read` without its guards: tries each notation of a set in turn."""
  text = NAMED.sub("", text.strip(), count=1).strip()
  for separator, join in ((UNITED, _unite), (COMMON, _intersect)):
    parts = _split(text, separator)
    if len(parts) > 1:
      sets = [_read(part) or _point(part) for part in parts]
      some = any(_point(part) is None for part in parts)
      return join(sets) if some and None not in sets else None
  parts = _split(text, WITHOUT)
  if len(parts) == 2:
    whole, hole = _read(parts[0]), _finite(parts[1]) or _read(parts[1])
    if whole is None or hole is None:
      return None
    return _intersect([whole, _complement(hole)])
  squeezed = latex.squeeze(text)
  if match := EXCEPT.fullmatch(squeezed):
    hole = _finite(rf"\{{{match[1]}\}}")
    return None if hole is None else _complement(hole)
  if squeezed in REALS:
    return ALL
  for sign, names in OF_SIGN.items():
    if squeezed in names:
      return _half(sign, MP.zero)
  if text == r"\emptyset":
    return ()
  return (
    _built(text) or _interval(text) or _conditions(text) or _in_brackets(text)
  )


def _split(text: str, separator: re.Pattern) -> list[str]:
  """Returns the parts between the separators outside of all brackets."""
  if not separator.search(text):
    return [text]
  parts, start = [], 0
  for match in separator.finditer(text):
    before = text[: match.start()]
    depth = sum(map(before.count, "([{")) - sum(map(before.count, ")]}"))
    if depth == 0:
      parts.append(text[start : match.start()])
      start = match.end()
  parts = [part.strip(" ,") for part in [*parts, text[start:]]]
  return parts if all(parts) else [text]


def _bound(text: str) -> formulas.Number | None:
  """Returns a real number or plus or minus infinity; None for anything else."""
  squeezed = latex.squeeze(text).removeprefix("+")
  if squeezed in (r"\infty", r"-\infty"):
    return -INFINITY if squeezed[0] == "-" else INFINITY
  number = formulas.constant(text)
  if number is None or MP.im(formulas.inexact(number)):
    return None
  return MP.re(formulas.inexact(number))


def _point(text: str) -> Pieces | None:
  """Returns "x = 2" as a set of one number."""
  match = re.fullmatch(r"(?:[a-zA-Z]\s*=\s*)([^=<>]+)", text.strip())
  return match and _finite(rf"\{{{match[1]}\}}")


def _finite(text: str) -> Pieces | None:
  r"""Returns a finite set: \{1, 2\}."""
  text = text.strip()
  if not (text.startswith(r"\{") and text.endswith(r"\}")):
    return None
  numbers = []
  for part in re.split("[,;]|" + COMMON.pattern, text[2:-2]):
    for sign in "+-" if r"\pm" in part else "+":
      numbers.append(_bound(part.replace(r"\pm", sign)))
  if None in numbers:
    return None
  return _unite([(Piece(n, n, True, True),) for n in numbers])


def _interval(text: str) -> Pieces | None:
  """Returns an interval: (1, 2]."""
  if text[:1] not in ("(", "[") or text[-1:] not in (")", "]"):
    return None
  ends = re.split("[,;]", text[1:-1])
  bounds = [_bound(end) for end in ends]
  if len(bounds) != 2 or None in bounds or not bounds[0] < bounds[1]:
    return None
  with_low = text[0] == "[" and bounds[0] != -INFINITY
  with_high = text[-1] == "]" and bounds[1] != INFINITY
  return (Piece(*bounds, with_low, with_high),)


def _built(text: str) -> Pieces | None:
  r"""Returns a set in builder notation: \{x \in S \mid conditions\}."""
  if not (text.startswith(r"\{") and text.endswith(r"\}")):
    return None
  match = BUILDER.fullmatch(text[2:-2])
  conditions = match and _read(match[2])
  if conditions is None or r"\in" not in match[1]:
    return conditions
  whole = _read(match[1])
  return None if whole is None else _intersect([whole, conditions])


def _in_brackets(text: str) -> Pieces | None:
  """Returns the set within a pair of round brackets."""
  if text[:1] == "(" and latex.closing(text) == len(text) - 1:
    return _read(text[1:-1])
  return None


def _conditions(text: str) -> Pieces | None:
  """Returns the set that inequalities with commas between them describe.

  It is their intersection, or their union if the intersection is empty.
  """
  parts: list[str] = []
  for part in _split(text, re.compile("[,;]")):
    if parts and not re.search(RELATION.pattern + r"|\\in(?![a-zA-Z])", part):
      parts[-1] += "," + part  # x != 1, 2
    else:
      parts.append(part)
  if len(parts) == 1:
    return _condition(parts[0])
  sets = [_read(part) for part in parts]
  if None in sets or not all(RELATION.search(p) or r"\in" in p for p in parts):
    return None
  return _intersect(sets) or _unite(sets)


def _condition(text: str) -> Pieces | None:
  """Returns the solutions of 2x + 1 < 7, 1 < |x| < 4 or x != 2."""
  sides = RELATION.split(text)
  if len(sides) not in (3, 5) or "=" in text:
    return None
  if len(sides) == 5:
    if sides[1] == r"\ne" or {*sides[1::2]} not in (
      {sides[1]},
      {"<", r"\le"},
      {">", r"\ge"},
    ):
      return None
    sets = [_condition("".join(sides[:3])), _condition("".join(sides[2:]))]
    return None if None in sets else _intersect(sets)
  left, sign, right = sides
  if formulas.constant(left) is not None:
    left, sign, right = right, FLIP[sign], left
  if sign == r"\ne":
    hole = _finite(rf"\{{{right}\}}")
    is_name = formulas.value_with(left, {left.strip(): Fraction(1)}) == 1
    return _complement(hole) if hole and is_name else None
  left = left.strip()
  if left[:1] == "|" == left[-1:] and left.count("|") == 2:
    return _modulus(left[1:-1], sign, right)
  return _linear(left, sign, right)


def _modulus(inner: str, sign: str, right: str) -> Pieces | None:
  """Returns the solutions of |inner| < right, for any relation."""
  bound = _bound(right)
  if bound is None or bound < 0:
    return None
  sets = [
    _linear(inner, sign, right),
    _linear(inner, FLIP[sign], f"-({right})"),
  ]
  if None in sets:
    return None
  return _intersect(sets) if sign in ("<", r"\le") else _unite(sets)


def _linear(left: str, sign: str, right: str) -> Pieces | None:
  """Returns the solutions of an inequality that is linear in one variable.

  The slope comes from two values of left - right. Two more values check that
  it is constant.
  """
  text = APPLIED.sub("x", left) if APPLIED.fullmatch(left.strip()) else left
  text = f"({text})-({right})"
  names = formulas.variables(text)
  if len(names) != 1:
    return None
  (name,) = names
  values = [
    formulas.value_with(text, {name: Fraction(n)}) for n in (0, 1, 2, 7)
  ]
  if None in values or any(MP.im(formulas.inexact(v)) for v in values):
    return None
  at0, at1, at2, at7 = (MP.re(formulas.inexact(v)) for v in values)
  slope = at1 - at0
  if not slope or not all(
    abs(v - at0 - n * slope) < MP.mpf(10) ** -60 * (1 + abs(v))
    for n, v in ((2, at2), (7, at7))
  ):
    return None
  return _half(sign if slope > 0 else FLIP[sign], -at0 / slope)


def _half(sign: str, bound: formulas.Number) -> Pieces:
  """Returns the numbers that are less than, greater than, or not the bound."""
  less = Piece(-INFINITY, bound, False, sign == r"\le")
  greater = Piece(bound, INFINITY, sign == r"\ge", False)
  if sign == r"\ne":
    return less, greater
  return (less,) if sign in ("<", r"\le") else (greater,)


def _complement(pieces: Pieces) -> Pieces:
  """Returns the real numbers that are not in a set."""
  result, low, with_low = [], -INFINITY, False
  for piece in pieces:
    result.append(Piece(low, piece.low, with_low, not piece.with_low))
    low, with_low = piece.high, not piece.with_high
  result.append(Piece(low, INFINITY, with_low, False))
  return tuple(filter(_holds_any, result))


def _holds_any(piece: Piece) -> bool:
  """Whether an interval is not empty."""
  if piece.low == piece.high:
    return piece.with_low and piece.with_high and abs(piece.low) != INFINITY
  return piece.low < piece.high


def _intersect(sets: list[Pieces]) -> Pieces:
  return functools.reduce(_both, sets)


def _both(one: Pieces, other: Pieces) -> Pieces:
  """Returns the intersection of two sets, interval by interval."""
  result = []
  for a in one:
    for b in other:
      low, without_low = max((a.low, not a.with_low), (b.low, not b.with_low))
      high, with_high = min((a.high, a.with_high), (b.high, b.with_high))
      result.append(Piece(low, high, not without_low, with_high))
  return tuple(filter(_holds_any, result))


def _unite(sets: list[Pieces]) -> Pieces:
  return _complement(_intersect([_complement(pieces) for pieces in sets]))
