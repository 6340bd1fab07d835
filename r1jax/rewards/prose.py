"""Sentences around an answer: "So the answer is $5$." says 5."""

import re

from r1jax.rewards import quantity

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
MATH_SPAN = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)")
NUMBER = re.compile(r"-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:/\d+)?")
TEXT = re.compile(r"\\text\{([^{}]*)\}")
WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}|[\u4e00-\u9fff]{2,}")

# Words that change a number, or take it back.
CHANGING = {*quantity.SCALES, "not", "minus", "negative", "half", "twice"}
BOUND = re.compile(r"\b(?:than|under|over|below|above)\W*\Z")


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
  spans = [a or b for a, b in MATH_SPAN.findall(rest)]
  if len(spans) == 1 and WORD.search(MATH_SPAN.sub("", rest)):
    return spans[0]
  spoken = TEXT.sub(r"\1 ", text).replace(r"\$", "$")
  words = WORD.findall(spoken.lower())
  plain = len(words) >= 2 and CHANGING.isdisjoint(words) and "\\" not in spoken
  if is_number and plain:
    numbers = NUMBER.findall(spoken)
    bound = numbers and BOUND.search(spoken.lower().partition(numbers[0])[0])
    if len(numbers) == 1 and not bound:
      return numbers[0] + "%" * (numbers[0] + "%" in spoken)
  return rest if rest != text else None
