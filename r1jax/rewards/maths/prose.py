"""Sentences around an answer: "So the answer is $5$." says 5."""

import re

from r1jax.rewards.maths import quantity

# What stands before an answer in a sentence.
LEAD = re.compile(
  r"^.*\b(?:answer|result|solution|option|choice)\b(?:\s*(?:is|are|:|=))+[*_]*"
  r"|^\W*(?:option|choice)\b"
  r"|^.*答案?(?:是|为|：|:)|^\W*选择?"
  r"|^\W*(?:A|Ans|Answer)\s*:[*_]*"
  r"|^\W*(?:(?:so|thus|hence|therefore|then)\b,?)?\s*"
  r"(?:it(?:'s| is)|that is|we (?:get|have)|there (?:are|is)|equals|about"
  r"|approximately|roughly)\b",
  re.IGNORECASE | re.DOTALL,
)
# "(C) 12", as answers to multiple choice are boxed.
LABEL = re.compile(
  r"(?:\\text\w*\s*\{\s*)?\([A-E]\)\s*\}?(?:\\ |\\[,;:]|~|:|\s)*(?=[^\s}])"
)
MATH_SPAN = re.compile(
  r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL
)
# $a$ or $\triangle ABC$, which a sentence is about.
NAME = re.compile(
  r"\s*(?:\\(?:angle|triangle|overline)\W*)?[a-zA-Z]{1,4}'?\}?\s*"
)
NUMBER = re.compile(r"-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:/\d+)?")
TEXT = re.compile(r"\\text\{([^{}]*)\}")
WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}|[\u4e00-\u9fff]{2,}")

# Words that change a number, or take it back.
CHANGING = {*quantity.SCALES, "not", "minus", "negative", "half", "twice"} | {
  *"times squared cubed plus wrong cannot isn except without or".split()
}
HAN = re.compile("[\u4e00-\u9fff]")
CHANGING_HAN = re.compile("[不非负倍半或]|大于|小于|超过|至[少多]")
BOUND = re.compile(r"\b(?:than|under|over|below|above|least|most)\W*\Z")


def answer(text: str, is_number: bool) -> str | None:
  """The answer within a sentence; None if the text is none.

  Args:
    text: what stands where an answer should.
    is_number: the answer is known to be a number, so that the only one of a
      sentence may be it.
  """
  text = text.strip()
  if label := LABEL.match(text):
    return text[label.end() :]
  rest = LEAD.sub("", text, count=1)
  spans = [next(filter(None, found)) for found in MATH_SPAN.findall(rest)]
  if len(spans) == 1 and not (is_number and NAME.fullmatch(spans[0])):
    if WORD.search(MATH_SPAN.sub("", rest)):
      return spans[0]
  if is_number:
    number = _only_number(text)
    if number is not None:
      return number
  return rest if rest != text else None


def _only_number(text: str) -> str | None:
  """The only number of a sentence that says nothing else about it."""
  spoken = TEXT.sub(r"\1 ", text).replace(r"\$", "$")
  spoken = MATH_SPAN.sub(
    lambda span: " " if NAME.fullmatch(span[span.lastindex]) else span[0],
    spoken,
  )
  words = WORD.findall(spoken.lower())
  if "\\" in spoken or not CHANGING.isdisjoint(words):
    return None
  if len(words) < 2 and not HAN.search(spoken) or CHANGING_HAN.search(spoken):
    return None
  numbers = NUMBER.findall(spoken)
  if len(numbers) != 1 or BOUND.search(spoken.lower().partition(numbers[0])[0]):
    return None
  return numbers[0] + "%" * (numbers[0] + "%" in spoken)
