r"""Normalises the LaTeX of answers, and extracts the content of boxes.

Normalisation removes differences that do not change the meaning: dollar signs,
\left and \right, spacing, \dfrac, \frac12, full-width and other Unicode signs,
thousands separators, a full stop at the end.
"""

import re

MAX_LENGTH = 512  # Characters of an answer; longer ones are not normalised.

# Unicode characters to ASCII or to commands.
CHARACTERS = str.maketrans(
  {
    **dict.fromkeys("−–—﹣－", "-"),
    **{chr(c): chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F) if c != 0xFF0D},
    **{c: f"^{{{d}}}" for d, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{c: f"_{{{d}}}" for d, c in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    **{c: rf"\text{{({i})}}" for i, c in enumerate("①②③④⑤⑥⑦⑧⑨⑩", 1)},
    **{"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}"},
    **{"¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅛": r"\frac{1}{8}"},
    **{"×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "÷": "/", "∗": "*"},
    **{"±": r"\pm ", "∞": r"\infty ", "π": r"\pi ", "θ": r"\theta "},
    **{"√": r"\sqrt ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in "},
    **{"≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne "},
    **{"≡": r"\equiv "},
    **{
      "°": r"^{\circ}",
      "º": r"^{\circ}",
      "≈": r"\approx ",
      "∅": r"\emptyset ",
    },
    **{
      "、": ",",
      "，": ",",
      "。": ".",
      "：": ":",
      "«": '"',
      "»": '"',
      "…": r"\ldots ",
    },
    **dict.fromkeys("“”„", '"'),
    **dict.fromkeys("‘’′", "'"),
    **dict.fromkeys("\u00a0\u2002\u2003\u2009\u200a\u202f\u3000\t\n\r", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
  }
)

WRAPPERS = (
  r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|mathrm|mathbf"
  r"|mathit|mathsf|mathtt|mbox|operatorname\*?|emph|bf|rm|bm|boldsymbol"
  r"|underline)\s*\{([^{}]*)\}"
)
# Functions written without a backslash. ALSO_UNITS may be units, as in 5 min.
NAMES = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|csc|ln|log|lg|exp"
ALSO_UNITS = "sec|max|min|det|gcd|lcm"
REWRITES = tuple(
  (re.compile(pattern), replacement)
  for pattern, replacement in (
    (r"\\textcircled\{(\w+)\}", r"\\text{(\1)}"),
    (r"\\(?:display|text)style(?![a-zA-Z])", ""),
    (
      r"\\(?:bf|it|rm|tiny|small|normalsize|[lL]arge|LARGE|[hH]uge)(?![a-zA-Z])",
      "",
    ),
    (r"\\(?:text)?color\{[^{}]*\}", ""),
    (r"^\s*\\text\{\s*(\d[\d.,/]*(?:\s[^{}.:]*)?)\}\W*$", r"\1"),
    (r"\\phantom\s*(?:\{[^{}]*\}|\S)", ""),
    (r"\\(?:left|right|middle)(?![a-zA-Z])\.?", ""),
    (r"\\[bB]igg?[lrm]?(?![a-zA-Z])", ""),
    (r"(?<!\\)\\[()\[\]]", " "),
    (r"\\(?:checkmark|blacksquare|qed)(?![a-zA-Z])", ""),
    (
      r"\\frac\{\\text\{([^{}]*)\}\}\{\\text\{([^{}]*)\}\}",
      r"\\text{\1/\2}",
    ),
    (r"(?<=\d)(?:\\,|\\ |~)+(?=\d+/\d)", " "),
    # A comma in braces is a decimal comma, unless it separates thousands.
    (r"(?<![\d.])(\d+)\{,\}(\d+)(?!\d|\{,\})", r"\1.\2"),
    (r"\\text\{([a-zA-Z][a-zA-Z ]{2,}):\s*\}(?=.)", r"\\text{\1}="),
    (r"^\s*\*\*([^*]+)\*\*\W*$", r"\1"),  # Markdown's bold.
    (r"(?<!\\)\\[,;:!> ]|~|\\q?quad(?![a-zA-Z])|\\h?space\{[^{}]*\}", " "),
    (r"\{([:;])\}", r"\1"),
    # Mathematics written as plain text.
    (
      rf"\\text\{{({NAMES})\}}|(?<![\\a-zA-Z])({NAMES})"
      r"(?=x(?![a-zA-Z])|\s*[(^_{|\d\\]|\s+[a-zA-Z](?![a-zA-Z]))",
      r"\\\1\2 ",
    ),
    (
      rf"\\text\{{({ALSO_UNITS})\}}(?=\s*[({{^])"
      rf"|(?<![\\a-zA-Z])(?<!\d)(?<!\d )({ALSO_UNITS})(?=\s*[(^])",
      r"\\\1\2 ",
    ),
    (r"(?<=.)\\text\{([ei])\}|\\text\{([ei])\}(?=.)", r"\1\2"),
    (r"_\s*\{\s*\\text\{([^{}]*)\}\s*\}|_\s*\\text\{([^{}]*)\}", r"_{\1\2}"),
    (r"^\s*\{([^{}]*,[^{}]*)\}\s*$", r"\\{\1\\}"),
    (r"(?<=\d)\s*\(([a-zA-Z][a-zA-Z ]+)\)\s*$", r" \1"),
    (r"^\s*(?:=|\\approx(?![a-zA-Z]))", ""),
    (r"(?<![\\a-zA-Z])(sqrt|pi|infinity|infty)(?![a-zA-Z])", r"\\\1"),
    (r"\\infinity|(?<![\\a-zA-Z])inf(?![a-zA-Z])", r"\\infty"),
    (r"\*\*", "^"),
    (r"<=", r"\\le "),
    (r">=", r"\\ge "),
    (r"!=", r"\\ne "),
    # Synonyms.
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
    (r"\\(?:degrees?|textdegree)(?![a-zA-Z])", r"^{\\circ}"),
    (r"\^?\s*(?:\^\s*\\circ|\{\s*\\circ\s*\})", r"^{\\circ}"),
    (r"\\(?:leqslant|leqq?)(?![a-zA-Z])", r"\\le"),
    (r"\\(?:geqslant|geqq?)(?![a-zA-Z])", r"\\ge"),
    (r"\\neq(?![a-zA-Z])", r"\\ne"),
    (
      r"\^\s*(?:\{\s*(?:\\prime\s*)+\}|\\prime(?![a-zA-Z]))",
      lambda primes: "'" * primes[0].count("prime"),
    ),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}"),
    (r"\\\{\s*\\\}|\\varnothing|\\empty(?![a-zA-Z])", r"\\emptyset"),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\colon(?![a-zA-Z])", ":"),
    (
      r"\(\s*(?:mod|\\text\{\s*mod\s*\})\s*(\w+)\s*\)"
      r"|\\p?mod(?![a-zA-Z])\s*\{?\s*(\w+)\s*\}?",
      r"\\pmod{\1\2}",
    ),
    (r"\(\s*\\text\{([^{}]*)\}\s*\)", r"\\text{(\1)}"),
    (r"\\log_\{?e(?![a-zA-Z])\}?", r"\\ln"),
    (r"(^|[(\[{,;=])\s*\+\s*(?=[\w\\.])", r"\1"),
    # Scripts: braces around several characters, none around a single one.
    (r"\^\s*(-?\d{2,}|-\w)", r"^{\1}"),
    (r"([\^_])\s*\{\s*(\w)\s*\}", r"\1\2"),
    (r"(?<![\d^_.])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)", r"\1\\frac{\2}{\3}"),
  )
)
# Separators of groups of digits: spaces, or commas in braces.
GAP = r"(?:\\[,;: ]|\{,\}|~)+"
GROUPED = re.compile(
  rf"(?<![\d.,])[1-9]\d{{0,2}}(?:{GAP}\d{{3}})+(?!\d|{GAP}\d)"
  rf"|(?<=\.)\d{{3}}(?:{GAP}\d{{3}})*{GAP}\d{{1,3}}(?!\d)"
  rf"|(?<!\w)[\dA-F]+(?:{GAP}[\dA-F]+)+(?=_)"
)
LINES = re.compile(
  r"\\begin\{(aligned|align\*?|cases|gathered|split|equation\*?)\}"
  r"(.*?)\\end\{\1\}",
  re.DOTALL,
)
# Intervals in the notation ]0,1[, where nothing but set operators surrounds
# them.
OUTWARD = re.compile(
  r"(?:(?<=\\in)|(?<=\\cup)|(?<=\\cap)|(?<=[=,{])|^)\s*"
  r"([\[(\]])([^\[\]]*[,;][^\[\]]*)([\[)\]])"
  r"(?=\s*(?:$|[,}]|\\cup|\\cap|\\setminus|\\text))"
)
TAIL = re.compile(r"[\s.,;:\\]+$")
THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
SPACED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?![\d,])")
NUMBERS = re.compile(r"(?<![\d_^])(\d+)\s+(?=\d)")  # "1 2" is two numbers.
COMMAND_LETTER = re.compile(r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])")
BOX = re.compile(r"\\(?:boxed|f(?:rame)?box)(?![a-zA-Z])\s*(?:\{|(\w))")
BOX_NAME = re.compile(r"\\(?:boxed|f(?:rame)?box)(?![a-zA-Z])")
MAX_BOXES = 64  # The boxes at the end of a text that are joined to a list.
# What stands between two boxes of one list (without SPACING), and its meaning.
LINKS = {
  **dict.fromkeys(("", ",", ";", "、", "，", "&", "and", ",and", "和"), ", "),
  **dict.fromkeys(("or", ",or", "或"), " or "),
}
SPACING = re.compile(
  r"\\[()\[\],;! ]|\\q?quad|\\(?:text|mbox|mathrm)(?=\{)|[\s${}~*]"
  r"|(?<![a-zA-Z])[a-zA-Z](?:_\w|_\{\w+\})?\s*="
)
BRACED = re.compile(r"\\(frac|sqrt)(?![a-zA-Z])\s*(\[[^\[\]]*\])?")
COMMAND = re.compile(r"\\[a-zA-Z]+|.", re.DOTALL)


def last_boxed(text: str) -> str | None:
  r"""Returns the content of the last \boxed{...}, stripped.

  Boxes that only a comma, "and" or "or" separates are returned as one list.
  None if there is no box or the last one is not closed.
  """
  answer, end = None, len(text)
  names = [*BOX_NAME.finditer(text)][-MAX_BOXES:]
  for match in reversed([BOX.match(text, name.start()) for name in names]):
    stop = _end_of_box(text, match) if match else -1
    if stop < 0 or stop > end:  # It is not closed, or contains the next box.
      break
    content = (match[1] or text[match.end() : stop - 1]).strip()
    if answer is None:
      answer = content
    elif link := _link(text[stop:end]):
      answer = content + link + answer
    else:
      break
    end = match.start()
  return answer


def has_box(text: str) -> bool:
  """Whether a text has a box, even one that is empty or not closed."""
  return bool(BOX_NAME.search(text))


def _end_of_box(text: str, match: re.Match) -> int:
  """Returns the end of the box that a match begins; -1 if it is not closed."""
  if match[1]:
    return match.end()
  depth = 1
  for i in range(match.end(), min(match.end() + MAX_LENGTH + 1, len(text))):
    depth += (text[i] == "{") - (text[i] == "}")
    if not depth:
      return i + 1
  return -1


def _link(between: str) -> str | None:
  """Returns the separator of two boxes of a list; None if they are no list."""
  link = SPACING.sub("", between) if len(between) < 64 else between
  return LINKS.get(link) if link or "\n" not in between else None


def clean(text: str) -> str:
  r"""Returns the text in normal form, with words in \text{...}.

  Spaces between words and dollar signs that are a currency are kept. A text of
  more than MAX_LENGTH characters is returned unchanged.
  """
  if len(text) > MAX_LENGTH:
    return text
  if r"\begin" not in text:  # Backslashes that were escaped twice.
    text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)
  text = text.translate(CHARACTERS)
  text = re.sub(WRAPPERS, lambda m: rf"\text{{{m[1]}}}", text)
  text = text.replace(r"\$", "\0")
  if text.count("$") % 2 == 0:
    text = text.replace("$", " ")
  text = text.replace("$", "\0").replace("\0", "$")
  text = re.sub(r"(?<=\d),\s*\\!\s*(?=\d{3})", ",", text).replace(r"\!", "")
  text = GROUPED.sub(lambda m: re.sub(GAP, "", m[0]), text)
  text = LINES.sub(_join_lines, text)
  for pattern, replacement in REWRITES:
    if pattern.search(text):  # Most do not match, and `search` is faster.
      text = pattern.sub(replacement, text)
  text = SPACED.sub(lambda m: m[0].replace(" ", ""), _brace(text))
  text = THOUSANDS.sub(_join, NUMBERS.sub(r"\1, ", text).strip())
  return OUTWARD.sub(_inward, TAIL.sub("", " ".join(text.split())))


def squeeze(text: str) -> str:
  r"""Returns a clean text without its spaces and without \text around words."""
  text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
  text = COMMAND_LETTER.sub("\\1\0", text)
  return text.replace(" ", "").replace("\0", " ")


def closing(text: str, start: int = 0) -> int:
  """Returns the index of the bracket that closes the one at `start`, or -1.

  Brackets of different kinds match, because of intervals such as (0, 1].
  """
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] in "([{") - (text[i] in ")]}")
    if not depth:
      return i
  return -1


def _join_lines(lines: re.Match) -> str:
  """Returns the lines of an environment as a list; a function's cases as is."""
  if lines[1] == "cases" and "&" in lines[2]:
    return lines[0]
  rows = re.split(r"\\\\(?:\[[^\]]*\])?", lines[2].replace("&", " "))
  return ", ".join(row.strip(" ,.") for row in rows if row.strip(" ,."))


def _inward(interval: re.Match) -> str:
  """Returns the interval ]0,1[ as (0,1)."""
  opening = interval[1].replace("]", "(")
  return opening + interval[2] + interval[3].replace("[", ")")


def _join(number: re.Match) -> str:
  """Returns 1,234 as 1234, except within brackets: (1,234) may be a pair."""
  before = number.string[: number.start()]
  inside = sum(before.count(c) for c in "([") - sum(map(before.count, ")]"))
  inside += before.count(r"\{") - before.count(r"\}")
  return number[0] if inside > 0 else number[0].replace(",", "")


def _brace(text: str) -> str:
  r"""Returns the text with braces around each argument of \frac and \sqrt."""
  done = ""
  while match := BRACED.search(text):
    done += text[: match.start()] + match[0].rstrip()
    text = text[match.end() :]
    for _ in range(2 if match[1] == "frac" else 1):
      argument, text = _argument(text)
      done += "{" + _brace(argument) + "}"
  return done + text


def _argument(text: str) -> tuple[str, str]:
  """Splits a text into its first argument and the rest.

  An argument is a group in braces or round brackets, a command or a character.
  """
  text = text.lstrip()
  if text[:1] in ("{", "("):
    end = closing(text)
    if end > 0:
      return text[1:end], text[end + 1 :]
  match = COMMAND.match(text)
  return (match[0], text[match.end() :]) if match else ("", "")
