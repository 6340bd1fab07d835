r"""Grades mathematics: equal strings, equal numbers, then math-verify.

math-verify is handed one \boxed{} and nothing else: of whole texts it may pick
another answer than the last, and of a gold answer without delimiters it reads
only a part. Its own timeouts need signals and the main thread, so they are off:
the pool's limit holds instead.
"""

import functools
import logging
import re

from r1jax.rewards import arithmetic
from r1jax.types import Example

MAX_LENGTH, MAX_DEPTH = 512, 16  # Characters and nested braces, of an answer.

# Numbers that the library would compute, digit by digit.
HUGE = re.compile(
  r"\^\s*\{?[^{}]*\^"  # 9^{9^9}
  r"|\^[^()]*\d{3}[^()]*\)\s*\^\s*\{?\d{3}"  # (9^{999})^{999}
  r"|(\^|\*\*)[\s{(]*-?\d{5}"  # 9^{99999}
  r"|\d{4}[\s})]*!|!.*!",  # 9999!, (99!)!
  re.DOTALL,
)

REWRITES = (
  (re.compile(r"\\left|\\right|\\[!,;: ]|[$\s]"), ""),
  (re.compile(r"\\[dt]frac"), r"\\frac"),
  (re.compile(r"^\\text\{([^{}]*)\}$"), r"\1"),
  (re.compile(r"^\\frac\{(\d+)\}\{(\d+)\}$"), r"\1/\2"),
  (re.compile(r"^-\\frac\{(\d+)\}\{(\d+)\}$"), r"-\1/\2"),
  (re.compile(r"\{,\}"), ","),
  (re.compile(r"\.$"), ""),
)


def last_boxed(text: str) -> str | None:
  r"""The content of the last \boxed{...}, stripped; None if it is open."""
  _, found, rest = text.rpartition(r"\boxed{")
  depth = 1
  for i, char in enumerate(rest[: MAX_LENGTH + 1] if found else ""):
    depth += (char == "{") - (char == "}")
    if not depth:
      return rest[:i].strip()
  return None


def grade(example: Example, answer: str) -> float | None:
  """1 if the answer equals the example's, 0 if not; None for a bad gold."""
  gold, given = normalise(example.answer), normalise(answer)
  if gold == given:
    return 1.0
  values = arithmetic.number(gold), arithmetic.number(given)
  if None not in values:
    if values[0] == values[1]:
      return 1.0
    if all(value.denominator == 1 for value in values):
      return 0.0  # Others may be equal when rounded.
  if not _readable(answer):
    return 0.0
  parsed = _parse_gold(example.answer)
  if not parsed:
    return None
  return float(_verify(parsed, _parse(answer)))


def verify_gold(example: Example, answer: str) -> float:
  """1 if answers can be compared with the example's: it is a number or parses.

  `answer` is the example's own; equal strings alone do not count.
  """
  if arithmetic.number(normalise(answer)) is not None:
    return 1.0
  parsed = _parse_gold(example.answer)
  return float(bool(parsed) and _verify(parsed, _parse(answer)))


def normalise(text: str) -> str:
  """The text without spaces, dollar signs and other matters of taste."""
  if len(text) > MAX_LENGTH:
    return text
  for pattern, replacement in REWRITES:
    text = pattern.sub(replacement, text)
  return text


def _readable(text: str) -> bool:
  """True if no parser should hang on it, or see more than one box."""
  if len(text) > MAX_LENGTH or HUGE.search(text):
    return False
  depth = braces = 0
  for char in text.replace(r"\{", "(").replace(r"\}", ")"):
    braces += (char == "{") - (char == "}")
    depth += (char in "{([") - (char in "})]")
    if braces < 0 or depth > MAX_DEPTH:
      return False
  return braces == 0


@functools.lru_cache(4096)
def _parse_gold(text: str) -> list:
  return _parse(text)


def _parse(text: str) -> list:
  """What math-verify makes of an answer; empty if it cannot be read."""
  library, config = _math_verify()
  return library.parse(
    rf"\boxed{{{text.strip().strip('$')}}}",
    [config],
    fallback_mode="no_fallback",
    extraction_mode="first_match",
    parsing_timeout=None,
  )


def _verify(gold: list, given: list) -> bool:
  """Whether they are equal; the order matters to math-verify."""
  library, _ = _math_verify()
  return library.verify(gold, given, timeout_seconds=None)


@functools.cache
def _math_verify():
  import math_verify  # Half a second to import.

  logging.getLogger("math_verify").setLevel(logging.ERROR)  # "No timeout."
  return math_verify, math_verify.LatexExtractionConfig(
    boxed_match_priority=0, try_extract_without_anchor=False
  )
