"""Extracts an answer from a sentence: 5 from "So the answer is $5$."."""

import re

from r1jax.rewards.maths import quantity

# The beginning of a sentence, up to its answer.
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
# The label of an answer to a multiple choice: "(C) 12".
LABEL = re.compile(
  r"(?:\\text\w*\s*\{\s*)?\([A-E]\)\s*\}?(?:\\ |\\[,;:]|~|:|\s)*(?=[^\s}])"
)
MATH_SPAN = re.compile(
  r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL
)
# A name that a sentence is about: $a$ or $\triangle ABC$.
NAME = re.compile(
  r"\s*(?:\\(?:angle|triangle|overline)\W*)?[a-zA-Z]{1,4}'?\}?\s*"
)
NUMBER = re.compile(r"-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:/\d+)?")
TEXT = re.compile(r"\\text\{([^{}]*)\}")
WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}|[\u4e00-\u9fff]{2,}")

# Words that change the number beside them, or deny it.
CHANGING = {*quantity.SCALES, "not", "minus", "negative", "half", "twice"} | {
  *"times squared cubed plus wrong cannot isn except without or".split()
}
HAN = re.compile("[\u4e00-\u9fff]")
CHANGING_HAN = re.compile("[不非负倍半或]|大于|小于|超过|至[少多]")
BOUND = re.compile(r"\b(?:than|under|over|below|above|least|most)\W*\Z")


def extract(text: str, is_number: bool) -> str | None:
  """Returns the answer within a sentence; None if the text is no sentence.

  Args:
    text: the final answer as the policy wrote it.
    is_number: the gold answer is a number, so that the only number of the
      sentence is taken for its answer.
  """
  text = text.strip()
  if label := LABEL.match(text):
    return text[label.end() :]
  rest = LEAD.sub("", text, count=1)
  spans = [next(filter(None, groups)) for groups in MATH_SPAN.findall(rest)]
  if len(spans) == 1 and not (is_number and NAME.fullmatch(spans[0])):
    if WORD.search(MATH_SPAN.sub("", rest)):
      return spans[0]
  if is_number:
    number = _only_number(text)
    if number is not None:
      return number
  return rest if rest != text else None


def _only_number(text: str) -> str | None:
  """Returns a sentence's only number; None if other words change its value."""
  sentence = TEXT.sub(r"\1 ", text).replace(r"\$", "$")
  sentence = MATH_SPAN.sub(
    lambda span: " " if NAME.fullmatch(span[span.lastindex]) else span[0],
    sentence,
  )
  words = WORD.findall(sentence.lower())
  if "\\" in sentence or not CHANGING.isdisjoint(words):
    return None
  if len(words) < 2 and not HAN.search(sentence):
    return None
  numbers = NUMBER.findall(sentence)
  if len(numbers) != 1 or CHANGING_HAN.search(sentence):
    return None
  if BOUND.search(sentence.lower().partition(numbers[0])[0]):
    return None
  return numbers[0] + "%" * (numbers[0] + "%" in sentence)
