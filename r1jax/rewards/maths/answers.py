r"""Grades mathematics: the parts of an answer, one by one, then math-verify.

An answer is brought to one form (`latex`), read into its parts (`structure`),
and these are compared: as strings, as exact numbers with their units
(`quantity`), as words; what is left, a formula, is evaluated at a point
(`formulas`), and if that does not tell it goes to math-verify (`verifier`).
"""

import functools
import re

from r1jax.rewards import words
from r1jax.rewards.maths import (
  chains,
  formulas,
  intervals,
  latex,
  prose,
  quantity,
  structure,
  verifier,
)
from r1jax.rewards.maths.latex import MAX_LENGTH, has_box, last_boxed, squeeze
from r1jax.rewards.maths.structure import Parts
from r1jax.text import Example

__all__ = ["grade", "has_box", "last_boxed", "normalise", "verify_gold"]

MAX_WORDS = 8  # Of a gold answer in words; more are prose, said in many ways.
MAX_FORMULAS = 8  # Elements of a list that may be compared in any order.

PLAIN = re.compile(r"-?\d{1,18}")
LETTER = re.compile(r"\W*([A-Z])\W*|\(?([A-Z])[).:](?:\s.*)?", re.DOTALL)
LETTER_ALONE = re.compile(r"\\text\{\W*[a-zA-Z]+\W*\}")
# What says that there is nothing: no solution, no real solutions, none.
NOTHING = re.compile(
  r"(?:the)?emptyset|none|(?:thereare|thereis|has|have)?no(?:real|integer|valid)?"
  r"(?:solutions?|roots?)(?:exists?)?|(?:solutions?)?doesnotexist|无解|空集|不存在"
)
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
  given = latex.clean(answer)
  if squeeze(given) == normalise(gold):
    return 1.0
  if not (verifier.well_formed(answer) and verifier.well_formed(given)):
    return 0.0
  wanted = latex.clean(gold)
  try:
    if _equal_texts(wanted, given):
      return 1.0
    said = prose.answer(answer, _is_number(wanted))
    if said is not None and _equal_texts(wanted, latex.clean(said)):
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
  values = chains.values(chains.sides(head))
  head = values[-1] if values else head
  if number := quantity.read(head):
    return str(number.value) + "%" * number.percent
  if _is_words(head):
    return _fold(head)
  value = formulas.value(head)
  if isinstance(value, formulas.Fraction):
    return str(value)
  return squeeze(head) if value is None else formulas.MP.nstr(value, 12)


@functools.lru_cache(4096)
def normalise(text: str) -> str:
  """The text without spaces, dollar signs and other matters of taste."""
  return squeeze(latex.clean(text)) if len(text) <= MAX_LENGTH else text


@functools.lru_cache(4096)
def _is_readable_gold(text: str) -> bool:
  """Whether every part of a gold answer is found equal to itself."""
  text = latex.clean(text)
  try:
    return _equal_texts(text, text, trust_strings=False)
  except verifier.UnreadableGold:
    return False


def _equal_texts(gold: str, given: str, trust_strings: bool = True) -> bool:
  """Whether two clean texts say the same."""
  sets = intervals.read(gold), intervals.read(given)
  if None not in sets:
    return intervals.equal(*sets, rounded="." in gold + given)
  return _equal(structure.read(gold), structure.read(given), trust_strings)


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
    if points[0].kind == "tuple" and len({*given.parts}) == len(given.parts):
      return same(points[0], given._replace(kind="tuple", brackets="()"))
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
  sides = chains.sides(gold), chains.sides(given)
  if max(map(len, sides)) > 1:
    return _equal_equations(*sides, trust_strings)
  if SHORT.fullmatch(gold) and SHORT.fullmatch(_unwrap(given).strip()):
    if _fold(gold) == _fold(given):
      return True
  if _is_nothing(gold) or _is_nothing(given):
    return _is_nothing(gold) and _is_nothing(given)
  if _is_words(gold):
    if len(words.split(gold)) > MAX_WORDS:
      raise verifier.UnreadableGold(gold)
    return _fold(gold) == _fold(given)
  gold, unit = quantity.split_unit(gold)
  given, given_unit = quantity.split_unit(given)
  if not given_unit and quantity.read(gold):
    given, given_unit = quantity.split_symbol(given)
  if not unit and given_unit:
    gold, unit = quantity.split_symbol(gold)
  return quantity.agree(unit, given_unit) and _equal_values(gold, given)


def _equal_values(gold: str, given: str) -> bool:
  """Whether two numbers or formulas are equal, with no words about them."""
  numbers = quantity.read(gold), quantity.read(given)
  if all(numbers):
    return quantity.equal(*numbers)
  bases = quantity.radix(gold), quantity.radix(given)
  if any(bases):
    digits = [
      base[0] if base else squeeze(text).upper()
      for base, text in zip(bases, (gold, given), strict=True)
    ]
    return digits[0] == digits[1] and len({*filter(None, bases)}) == 1
  if not gold or not given or _is_words(given) or LETTER_ALONE.fullmatch(given):
    return False
  equal = formulas.compare(gold, given)
  if equal is None:
    return verifier.equivalent(squeeze(gold), squeeze(given))
  return equal or any(numbers) and _is_rounded(numbers, gold, given)


def _is_rounded(numbers, gold: str, given: str) -> bool:
  """Whether one is a number with decimals that the other one rounds to."""
  decimals = max(number.decimals if number else 0 for number in numbers)
  values = formulas.constant(gold), formulas.constant(given)
  return None not in values and quantity.is_rounded(
    *map(formulas.inexact, values), decimals
  )


def _is_nothing(text: str) -> bool:
  if "\\" in _unwrap(text):
    return text == r"\emptyset"
  return bool(NOTHING.fullmatch(_fold(text)))


def _equal_equations(
  gold: list[str], given: list[str], trust_strings: bool
) -> bool:
  """What was asked equals its value; equations equal each other's multiples."""
  if not (all(gold) and all(given)) or not chains.is_consistent(given):
    return False
  wanted = gold if len(gold) == 1 else chains.named(gold)
  found = (
    given if len(given) == 1 else chains.named(given) or chains.values(given)
  )
  if len(gold) == 1:
    found = found + [each for each in chains.values(given) if each not in found]
  if any(
    _equal_texts(one, other, trust_strings) for one in wanted for other in found
  ):
    return True
  if len(gold) < 2 or len(given) < 2:
    return False
  ends = (gold[0], gold[-1]), (given[0], given[-1])
  zeros = [f"({left})-({right})" for left, right in ends]
  equal = formulas.proportional(*zeros)
  return verifier.equivalent(*zeros, True) if equal is None else equal


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


def _is_number(text: str) -> bool:
  return quantity.read(quantity.split_unit(text)[0]) is not None


def _grade_slowly(gold: str, answer: str) -> float | None:
  try:
    return float(verifier.equivalent(gold, answer))
  except verifier.UnreadableGold:
    return None
