"""Instruction following: the instructions of IFEval that a program can verify.

IFEval (arXiv:2311.07911), its 25 kinds of instruction, in its strict mode: the
response is checked as it is. `Example.metadata` has the data set's fields:
`instruction_id_list` and `kwargs`, one entry for each instruction.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1jax.rewards import language, sentences
from r1jax.text import Completion, Example

MAX_LENGTH = 100_000  # Characters; a longer response follows no instruction.
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def reward(
  example: Example, completion: Completion, *, partial: bool = False
) -> float:
  """Returns 1.0 if a response follows all of its instructions, and 0.0 if not.

  The response is the text after the last </think>, without <answer> tags around
  it. Without </think> the reward is 0. With `partial`, it is the share of the
  instructions that the response follows. Raises ValueError if the metadata lack
  the instructions or name an unknown one.
  """
  text = response(completion)
  metadata = example.metadata
  if "instruction_id_list" not in metadata:
    raise ValueError(
      f"instructions: example {example.id!r} has metadata {[*metadata]}; it "
      "needs 'instruction_id_list' and 'kwargs'"
    )
  names = metadata["instruction_id_list"]
  arguments = metadata.get("kwargs") or [{}] * len(names)
  results = [
    text is not None and follows(text, name, kwargs)
    for name, kwargs in zip(names, arguments, strict=True)
  ]
  if partial and results:
    return sum(results) / len(results)
  return float(text is not None and all(results))


def response(completion: Completion) -> str | None:
  """Returns the text that the user sees; None without </think>."""
  _, closed, text = completion.text.rpartition("</think>")
  if not closed:
    return None
  bare = text.strip()
  if bare.startswith("<answer>") and bare.endswith("</answer>"):
    bare = bare.removeprefix("<answer>").removesuffix("</answer>")
    return bare if "<answer>" not in bare else text
  return text.strip("\n")


def follows(text: str, name: str, kwargs: Mapping[str, Any]) -> bool:
  """Whether a response follows one instruction; an empty one follows none.

  Raises ValueError for an unknown kind of instruction.
  """
  known = {key: value for key, value in kwargs.items() if value is not None}
  check = CHECKS.get(name)
  if check is None:
    raise ValueError(f"instructions: unknown instruction {name!r}")
  if not text.strip() or len(text) > MAX_LENGTH:
    return False
  return bool(check(text, **known))


def compare(count: int, relation: str, number: int) -> bool:
  """Whether a count is "at least" or "less than" a number."""
  if relation not in ("at least", "less than"):
    raise ValueError(
      "instructions: relation must be 'at least' or 'less than', got "
      f"{relation!r}"
    )
  return count >= number if relation == "at least" else count < number


def number_words(text: str, *, relation: str, num_words: int) -> bool:
  """Whether the number of words (of letters, digits and "_") is as asked."""
  return compare(len(re.findall(r"\w+", text)), relation, num_words)


def number_sentences(text: str, *, relation: str, num_sentences: int) -> bool:
  """Whether the number of sentences is as asked."""
  return compare(len(sentences.split(text)), relation, num_sentences)


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
  """Whether there are exactly so many paragraphs, divided by "***".

  The first and the last do not count if they are empty; no other paragraph may
  be empty.
  """
  parts = re.split(r"\s?\*\*\*\s?", text)
  inner = parts[1:-1]
  count = len(inner) + sum(bool(part.strip()) for part in (parts[0], parts[-1]))
  if len(parts) == 1:
    count = 1
  return all(part.strip() for part in inner) and count == num_paragraphs


def nth_paragraph_first_word(
  text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
  """Whether the n-th of so many paragraphs begins with a word, in any case.

  Paragraphs are divided by two line breaks.
  """
  parts = text.split("\n\n")
  count = sum(bool(part.strip()) for part in parts)
  if count != num_paragraphs or not 1 <= nth_paragraph <= count:
    return False
  words = parts[nth_paragraph - 1].split()
  if not words:
    return False
  first = re.split(r"[.,?!'\"]", words[0].lstrip("'\"").lower())[0]
  return first == first_word.lower()


def existence(text: str, *, keywords: Sequence[str]) -> bool:
  """Whether every keyword occurs, in any case, also within a word."""
  return all(_count(keyword, text) for keyword in keywords)


def frequency(
  text: str, *, relation: str, keyword: str, frequency: int
) -> bool:
  """Whether a keyword occurs as often as asked, in any case, also in words."""
  return compare(_count(keyword.strip(), text), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: Sequence[str]) -> bool:
  """Whether none of the words occurs as a whole word, in any case."""
  return not any(
    re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)
    for word in forbidden_words
  )


def letter_frequency(
  text: str, *, let_relation: str, letter: str, let_frequency: int
) -> bool:
  """Whether a letter occurs as often as asked, in any case."""
  count = text.lower().count(letter.strip().lower())
  return compare(count, let_relation, let_frequency)


def response_language(text: str, *, language: str) -> bool:
  """Whether the response is in a language."""
  return _is_in(text, language)


def in_capitals(code: str) -> Callable[[str], bool]:
  """Returns a check that the response is in a language, all in capitals."""
  return lambda text: text.isupper() and _is_in(text.lower(), code)


def in_lowercase(code: str) -> Callable[[str], bool]:
  """Returns a check that the response is in a language, all in lower case."""
  return lambda text: text.islower() and _is_in(text, code)


def capital_word_frequency(
  text: str, *, capital_relation: str, capital_frequency: int
) -> bool:
  """Whether the number of words in capitals is as asked."""
  count = sum(map(str.isupper, sentences.tokens(text)))
  return compare(count, capital_relation, capital_frequency)


def no_comma(text: str) -> bool:
  """Whether there is no comma."""
  return "," not in text


def number_placeholders(
  text: str, *, num_placeholders: int, relation: str = "at least"
) -> bool:
  """Whether the number of [placeholders] is as asked."""
  count = sum(_placeholders(line) for line in text.split("\n"))
  return compare(count, relation, num_placeholders)


def postscript(text: str, *, postscript_marker: str) -> bool:
  """Whether there is a postscript that begins with the marker."""
  marker = postscript_marker.strip().lower()
  pattern = {
    "p.p.s": r"p\.\s?p\.\s?s",
    "p.s.": r"p\.\s?s\.",
  }.get(marker, re.escape(marker))
  return re.search(pattern, text.lower()) is not None


def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
  """Whether exactly so many lines begin with "*" or "-"."""
  lines = [line.lstrip() for line in text.split("\n")]
  stars = [line for line in lines if re.match(r"\*[^*]", line)]
  dashes = [line for line in lines if line.startswith("-")]
  return len(stars) + len(dashes) == num_bullets


def constrained_response(text: str) -> bool:
  """Whether one of OPTIONS occurs."""
  return any(option in text for option in OPTIONS)


def number_highlighted_sections(
  text: str, *, num_highlights: int, relation: str = "at least"
) -> bool:
  """Whether the number of *highlights* and **highlights** is as asked."""
  single = re.findall(r"\*[^\n*]*\*", text)
  double = re.findall(r"\*\*[^\n*]*\*\*", text)
  count = sum(bool(span.strip("* \t")) for span in single + double)
  return compare(count, relation, num_highlights)


def multiple_sections(
  text: str, *, section_spliter: str, num_sections: int, relation="at least"
) -> bool:
  """Whether the number of headings "Section 1" (or such) is as asked."""
  pattern = rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?"
  return compare(len(re.findall(pattern, text)), relation, num_sections)


def json_format(text: str) -> bool:
  """Whether the response is JSON, or a fenced block of JSON."""
  bare = re.sub(r"^```(?:json|Json|JSON)?", "", text.strip())
  try:
    json.loads(bare.removesuffix("```").strip())
  except (ValueError, RecursionError):
    return False
  return True


def title(text: str) -> bool:
  """Whether there is a <<title>>."""
  for line in text.split("\n"):
    start, end = line.find("<<"), line.rfind(">>")
    if 0 <= start < end and line[start:end].strip("<> \t"):
      return True
  return False


def two_responses(text: str) -> bool:
  """Whether there are two different responses, with six asterisks between."""
  parts = [part.strip() for part in text.split("******")]
  full = [part for part in parts if part]
  return all(parts[1:-1]) and len(full) == 2 and full[0] != full[1]


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
  """Whether the response begins with the prompt, in any case."""
  return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, *, end_phrase: str) -> bool:
  """Whether the response, without quotation marks, ends with the phrase."""
  end = end_phrase.strip().lower()
  return text.strip().strip('"').lower().endswith(end)


def quotation(text: str) -> bool:
  """Whether the response is in double quotation marks."""
  bare = text.strip()
  return len(bare) > 1 and bare[0] == bare[-1] == '"'


CHECKS: dict[str, Callable[..., bool]] = {
  "change_case:capital_word_frequency": capital_word_frequency,
  "change_case:english_capital": in_capitals("en"),
  "change_case:english_lowercase": in_lowercase("en"),
  "change_case:french_capital": in_capitals("fr"),
  "change_case:french_lowercase": in_lowercase("fr"),
  "change_case:spanish_capital": in_capitals("es"),
  "change_case:spanish_lowercase": in_lowercase("es"),
  "combination:repeat_prompt": repeat_prompt,
  "combination:two_responses": two_responses,
  "detectable_content:number_placeholders": number_placeholders,
  "detectable_content:postscript": postscript,
  "detectable_format:constrained_response": constrained_response,
  "detectable_format:json_format": json_format,
  "detectable_format:multiple_sections": multiple_sections,
  "detectable_format:number_bullet_lists": number_bullet_lists,
  "detectable_format:number_highlighted_sections": number_highlighted_sections,
  "detectable_format:title": title,
  "keywords:existence": existence,
  "keywords:forbidden_words": forbidden_words,
  "keywords:frequency": frequency,
  "keywords:letter_frequency": letter_frequency,
  "language:response_language": response_language,
  "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
  "length_constraints:number_paragraphs": number_paragraphs,
  "length_constraints:number_sentences": number_sentences,
  "length_constraints:number_words": number_words,
  "punctuation:no_comma": no_comma,
  "startend:end_checker": end_checker,
  "startend:quotation": quotation,
}


def _placeholders(line: str) -> int:
  """Returns the number of "[" with a later "]", in linear time."""
  count = position = 0
  while (start := line.find("[", position)) >= 0:
    position = line.find("]", start) + 1
    if not position:
      break
    count += 1
  return count


def _count(keyword: str, text: str) -> int:
  return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


def _is_in(text: str, code: str) -> bool:
  """Whether a text is in a language; a text without letters is in any."""
  code = code.split("-")[0]
  return language.identify(text, code) in (None, code)
