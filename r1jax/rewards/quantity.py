r"""Numbers with their units: what "\$1.5 million" or "864\text{ inches}^2" say.

Every number is read whole, exactly and without `eval`, or it is not a number.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from r1jax.rewards import arithmetic, latex

# A unit under all of its names; two units that are both known must agree.
NAMES = {
  "mm": "mm millimeter millimetre",
  "cm": "cm centimeter centimetre",
  "m": "m meter metre",
  "km": "km kilometer kilometre",
  "in": "in inch inches",
  "ft": "ft foot feet",
  "yd": "yd yard",
  "mi": "mi mile",
  "mg": "mg milligram",
  "g": "g gram",
  "kg": "kg kilogram",
  "lb": "lb lbs pound",
  "oz": "oz ounce",
  "ml": "ml mL milliliter millilitre",
  "l": "l L liter litre",
  "s": "s sec second",
  "min": "min mins minute",
  "h": "h hr hrs hour",
  "day": "day",
  "week": "week",
  "month": "month",
  "year": "year yr yrs",
  "$": "dollar usd buck",
  "cent": "cent",
  "euro": "euro eur",
  "mph": "mph",
  "kmh": "kmh kph km/h",
  "deg": "degree deg",
  "rad": "radian rad",
}
UNITS = {name: unit for unit, names in NAMES.items() for name in names.split()}
ANY = "?"  # The unit of things: apples, ways, square units.

SCALES = {
  "hundred": 10**2,
  "thousand": 10**3,
  "million": 10**6,
  "billion": 10**9,
  "trillion": 10**12,
  "dozen": 12,
  "百": 10**2,
  "千": 10**3,
  "万": 10**4,
  "亿": 10**8,
}
SPELLED = (
  "zero one two three four five six seven eight nine ten eleven twelve "
  "thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
).split()
HAN_UNIT = re.compile("千[克米瓦卡]")
HAN = "零一二三四五六七八九十"
# Words after a number that make another number of it.
OTHER = re.compile(
  r"\b(half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|eighths?|tenths?"
  r"|squared|cubed|factorial|times|plus|minus|over|or|and|to|point|pairs?"
  r"|score|per ?mille|am|pm|a\.m|p\.m)\b",
  re.IGNORECASE,
)
CURRENCY = re.compile(
  r"^(-?)\s*(?:(US\$|USD|\$)|(€|EUR|\\euro)|(?:£|¥|￥|₹|\\pounds))\s*(?=[-\d.\\(])"
)
VARIABLE = re.compile("(?![mgshlL])[a-zA-Z]")  # i and e, and no unit.
HEAD = re.compile(r"(?:\d|\\pi).*[\w})%]$|\d$|\\pi$", re.DOTALL)
TEXT = re.compile(r"\s*\\text\{\s*([^{}]*?)\s*\}(?:\^\{?[23]\}?)?$")
WORDS = re.compile(
  r"(?:(?<=[\d})])|(?<=\d%))\s*"
  r"([a-zA-Z\u4e00-\u9fff$€][^{}\\^=<>()+*|&\d]*)(?:\^\{?[23]\}?)?$"
)
MARK = re.compile(r"\(\d+\)")  # One of several statements.
RATE = re.compile(r"[a-zA-Z]+\s?(?:/|per)\s?[a-zA-Z]+")
DEGREES = re.compile(r"\^\{\\circ\}\s*(?:\\text\{\s*([CF]?)\s*\}|([CF]))?$")
RADIX = re.compile(r"\(?([0-9A-Za-z]+)\)?_\{?(?:\\text\{)?\s*(\w+)\s*\}*")
FRACTION = re.compile(r"\\frac\{(-?[\d.,]+)\}\{(-?[\d.,]+)\}")
MIXED = re.compile(r"(-?)(\d+)\\frac\{(\d+)\}\{(\d+)\}")
POWER_OF_TEN = re.compile(
  r"(-?[\d.]+)(?:(?:\\times|\\cdot|\*)10\^\{?|[eE]\+?)(-?\d{1,3})\}?"
)
REPEATING = re.compile(
  r"(-?)(\d*)\.(\d*)\\(?:overline|bar|dot)\{?(\d+)\}?(?:\\ldots)?"
)


class Quantity(NamedTuple):
  """A number as it was written."""

  value: Fraction  # 5 for 5%.
  rounded: bool  # It was written with decimals, and may stand for another.
  percent: bool


def split_unit(text: str) -> tuple[str, str]:
  """Clean text without its unit, and the unit: "" for none, ANY if unknown."""
  if match := CURRENCY.match(text):
    unit = "$" if match[2] else "euro" if match[3] else ANY
    rest, also = split_unit(text[match.end() :])
    return match[1] + rest, also if also in UNITS.values() else unit
  if match := DEGREES.search(text):
    head = text[: match.start()].strip()
    return (head, (match[1] or match[2] or "deg")) if head else (text, "")
  match = TEXT.search(text)
  bare = match is None
  match = match or WORDS.search(text)
  if not match:
    return text, ""
  words, head = match[1].strip(" ."), text[: match.start()].strip()
  if not HEAD.search(head) or VARIABLE.fullmatch(words):
    return text, ""
  if bare and not _is_unit(head, words):
    return text, ""
  if OTHER.search(words) or MARK.fullmatch(words):
    return text, ""
  first, _, others = words.partition(" ")
  scale = first.lower() if first.lower() in SCALES else ""
  if not scale and words[:1] in SCALES and not HAN_UNIT.match(words):
    scale, others = words[0], words[1:]
  if scale:
    number = read(head)
    if number is None:
      return text, ""
    head, words = str(number.value * SCALES[scale]), others
  elif words.lower() in ("percent", "per cent", "percentage"):
    return head + "%", ""
  return head, _unit(words)


def read(text: str) -> Quantity | None:
  """The number that is the whole of a clean text without unit, or None."""
  text = latex.squeeze(text)
  while text[:1] == "(" and latex.closing(text) == len(text) - 1:
    text = text[1:-1]
  percent = text.endswith("%")
  text = text.removesuffix("%").removesuffix("\\").strip()
  value = _value(text)
  return None if value is None else Quantity(value, "." in text, percent)


def radix(text: str) -> tuple[str, str] | None:
  """The digits and the base of a number that names its base, such as 204_5."""
  match = RADIX.fullmatch(text.strip())
  if not match or not match[1][:1].isdigit() or len(match[1]) > 64:
    return None
  named = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
  named |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
  return match[1].upper(), named.get(match[2], match[2])


def equal(gold: Quantity, given: Quantity) -> bool:
  """Whether they are the same number.

  28, 28% and 0.28 count as the same where at least one has its sign of per
  cent: data sets drop it. One with decimals may be the other rounded, to six of
  them: 0.333333 is 1/3, and 0.33 is not.
  """
  if gold.percent == given.percent:
    return _near(gold, given.value, given)
  if gold.percent:
    pairs = (given.value, given.value * 100)
  else:
    pairs = (given.value, given.value / 100)
  return any(_near(gold, value, given) for value in pairs)


def _near(gold: Quantity, value: Fraction, given: Quantity) -> bool:
  difference = abs(gold.value - value)
  if not difference:
    return True
  if not (gold.rounded or given.rounded):
    return False
  close = difference <= Fraction(1, 2_000_000)
  return close and difference * 10**6 <= abs(gold.value)


def _value(text: str) -> Fraction | None:
  if len(text) > arithmetic.MAX_LENGTH:
    return None
  if match := MIXED.fullmatch(text):
    if not int(match[4]):
      return None
    value = int(match[2]) + Fraction(int(match[3]), int(match[4]))
    return -value if match[1] else value
  sign = -1 if text[:1] == "-" else 1
  if match := FRACTION.fullmatch(text.removeprefix("-")):
    over, under = map(arithmetic.number, match.groups())
    return sign * over / under if under and over is not None else None
  if match := POWER_OF_TEN.fullmatch(text):
    number = arithmetic.number(match[1])
    return None if number is None else number * Fraction(10) ** int(match[2])
  if match := REPEATING.fullmatch(text):
    whole, fixed, period = match[2] or "0", match[3], match[4]
    value = Fraction(int(whole + fixed + period) - int(whole + fixed))
    value /= 10 ** len(fixed) * (10 ** len(period) - 1)
    return -value if match[1] else value
  if (word := text.lower()) in SPELLED:
    return Fraction(SPELLED.index(word))
  if len(text) == 1 and text in HAN:
    return Fraction(HAN.index(text))
  return arithmetic.number(text)


def _is_unit(head: str, words: str) -> bool:
  """Whether bare words after a number are a unit, and no variables."""
  if words.lower().rstrip("s") in UNITS or words in UNITS:
    return len(words) > 1
  known = read(head) is not None
  if known and RATE.fullmatch(words):
    return True
  letters = sum(map(str.isalpha, words))
  return known and (letters > 2 or not words.isascii() or "$" in words)


def _unit(words: str) -> str:
  words = re.sub(r"^(?:square|sq|cubic|cu)\.? ", "", words.strip(" .")).strip()
  if words in UNITS:
    return UNITS[words]
  words = words.lower().rstrip(".")
  return UNITS.get(words) or UNITS.get(words.removesuffix("s"), ANY)
