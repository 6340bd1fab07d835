"""Language consistency: the thinking stays in one language.

    words in the target language / words        (arXiv:2501.12948, eq. 7)

over the chain of thought, without its formulas, code, numbers and URLs. Scripts
tell most languages apart; those that share one are told by py3langid and by
their function words, sentence by sentence. Where a script has no spaces, each
character is a word.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from r1jax.rewards import function_words, words
from r1jax.text import Completion, Example

MAX_LENGTH = 300_000  # Characters that are read of a text.
MAX_SENTENCE = 1000  # Characters that tell a sentence's language.
MAX_WORD = 40  # Characters that tell a word's script.
MAX_ENVIRONMENTS = 20  # Kinds of LaTeX environments that are left out.
PRIOR = 3.0  # Nats: what the expected language has ahead of the others.
CUE = 24.0  # Nats that a function word takes from languages without it.

# What is no prose. It must be closed, or it is prose.
SPANS = (("```", "```"), ("$$", "$$"), (r"\[", r"\]"), (r"\(", r"\)"))
ENVIRONMENT = re.compile(r"\\begin\{(\w{1,20}\*?)\}")
NO_PROSE = tuple(
  re.compile(pattern)
  for pattern in (
    r"`[^`\n]*`",
    r"\$(?=[^$\n]*[\\^_={}<>+*/]|[^$\s]\$)[^$\n]*\$",  # No "$10 and $20".
    r"\\[a-zA-Z]+(?:\{[^{}]*\}|\[[^\[\]]*\])*",
    r"</?\w{1,20}>",
    r"(?:https?://|www\.)\S+",
    r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,64}\.[\w.]{1,64}",
  )
)
SENTENCE = re.compile(r"[^.!?\n。！？;；।॥]+[.!?\n。！？;；।॥]*")
# A letter that stands for itself, as x and y do, is a word of no language.
SYMBOL = re.compile(
  r"[\W\d_]*(?:[b-hj-np-tv-xzB-HJ-NP-Z]|[\u0370-\u03ff])[\W\d_]*"
)

SCRIPTS = tuple(
  (script, re.compile(f"[{pattern}]"))
  for script, pattern in (
    ("latin", "A-Za-z\u00aa-\u024f\u1e00-\u1eff"),
    ("cyrillic", "\u0400-\u052f"),
    ("arabic", "\u0620-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc"),
    ("devanagari", "\u0900-\u0963\u0971-\u097f"),
    ("kana", "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f"),
    ("han", "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"),
    ("ko", "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"),
    ("th", "\u0e01-\u0e3a\u0e40-\u0e4e"),
    ("bn", "\u0981-\u09fe"),
    ("te", "\u0c00-\u0c7f"),
    ("ta", "\u0b80-\u0bff"),
    ("kn", "\u0c80-\u0cff"),
    ("ml", "\u0d00-\u0d7f"),
    ("gu", "\u0a80-\u0aff"),
    ("pa", "\u0a00-\u0a7f"),
    ("el", "\u0370-\u03ff\u1f00-\u1fff"),
    ("he", "\u0590-\u05ff"),
    ("ka", "\u10a0-\u10ff"),
    ("hy", "\u0530-\u058f"),
    ("am", "\u1200-\u137f"),
    ("si", "\u0d80-\u0dff"),
    ("lo", "\u0e81-\u0ede"),
    ("km", "\u1780-\u17d3"),
    ("my", "\u1000-\u109f"),
  )
)
# The languages that share a script, the first of which is its usual one.
SHARED = {
  "latin": (
    *("en", "de", "es", "fi", "fr", "id", "it", "nl", "pl", "pt", "sv", "sw"),
    *("tr", "vi"),
  ),
  "cyrillic": ("ru", "bg", "uk"),
  "arabic": ("ar", "fa", "ur"),
  "devanagari": ("hi", "mr", "ne"),
}


def reward(
  example: Example, completion: Completion, *, target: str | None = None
) -> float:
  """The share of the thinking's words that are in the target language.

  0 for thinking without a word. The thinking is what stands before the last
  </think>, and without one the whole text.

  Args:
    example: its prompt's language is the target, unless its metadata says
      otherwise under "language".
    completion: what was written.
    target: the code of the language asked for (ISO 639-1), whatever the prompt.
  """
  target = target or example.metadata.get("language")
  if target is None:
    target = identify(prose(example.prompt))
  target = target and target.split("-")[0].lower()
  counts = count(prose(thinking(completion.text)), target)
  total = sum(counts.values())
  if not total:
    return 0.0
  if target is None:  # The prompt has no words: one language, whichever.
    return max(counts.values()) / total
  return counts[target] / total


def thinking(text: str) -> str:
  """The chain of thought."""
  before, closed, _ = text.rpartition("</think>")
  return (before if closed else text).replace("<think>", " ")


def prose(text: str) -> str:
  """The text without formulas, code, tags and addresses."""
  text = text[:MAX_LENGTH]
  for opening, closing in SPANS:
    text = _cut(text, opening, closing)
  for name in sorted({*ENVIRONMENT.findall(text)})[:MAX_ENVIRONMENTS]:
    text = _cut(text, rf"\begin{{{name}}}", rf"\end{{{name}}}")
  for pattern in NO_PROSE:
    text = pattern.sub(" ", text)
  return text


def _cut(text: str, opening: str, closing: str) -> str:
  """The text without its spans, in time that grows with its length alone."""
  kept, position = [], 0
  while (start := text.find(opening, position)) >= 0:
    end = text.find(closing, start + len(opening))
    if end < 0:
      break
    kept.append(text[position:start])
    position = end + len(closing)
  return " ".join([*kept, text[position:]])


def identify(text: str, expected: str | None = None) -> str | None:
  """The language of a text, in which most of its words are; None without any.

  Codes are ISO 639-1's. `expected` is the language to assume where the words
  are too few to tell.
  """
  counts = count(text[:MAX_LENGTH], expected)
  return max(sorted(counts), key=counts.__getitem__, default=None)


def count(text: str, expected: str | None = None) -> Counter[str]:
  """How many words of a text are in each language.

  A short sentence is in the language of the whole text, unless its words say
  otherwise; and a short text in the `expected` language.
  """
  sentences, texts = [*_sentences(text)], {}
  for script, sentence in sentences:
    if script in SHARED:
      texts.setdefault(script, []).extend(sentence)
  usual = {
    script: _language(
      script,
      sentence,
      expected if expected in SHARED[script] else SHARED[script][0],
    )
    for script, sentence in texts.items()
  }
  counts = Counter()
  for script, sentence in sentences:
    if script in SHARED:
      counts[_language(script, sentence, usual[script])] += len(sentence)
    else:
      counts[script] += len(sentence)
  return counts


def _sentences(text: str) -> Iterator[tuple[str, list[str]]]:
  """The words of each sentence, script by script."""
  for match in SENTENCE.finditer(text):
    by_script = {}
    for word in words.split(match[0]):
      if script := _script(word[:MAX_WORD]):
        by_script.setdefault(script, []).append(word)
    if kana := by_script.pop("kana", None):  # Its Han are Japanese too.
      by_script["ja"] = kana + by_script.pop("han", [])
    if han := by_script.pop("han", None):
      by_script["zh"] = han
    yield from by_script.items()


@functools.lru_cache(1 << 16)
def _script(word: str) -> str | None:
  """The script of a word; None for one of no language."""
  if SYMBOL.fullmatch(word):
    return None
  for script, letters in SCRIPTS:
    if letters.search(word):
      return script
  return None


def _language(script: str, sentence: Sequence[str], usual: str) -> str:
  """The language of words in a shared script; the usual one if in doubt."""
  text = " ".join(sentence)[:MAX_SENTENCE]
  scores = _scores(script, text)
  return max(
    sorted(scores),
    key=lambda code: (scores[code] + PRIOR * (code == usual), code == usual),
  )


@functools.lru_cache(4096)
def _scores(script: str, text: str) -> dict[str, float]:
  """Log-probabilities of the script's languages, up to a constant.

  Letters are not independent: py3langid divides their sum by the root of the
  number of bytes, so that it is as sure of a text as it is often right.
  """
  ranked = dict(load().rank(text))
  scores = {code: ranked[code] for code in SHARED[script]}
  for known in function_words.found_in(text):
    for code in scores.keys() - known:
      scores[code] -= CUE
  scale = math.sqrt(len(text.encode("utf-8", "surrogatepass")))
  return {code: score / scale for code, score in scores.items()}


@functools.cache
def load():
  """The identifier of languages; most of a second to read its model."""
  from py3langid.langid import MODEL_FILE, LanguageIdentifier

  identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
  identifier.set_languages(
    [code for codes in SHARED.values() for code in codes]
  )
  return identifier
