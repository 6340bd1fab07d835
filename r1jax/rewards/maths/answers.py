r"""Grades mathematical answers by comparing them with a gold answer.

An answer is normalised (`latex`) and parsed into its parts (`structure`). The
parts are compared as strings, as exact numbers with units (`quantity`), and as
words. Formulas are evaluated at several points (`formulas`); where that does
not decide, math-verify does (`verifier`).
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

MAX_WORDS = 8  # Of a gold answer in words; longer ones have many paraphrases.
MAX_FORMULAS = 8  # Unequal elements of lists that are compared in any order.

PLAIN = re.compile(r"-?\d{1,18}")
AROUND = r"[^\w'!|^~+\-/<>=]*"  # Punctuation, but no operator: -A is not A.
LETTER = re.compile(
  rf"{AROUND}([A-Z]){AROUND}|\(?([A-Z])[).:](?:\s.*)?", re.DOTALL
)
LETTER_ALONE = re.compile(r"\\text\{\W*[a-zA-Z]+\W*\}")
# Answers that mean "nothing": no solution, no real solutions, none.
NOTHING = re.compile(
  r"(?:the)?emptyset|none|(?:thereare|thereis|has|have)?no(?:real|integer|valid)?"
  r"(?:solutions?|roots?)(?:exists?)?|(?:solutions?)?doesnotexist|无解|空集|不存在"
)
# Signs and functions of a formula. A hyphen between words is not a sign.
FORMULA = re.compile(
  r"[\\^_{}=+*/<>|\d]|(?<![a-zA-Z]{3})-|-(?![a-zA-Z]{3})"
  r"|\b(?:sin|cos|tan|log|ln|exp|sqrt|max|min)\b"
)
MARKS = re.compile(r"(?:\\text\{\(\d+\)\}\s*)+")  # Numbered statements: ①②.
SHORT = re.compile("[A-Za-z]{2,3}")
ASSIGNED = re.compile(r"([a-zA-Z])=([^=]+)")
TIME = re.compile(
  r"\d+(?:\s*:\s*\d+)+\s*(?:[ap]\.?\s?m\.?)?|\d+\s*[ap]\.?\s?m\.?",
  re.IGNORECASE,
)


def grade(example: Example, answer: str) -> float | None:
  """Returns 1.0 if `answer` equals the example's answer, and 0.0 otherwise.

  None means that the example's own answer is not one to compare with.
  """
  gold = example.answer
  if answer == gold:
    return 1.0
  if PLAIN.fullmatch(gold) and PLAIN.fullmatch(answer):
    return float(int(gold) == int(answer))
  if len(answer) > MAX_LENGTH or len(gold) > MAX_LENGTH:
    return 0.0
  cleaned = latex.clean(answer)
  if squeeze(cleaned) == normalise(gold):
    return 1.0
  if not (verifier.well_formed(answer) and verifier.well_formed(cleaned)):
    return 0.0
  expected = latex.clean(gold)
  try:
    if _equal_texts(expected, cleaned):
      return 1.0
    extracted = prose.extract(answer, _is_number(expected))
    if extracted is not None:
      if _equal_texts(expected, latex.clean(extracted)):
        return 1.0
  except verifier.UnreadableGold:
    return None
  return 0.0 if _is_readable_gold(gold) else None


def verify_gold(example: Example, answer: str) -> float:
  """Returns 1.0 if an example's own answer can be graded, and 0.0 otherwise.

  Every part of `answer` must be found equal to itself by its meaning; equal
  strings do not count.
  """
  return float(len(answer) <= MAX_LENGTH and _is_readable_gold(answer))


def canonical(text: str) -> str:
  """Returns a key under which equal answers are counted as one.

  Equal numbers and equal formulas have the same key. Lists of the same elements
  in another order have different keys.
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
  """Returns the text without spaces, dollar signs and other formatting."""
  return squeeze(latex.clean(text)) if len(text) <= MAX_LENGTH else text


@functools.lru_cache(4096)
def _is_readable_gold(text: str) -> bool:
  """Whether every part of a gold answer is found equal to itself."""
  text = latex.clean(text)
  try:
    return _equal_texts(text, text, trust_strings=False)
  except verifier.UnreadableGold:
    return False


def _equal_texts(gold: str, answer: str, trust_strings: bool = True) -> bool:
  """Whether two clean texts are equal as sets of numbers, or part by part."""
  sets = intervals.read(gold), intervals.read(answer)
  if None not in sets:
    return intervals.equal(*sets, rounded="." in gold + answer)
  return _equal(structure.read(gold), structure.read(answer), trust_strings)


def _equal(gold: Parts, answer: Parts, trust_strings: bool = True) -> bool:
  """Whether two trees are equal; `structure` lists the kinds of nodes.

  Without `trust_strings`, leaves of the same text are compared by meaning too.
  """
  same = functools.partial(_equal, trust_strings=trust_strings)
  gold, answer = _unpack(gold), _unpack(answer)
  kinds = gold.kind, answer.kind
  if kinds == ("leaf", "leaf"):
    return _equal_leaves(gold.text, answer.text, trust_strings)
  if kinds == ("list", "list"):
    points = _point(gold), _point(answer)
    if points[0].kind == points[1].kind == "tuple":
      return same(*points)
    if points[0].kind == "tuple" and len({*answer.parts}) == len(answer.parts):
      return same(points[0], answer._replace(kind="tuple", brackets="()"))
  if kinds in (("list", "list"), ("union", "union")) and trust_strings:
    return _equal_in_any_order(gold, answer, same)
  if "rows" in kinds and kinds != ("rows", "rows"):
    gold, answer = _vector(gold), _vector(answer)
  elif kinds == ("tuple", "list") and gold.brackets == ";":
    answer = answer._replace(kind="tuple", brackets=";")
  elif kinds == ("list", "tuple") and answer.brackets == ";":
    return same(gold, answer._replace(kind="list", brackets=""))
  elif sorted(kinds) == ["list", "tuple"]:
    gold, answer = _point(gold), _point(answer)
  return (
    gold.kind == answer.kind != "leaf"
    and gold.brackets == answer.brackets
    and len(gold.parts) == len(answer.parts)
    and all(map(same, gold.parts, answer.parts))
  )


def _unpack(tree: Parts) -> Parts:
  """Returns the element of a list of equal elements; other trees unchanged."""
  if tree.kind not in ("list", "union"):
    return tree
  distinct = _distinct(tree.parts)
  return distinct[0] if len(distinct) == 1 else tree


def _point(tree: Parts) -> Parts:
  """Returns "x = 3, y = 4" as the tuple (3, 4); other trees unchanged."""
  matches = [ASSIGNED.fullmatch(squeeze(part.text)) for part in tree.parts]
  values = {match[1]: match[2] for match in matches if match}
  if tree.kind != "list" or len(values) < len(matches):
    return tree
  parts = tuple(structure.read(values[name]) for name in sorted(values))
  return Parts("tuple", parts=parts, brackets="()")


def _vector(tree: Parts) -> Parts:
  """Returns a matrix of one row or column as a tuple; other trees unchanged."""
  if tree.kind == "rows" and 1 in (len(tree.parts), len(tree.parts[0].parts)):
    parts = tuple(leaf for row in tree.parts for leaf in row.parts)
    return Parts("tuple", parts=parts, brackets="()")
  return tree


def _equal_in_any_order(gold: Parts, answer: Parts, same) -> bool:
  """Whether the parts of two lists can be paired so that each pair is equal."""
  expected, parts = _distinct(gold.parts), _distinct(answer.parts)
  if len(expected) != len(parts):
    expected, parts = [*gold.parts], [*answer.parts]
  if len(expected) != len(parts):
    return False
  # Parts of equal text are paired already.
  unpaired = [part for part in expected if part not in parts]
  candidates = [part for part in parts if part not in expected]
  if len(unpaired) > MAX_FORMULAS:
    return False
  for part in unpaired:
    match = next((other for other in candidates if same(part, other)), None)
    if match is None:
      return False
    candidates.remove(match)
  return not candidates


def _distinct(parts: tuple[Parts, ...]) -> list[Parts]:
  """Returns the parts without repetitions, in a fixed order."""
  squeezed = {
    part._replace(text=squeeze(part.text)) if part.kind == "leaf" else part
    for part in parts
  }
  return sorted(squeezed, key=repr)


def _equal_leaves(gold: str, answer: str, trust_strings: bool) -> bool:
  """Whether two leaves are equal: letters, equations, words or quantities."""
  if trust_strings and squeeze(gold) == squeeze(answer):
    return True
  if not _is_words(gold) and len(prose.WORD.findall(gold)) > MAX_WORDS // 2:
    raise verifier.UnreadableGold(gold)
  gold_letter = LETTER.fullmatch(squeeze(gold)) if len(gold) < 12 else None
  if gold_letter and (letter := LETTER.fullmatch(_unwrap(answer).strip())):
    return (gold_letter[1] or gold_letter[2]) == (letter[1] or letter[2])
  if MARKS.fullmatch(gold):
    return {*re.findall(r"\d+", gold)} == {*re.findall(r"\d+", answer)}
  sides = chains.sides(gold), chains.sides(answer)
  if max(map(len, sides)) > 1:
    return _equal_equations(*sides, trust_strings)
  if SHORT.fullmatch(gold) and SHORT.fullmatch(_unwrap(answer).strip()):
    if _fold(gold) == _fold(answer):
      return True
  if _is_nothing(gold) or _is_nothing(answer):
    return _is_nothing(gold) and _is_nothing(answer)
  if _is_words(gold):
    if len(words.split(gold)) > MAX_WORDS:
      raise verifier.UnreadableGold(gold)
    return _fold(gold) == _fold(answer)
  gold, unit = quantity.split_unit(gold)
  answer, answer_unit = quantity.split_unit(answer)
  if not answer_unit and quantity.read(gold):
    answer, answer_unit = quantity.split_symbol(answer)
  if not unit and answer_unit:
    gold, unit = quantity.split_symbol(gold)
  return quantity.agree(unit, answer_unit) and _equal_values(gold, answer)


def _equal_values(gold: str, answer: str) -> bool:
  """Whether two numbers or formulas without units are equal."""
  numbers = quantity.read(gold), quantity.read(answer)
  if all(numbers):
    return quantity.equal(*numbers)
  bases = quantity.radix(gold), quantity.radix(answer)
  if any(bases):
    digits = [
      base[0] if base else squeeze(text).upper()
      for base, text in zip(bases, (gold, answer), strict=True)
    ]
    return digits[0] == digits[1] and len({*filter(None, bases)}) == 1
  if (
    not gold
    or not answer
    or _is_words(answer)
    or LETTER_ALONE.fullmatch(answer)
  ):
    return False
  equal = formulas.compare(gold, answer)
  if equal is None:
    return verifier.equivalent(squeeze(gold), squeeze(answer))
  return equal or any(numbers) and _is_rounded(numbers, gold, answer)


def _is_rounded(numbers, gold: str, answer: str) -> bool:
  """Whether one value is a decimal number that the other one rounds to."""
  decimals = max(number.decimals if number else 0 for number in numbers)
  values = formulas.constant(gold), formulas.constant(answer)
  return None not in values and quantity.is_rounded(
    *map(formulas.inexact, values), decimals
  )


def _is_nothing(text: str) -> bool:
  """Whether a text is the empty set, or says that there is no solution."""
  if "\\" in _unwrap(text):
    return text == r"\emptyset"
  return bool(NOTHING.fullmatch(_fold(text)))


def _equal_equations(
  gold: list[str], answer: list[str], trust_strings: bool
) -> bool:
  """Whether two texts, of which one is an equation at least, are equal.

  An equation that gives a name its value equals that value: "x = 5" and "5".
  Two equations are equal if one is a multiple of the other.
  """
  if not (all(gold) and all(answer)) or not chains.is_consistent(answer):
    return False
  expected = gold if len(gold) == 1 else chains.named(gold)
  values = chains.values(answer)
  candidates = answer if len(answer) == 1 else chains.named(answer) or values
  if len(gold) == 1:
    candidates = candidates + [v for v in values if v not in candidates]
  if any(
    _equal_texts(one, other, trust_strings)
    for one in expected
    for other in candidates
  ):
    return True
  if len(gold) < 2 or len(answer) < 2:
    return False
  ends = (gold[0], gold[-1]), (answer[0], answer[-1])
  zeros = [f"({left})-({right})" for left, right in ends]
  equal = formulas.proportional(*zeros)
  return verifier.equivalent(*zeros, True) if equal is None else equal


def _is_words(gold: str) -> bool:
  """Whether a text is words, such as a name or "yes", and not a formula."""
  text = _unwrap(gold)
  if TIME.fullmatch(text.strip()):
    return True
  if re.fullmatch(r"\\text\{[^{}]*[^\W\d_][^{}]*\}", gold):
    return quantity.read(quantity.split_unit(text)[0]) is None
  letters = sum(map(str.isalpha, text))
  return bool(not FORMULA.search(text) and (letters >= 4 or not text.isascii()))


def _unwrap(text: str) -> str:
  r"""Returns the text with each \text{...} replaced by its content."""
  return re.sub(r"\\text\{([^{}]*)\}", r"\1", text)


def _fold(text: str) -> str:
  """Returns words in lower case without articles, spaces and punctuation."""
  text = re.sub(r"^\W*(?:the|an?|it(?:'s| is))\s", "", _unwrap(text).lower())
  return re.sub(r"[^\w:]|_", "", text)


def _is_number(text: str) -> bool:
  return quantity.read(quantity.split_unit(text)[0]) is not None
