r"""Grades mathematics: the parts of an answer, one by one, then math-verify.

An answer is brought to one form (`latex`), read into its parts (`structure`),
and these are compared: as strings, as exact numbers with their units
(`quantity`), as words; what is left, a formula, is evaluated at a point
(`formulas`), and if that does not tell it goes to math-verify (`verifier`).
"""

import functools
import re

from r1jax.rewards import (
  formulas,
  latex,
  prose,
  quantity,
  structure,
  verifier,
  words,
)
from r1jax.rewards.latex import MAX_LENGTH, last_boxed, squeeze
from r1jax.rewards.structure import Parts
from r1jax.types import Example

__all__ = ["grade", "last_boxed", "normalise", "verify_gold"]

MAX_WORDS = 8  # Of a gold answer in words; more are prose, said in many ways.
ANY_UNIT = {*quantity.UNITS.values()}
MAX_FORMULAS = 8  # Elements of a list that may be compared in any order.

PLAIN = re.compile(r"-?\d{1,18}")
LETTER = re.compile(r"\W*([A-Z])\W*|\(?([A-Z])[).:](?:\s.*)?", re.DOTALL)
# What a value is given to: x, f(x), \angle ABC, \overline{AB}, P(A).
FUNCTION = re.compile(
  r"m?\\angle ?\w{1,3}|\\overline\{?[A-Z]{2}\}?|\|?[A-Z]{1,2}\|?"
  r"|(?:[a-zA-Z]|\\[a-zA-Z]+)(?:_\w|_\{[^{}]*\}|\^\{-1\})?'?"
  r"(?:\(\w+(?:(?:,|\\c[au]p ?)\w+)*\))?"
)
WORDS = re.compile(r"\\text\{[^{}]*\}")
# Signs and functions; a hyphen stands between words.
FORMULA = re.compile(
  r"[\\^_{}=+*/<>|\d]|(?<![a-zA-Z]{3})-|-(?![a-zA-Z]{3})"
  r"|\b(?:sin|cos|tan|log|ln|exp|sqrt|max|min)\b"
)
MARKS = re.compile(r"(?:\\text\{\(\d+\)\}\s*)+")  # Statements ①②.
SHORT = re.compile("[A-Za-z]{2,3}")
ASSIGNED = re.compile(r"([a-zA-Z])=([^=]+)")
TIME = re.compile(
  r"\d+(?:\s*:\s*\d+)+\s*(?:[ap]\.?\s?m\.?)?|\d+\s*[ap]\.?\s?m\.?",
  re.IGNORECASE,
)


def grade(example: Example, answer: str, *, fast: bool = True) -> float | None:
  """1 if the answer equals the example's, 0 if not; None for a bad gold.

  Without `fast`, math-verify is asked about everything, as one formula.
  """
  gold = example.answer
  if fast and answer == gold:
    return 1.0
  if fast and PLAIN.fullmatch(gold) and PLAIN.fullmatch(answer):
    return float(int(gold) == int(answer))
  if len(answer) > MAX_LENGTH or len(gold) > MAX_LENGTH:
    return float(answer == gold)
  if not fast:
    return _grade_slowly(latex.clean(gold), latex.clean(answer))
  tree, given = _read_gold(gold), latex.clean(answer)
  if squeeze(given) == normalise(gold):
    return 1.0
  if not (verifier.readable(answer) and verifier.readable(given)):
    return 0.0
  try:
    if _equal(tree, structure.read(given)):
      return 1.0
    said = prose.answer(answer, _is_number(tree))
    if said is not None and _equal(tree, structure.read(latex.clean(said))):
      return 1.0
  except verifier.UnreadableGold:
    return None
  return 0.0 if _is_readable_gold(gold) else None


def verify_gold(example: Example, answer: str) -> float:
  """1 if answers can be compared with the example's part by part.

  `answer` is the example's own; equal strings alone do not count.
  """
  return float(len(answer) <= MAX_LENGTH and _is_readable_gold(answer))


def canonical(text: str) -> str:
  """A text that is the same for answers that are equal, as far as it is easy.

  Equal numbers and formulas have the same; lists in another order have not.
  """
  if len(text) > MAX_LENGTH:
    return text
  head, _ = quantity.split_unit(latex.clean(text))
  head = (_value(structure.split(head, "=")) or head) if "=" in head else head
  if number := quantity.read(head):
    return str(number.value) + "%" * number.percent
  value = formulas.value(squeeze(head))
  if value is not None and not _is_words(head):
    return f"{value.real + 0.0:.8g}{value.imag + 0.0:+.8g}i"  # No -0.
  return _fold(head) if _is_words(head) else squeeze(head)


@functools.lru_cache(4096)
def normalise(text: str) -> str:
  """The text without spaces, dollar signs and other matters of taste."""
  return squeeze(latex.clean(text)) if len(text) <= MAX_LENGTH else text


@functools.lru_cache(4096)
def _read_gold(text: str) -> Parts:
  return structure.read(latex.clean(text))


@functools.lru_cache(4096)
def _is_readable_gold(text: str) -> bool:
  """Whether every part of a gold answer is found equal to itself."""
  tree = _read_gold(text)
  try:
    return _equal(tree, tree, trust_strings=False)
  except verifier.UnreadableGold:
    return False


def _equal(gold: Parts, given: Parts, trust_strings: bool = True) -> bool:
  """Whether two trees are equal; see `structure` for their kinds.

  Without `trust_strings` every leaf is compared by its meaning, even with the
  same text.
  """
  same = functools.partial(_equal, trust_strings=trust_strings)
  gold, given = _unpack(gold), _unpack(given)
  kinds = gold.kind, given.kind
  if kinds == ("leaf", "leaf"):
    return _equal_leaves(gold.text, given.text, trust_strings)
  if kinds == ("list", "list"):
    points = _point(gold), _point(given)
    if points[0].kind == points[1].kind == "tuple":
      return same(*points)
  if kinds in (("list", "list"), ("union", "union")) and trust_strings:
    return _equal_in_any_order(gold, given, same)
  if "rows" in kinds and kinds != ("rows", "rows"):
    gold, given = _vector(gold), _vector(given)
  elif kinds == ("tuple", "list") and gold.brackets == ";":
    given = given._replace(kind="tuple", brackets=";")
  elif kinds == ("list", "tuple") and given.brackets == ";":
    return same(gold, given._replace(kind="list", brackets=""))
  elif sorted(kinds) == ["list", "tuple"]:
    gold, given = _point(gold), _point(given)
  return (
    gold.kind == given.kind != "leaf"
    and gold.brackets == given.brackets
    and len(gold.parts) == len(given.parts)
    and all(map(same, gold.parts, given.parts))
  )


def _unpack(tree: Parts) -> Parts:
  """A list of one element, however often it is there, is that element."""
  if tree.kind not in ("list", "union"):
    return tree
  distinct = _distinct(tree.parts)
  return distinct[0] if len(distinct) == 1 else tree


def _point(tree: Parts) -> Parts:
  """x = 3, y = 4 as (3, 4); any other tree as it is."""
  found = [ASSIGNED.fullmatch(squeeze(part.text)) for part in tree.parts]
  values = {match[1]: match[2] for match in found if match}
  if tree.kind != "list" or len(values) < len(found):
    return tree
  parts = tuple(structure.read(values[name]) for name in sorted(values))
  return Parts("tuple", parts=parts, brackets="()")


def _vector(tree: Parts) -> Parts:
  """A matrix of one row or column as a tuple; any other tree as it is."""
  if tree.kind == "rows" and 1 in (len(tree.parts), len(tree.parts[0].parts)):
    parts = tuple(leaf for row in tree.parts for leaf in row.parts)
    return Parts("tuple", parts=parts, brackets="()")
  return tree


def _equal_in_any_order(gold: Parts, given: Parts, same) -> bool:
  """Whether every part has its own equal on the other side."""
  wanted, found = _distinct(gold.parts), _distinct(given.parts)
  if len(wanted) != len(found):
    wanted, found = [*gold.parts], [*given.parts]
  if len(wanted) != len(found):
    return False
  rest = [part for part in wanted if part not in found]
  others = [part for part in found if part not in wanted]
  if len(rest) > MAX_FORMULAS:
    return False
  for part in rest:
    match = next((other for other in others if same(part, other)), None)
    if match is None:
      return False
    others.remove(match)
  return not others


def _distinct(parts: tuple[Parts, ...]) -> list[Parts]:
  squeezed = {
    part._replace(text=squeeze(part.text)) if part.kind == "leaf" else part
    for part in parts
  }
  return sorted(squeezed, key=repr)


def _equal_leaves(gold: str, given: str, trust_strings: bool) -> bool:
  if trust_strings and squeeze(gold) == squeeze(given):
    return True
  if not _is_words(gold) and len(prose.WORD.findall(gold)) > MAX_WORDS // 2:
    raise verifier.UnreadableGold(gold)
  gold_letter = LETTER.fullmatch(squeeze(gold)) if len(gold) < 12 else None
  if gold_letter and (letter := LETTER.fullmatch(_unwrap(given).strip())):
    return (gold_letter[1] or gold_letter[2]) == (letter[1] or letter[2])
  if MARKS.fullmatch(gold):
    return {*re.findall(r"\d+", gold)} == {*re.findall(r"\d+", given)}
  sides = structure.split(gold, "="), structure.split(given, "=")
  if max(map(len, sides)) > 1:
    return _equal_equations(sides, trust_strings)
  if r"\approx" in given:
    sides = structure.split(given, r"\approx")[:2]
    return any(_equal_leaves(gold, side, trust_strings) for side in sides)
  if SHORT.fullmatch(gold) and SHORT.fullmatch(_unwrap(given).strip()):
    if _fold(gold) == _fold(given):
      return True
  if _is_words(gold):
    if len(words.split(gold)) > MAX_WORDS:
      raise verifier.UnreadableGold(gold)
    return _fold(gold) == _fold(given)
  gold, unit = quantity.split_unit(gold)
  given, given_unit = quantity.split_unit(given)
  if len({unit, given_unit} - {"", quantity.ANY}) > 1:
    return False
  numbers = (
    quantity.read(_drop_unit(gold, {given_unit})),
    quantity.read(_drop_unit(given, {unit} if unit else ANY_UNIT)),
  )
  if all(numbers):
    return quantity.equal(*numbers)
  bases = quantity.radix(gold), quantity.radix(given)
  if bases[0] and (bases[1] or numbers[1]):
    digits = (squeeze(given).upper(), bases[0][1])
    return bases[0] == (bases[1] or digits)
  if not gold or not given:
    return False
  gold, given = squeeze(gold), squeeze(given)
  if gold == given and formulas.value(gold) is not None:
    return True
  if formulas.differ(gold, given):
    return False
  if formulas.are_one_constant(gold, given):
    return True
  return verifier.equivalent(gold, given)


def _drop_unit(text: str, units: set[str]) -> str:
  """A number without a letter behind it that is one of the units: 5 m."""
  unit = quantity.UNITS.get(text[-1:])
  bare = unit in units and quantity.read(text[:-1])
  return text[:-1] if bare else text


def _equal_equations(
  sides: tuple[list[str], list[str]], trust_strings: bool
) -> bool:
  """An assignment equals its value; other equations, each other's multiples."""
  if not all(map(all, sides)):
    return False
  values = [_value(side) for side in sides]
  if None not in values:
    return _equal(*map(structure.read, values), trust_strings)
  if [len(side) for side in sides] != [2, 2]:
    return False
  zeros = [f"({left})-({right})" for left, right in sides]
  return verifier.equivalent(*zeros, True)


def _value(sides: list[str]) -> str | None:
  """What a chain of equal sides comes to; None for a real equation."""
  if len(sides) == 1:
    return sides[0]
  first, *_, last = map(squeeze, sides)
  if (
    FUNCTION.fullmatch(first)
    or WORDS.fullmatch(sides[0])
    or quantity.read(sides[-1])
    and not re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", first))
  ):
    return sides[-1]
  return sides[0] if FUNCTION.fullmatch(last) else None


def _is_words(gold: str) -> bool:
  """True for text that is no formula, such as names and yes or no."""
  text = _unwrap(gold)
  if TIME.fullmatch(text.strip()):
    return True
  if re.fullmatch(r"\\text\{[^{}]*[^\W\d_][^{}]*\}", gold):
    return quantity.read(quantity.split_unit(text)[0]) is None
  letters = sum(map(str.isalpha, text))
  return bool(not FORMULA.search(text) and (letters >= 4 or not text.isascii()))


def _unwrap(text: str) -> str:
  return re.sub(r"\\text\{([^{}]*)\}", r"\1", text)


def _fold(text: str) -> str:
  text = re.sub(r"^\W*(?:the|an?|it(?:'s| is))\s", "", _unwrap(text).lower())
  return re.sub(r"[^\w:]|_", "", text)


def _is_number(tree: Parts) -> bool:
  text, _ = quantity.split_unit(tree.text)
  return tree.kind == "leaf" and quantity.read(text) is not None


def _grade_slowly(gold: str, answer: str) -> float | None:
  if not verifier.readable(answer):
    return 0.0
  try:
    return float(verifier.equivalent(gold, answer))
  except verifier.UnreadableGold:
    return None
