r"""Parses numbers with their units: "\$1.5 million", "864\text{ inches}^2".

A number is the whole text, and its value is exact. Nothing is evaluated.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from r1jax.rewards.maths import arithmetic, latex

# All names of each unit. Units must agree if both answers have one.
NAMES = {
  "m": "meter metre",
  "km": "kilometer kilometre",
  "cm": "centimeter centimetre",
  "mm": "millimeter millimetre",
  "in": "in inch inches",
  "ft": "ft foot feet",
  "yd": "yd yard",
  "mi": "mi mile",
  "mg": "milligram",
  "g": "gram",
  "kg": "kilogram",
  "lb": "lb lbs pound",
  "oz": "oz ounce",
  "ml": "mL milliliter millilitre",
  "l": "L liter litre",
  "s": "sec second",
  "min": "min mins minute",
  "h": "h hr hrs hour",
  "day": "day",
  "week": "week",
  "month": "month",
  "year": "year yr yrs",
  "$": "$ dollar usd buck",
  "cent": "cent",
  "euro": "euro eur €",
  "deg": "degree deg",
  "rad": "rad radian",
  "N": "newton",
  "J": "joule",
  "W": "watt",
  "V": "volt",
  "A": "ampere amp",
  "Ω": "ohm",
  "Hz": "hertz",
  "Pa": "pascal",
  "K": "kelvin",
  "C": "coulomb",
  "F": "farad",
  "T": "tesla",
  "H": "henry henries",
  "Wb": "Wb weber",
  "mol": "mole",
  "eV": "electronvolt",
  "atm": "atm atmosphere",
  "cal": "cal calorie",
  "kcal": "kcal kilocalorie",
  "bar": "bar",
  "dB": "dB decibel",
  "rpm": "rpm",
}
UNITS = {name: unit for unit, names in NAMES.items() for name in names.split()}
UNITS |= {
  prefix + unit: prefix + unit
  for unit in "m g l s N J W V A Ω Hz Pa K C F T H mol eV".split()
  for prefix in ("", *"pnμmckMG")
}
UNITS |= {"mL": "ml", "kL": "kl", "dm": "dm", "hPa": "hPa", "kWh": "kWh"}
SPEEDS = {"mph": "mi/h", "kmh": "km/h", "kph": "km/h"}
MONEY = {"$", "cent", "euro"}
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
FILLERS = {"per", "a", "an", "the", "of", "each", "in", "total", "unit"} | {
  "square",
  "cubic",
}
ANY = frozenset()  # No unit, or an unknown one; it agrees with every unit.

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
# Words after a number that change its value.
OTHER = re.compile(
  r"\b(half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|eighths?|tenths?"
  r"|squared|cubed|factorial|times|plus|minus|over|or|and|to|point|pairs?"
  r"|score|per ?mille|am|pm|a\.m|p\.m|is|was|isn|not|but|no|wrong|incorrect"
  r")\b",
  re.IGNORECASE,
)
CURRENCY = re.compile(
  r"^(-?)\s*(?:(US\$|USD|\$)|(€|EUR|\\euro)|(?:£|¥|￥|₹|\\pounds))\s*(?=[-\d.\\(])"
)
VARIABLE = re.compile("(?![mgshlL])[a-zA-Z]")  # A letter that is no unit.
HEAD = re.compile(r"(?:\d|\\pi).*[\w})%]$|\d$|\\pi$", re.DOTALL)
ATOM = (
  r"(?:\\mu\s*)?\(?(?:\\text\{[^{}]*\}|[kM]?\s*\\Omega(?![a-zA-Z]))"
  r"(?:\s*\^(?:\{-?\d\}|-?\d))?\)?"
)
TEXT = re.compile(rf"\s*({ATOM}(?:\s*(?:\\cdot|\\times|\*|/)?\s*{ATOM})*)$")
UNIT_PART = re.compile(r"(/|\bper\b)|([a-zA-ZμΩ$€]+)(?:\^(-?\d))?|(\S)")
WORDS = re.compile(
  r"(?:(?<=[\d})])|(?<=\d%))\s*"
  r"([a-zA-Z\u4e00-\u9fff$€][^{}\\^_=<>()+*|&\d]*)((?:\^\{?[23]\}?)?)$"
)
DECIMALS = re.compile(r"\.(\d+)")
MARK = re.compile(r"\(\d+\)")  # The number of a statement.
SYMBOL = re.compile(r"(.+?)(\s*)([a-zA-Z]{1,3})(\^[23])?")
CLOSE = set("mgshlL")  # Units that may follow a number without a space.
RATE = re.compile(r"[a-zA-Z]+\s?(?:/|per)\s?[a-zA-Z]+")
ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")  # Of degrees.
DEGREES = re.compile(r"\^\{\\circ\}\s*(?:\\text\{\s*([CF]?)\s*\}|([CF]))?$")
RADIX = re.compile(r"\(?(-?[0-9A-Za-z]+(?:\.\d+)?)\)?_\{?\s*\(?(\w+)\)?\s*\}?")
FRACTION = re.compile(r"\\frac\{(-?[\d.,]+)\}\{(-?[\d.,]+)\}")
MIXED = re.compile(r"(-?)(\d+)\\frac\{(\d+)\}\{(\d+)\}")
POWER_OF_TEN = re.compile(
  r"(-?[\d.]+)(?:(?:\\times|\\cdot|\*)10\^\{?|[eE]\+?)(-?\d{1,3})\}?"
)
REPEATING = re.compile(
  r"(-?)(\d*)\.(\d*)\\(?:overline|bar|dot)\{?(\d+)\}?(?:\\ldots)?"
)


class Quantity(NamedTuple):
  """A number and its notation."""

  value: Fraction  # 5 for 5%.
  decimals: int  # Digits after the decimal point.
  percent: bool  # Whether a percent sign follows.


def split_unit(text: str) -> tuple[str, frozenset]:
  """Splits a clean text into a number and the names of its unit.

  A physical unit is one name, such as kg^1 m^1 s^-2. Any other unit is the set
  of its words: apples, different ways, pages per day. ANY means no unit.
  """
  if match := CURRENCY.match(text):
    unit = "$" if match[2] else "euro" if match[3] else ""
    rest, also = split_unit(text[match.end() :])
    return match[1] + rest, (also & MONEY) or frozenset(filter(None, [unit]))
  if (match := DEGREES.search(text)) and not ANGLE.search(text):
    head = text[: match.start()].strip()
    unit = "deg" + (match[1] or match[2] or "")
    return (head, frozenset([unit])) if head else (text, ANY)
  match = TEXT.search(text)
  bare = match is None
  match = match or WORDS.search(text)
  if not match:
    return text, ANY
  head = text[: match.start()].strip()
  words = re.sub(r"\\text\{", " ", match[1]).replace(r"\Omega", "Ω")
  words = re.sub(r"\\mu\s*", "μ", re.sub("[{}()]", "", words)).strip(" .")
  if not HEAD.search(head) or VARIABLE.fullmatch(words) and words not in UNITS:
    return text, ANY
  spaced = text[len(head) : len(head) + 1] == " "
  if bare and not _is_unit(head, words, spaced):
    return text, ANY
  if OTHER.search(words) or MARK.fullmatch(words):
    return text, ANY
  words += match[2].replace("{", "").replace("}", "") if bare else ""
  first, _, others = words.partition(" ")
  scale = first.lower() if first.lower() in SCALES else ""
  if not scale and words[:1] in SCALES and not HAN_UNIT.match(words):
    scale, others = words[0], words[1:]
  if scale:
    number = read(head)
    if number is None or others.lower().strip() in SPELLED:
      return text, ANY
    head, words = str(number.value * SCALES[scale]), others
  elif words.lower() in ("percent", "per cent", "percentage", "pct"):
    return head + "%", ANY
  return head, _unit(words)


def split_symbol(text: str) -> tuple[str, frozenset]:
  """Splits "5 N" or "5m" into number and unit.

  Only for answers to a number: elsewhere the letter may be a variable.
  """
  match = SYMBOL.fullmatch(text)
  if not match or match[3] not in UNITS or read(match[1]) is None:
    return text, ANY
  if not match[2] and match[3] not in CLOSE:
    return text, ANY
  return match[1], _unit(match[3] + (match[4] or ""))


def agree(unit: frozenset, other: frozenset) -> bool:
  """Whether two units may be the same: "ways" agrees with "different ways"."""
  unit, other = unit - FILLERS, other - FILLERS
  if unit <= other or other <= unit:
    return True
  return all(map(str.isalpha, pair := ("".join(unit), "".join(other)))) and (
    not pair[0].isascii() and (pair[0] in pair[1] or pair[1] in pair[0])
  )


def read(text: str) -> Quantity | None:
  """Returns the number that is the whole of a clean text without unit.

  None for any other text.
  """
  text = latex.squeeze(text)
  while text[:1] == "(" and latex.closing(text) == len(text) - 1:
    text = text[1:-1]
  percent = text.endswith("%")
  text = text.removesuffix("%").removesuffix("\\").strip()
  value = _value(text)
  decimals = DECIMALS.search(text)
  count = len(decimals[1]) if decimals else 0
  return None if value is None else Quantity(value, count, percent)


def radix(text: str) -> tuple[str, str] | None:
  """Returns digits and base of a number such as 204_5; None for other texts."""
  match = RADIX.fullmatch(re.sub(r"\\text\{(\w+)\}", r"\1", text.strip()))
  if not match or len(match[1]) > 64:
    return None
  named = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
  named |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
  digits, base = match[1].upper(), named.get(match[2], match[2])
  if len(digits) == 1 and digits.isalpha() or not base.isdigit():
    return None
  return (digits, base) if _are_digits(digits, int(base)) else None


def _are_digits(digits: str, base: int) -> bool:
  return all(int(digit, 36) < base for digit in digits if digit not in "-.")


def equal(gold: Quantity, answer: Quantity) -> bool:
  """Whether two quantities are the same number.

  If either has a percent sign, 28, 28% and 0.28 are the same, because data sets
  drop the sign. A number with six decimals or more may be rounded: 0.333333
  equals 1/3, and 0.33 does not.
  """
  if gold.percent == answer.percent:
    values = (answer.value,)
  elif gold.percent:
    values = (answer.value, answer.value * 100)
  else:
    values = (answer.value, answer.value / 100)
  decimals = max(gold.decimals, answer.decimals)
  return any(
    gold.value == value or is_rounded(gold.value, value, decimals)
    for value in values
  )


def is_rounded(one, other, decimals: int) -> bool:
  """Whether two numbers are equal after rounding to `decimals` decimals.

  Requires six decimals or more, and a relative difference below a millionth.
  """
  difference = abs(one - other)
  return (
    decimals >= 6
    and 2 * difference * 10**decimals <= 1
    and difference * 10**6 <= abs(one)
  )


def _value(text: str) -> Fraction | None:
  """Returns the value of a number in digits or words; None for other texts."""
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


def _is_unit(head: str, words: str, spaced: bool) -> bool:
  """Whether words after a number are a unit, and not variables."""
  if words.lower().rstrip("s") in UNITS or words in UNITS:
    return len(words) > 1
  known = read(head) is not None
  if words.lower() in SPEEDS:
    return True
  if known and RATE.fullmatch(words):
    return True
  if known and not (words.isascii() and "$" not in words):
    return True
  # "2abc" is a product of variables; "2 abc" is a number and a unit.
  return known and max(map(len, re.findall("[a-zA-Z]+", words)), default=0) > (
    2 if spaced else 3
  )


def _unit(text: str) -> frozenset:
  """Returns the names of a unit, as `split_unit` does."""
  text = re.sub(r"\\(?:cdot|times)(?![a-zA-Z])|\*", " ", text).strip(" .")
  text = SPEEDS.get(text.lower(), text)
  powers: dict[str, int] = {}
  words, sign, power, known = [], 1, 1, True
  for slash, word, exponent, other in UNIT_PART.findall(text):
    if slash:
      sign = -1
    elif word.lower() in POWERS:
      power = POWERS[word.lower()]
      words.append(word.lower())
    elif word:
      unit = UNITS.get(word) or UNITS.get(word.lower())
      unit = unit or UNITS.get(word.lower().removesuffix("s"))
      known = known and unit is not None and unit not in MONEY
      unit = unit or word.lower().removesuffix("s")
      powers[unit] = powers.get(unit, 0) + sign * power * int(exponent or 1)
      words.append(unit)
      power = 1
    elif other:
      known = False
  if known and powers:
    return frozenset([" ".join(f"{u}^{n}" for u, n in sorted(powers.items()))])
  if not text.isascii() and not words:
    words = [text]
  return frozenset(words) - FILLERS
