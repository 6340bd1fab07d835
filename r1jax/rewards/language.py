"""Language consistency reward: whether the thoughts stay in one language.

    words in the target language / words        (arXiv:2501.12948, eq. 7)

The words are those of the chain of thought, without formulas, code, numbers and
URLs. The script identifies most languages. Languages that share a script are
identified by py3langid and by function words, sentence by sentence. In scripts
without spaces each character is a word.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from r1jax.rewards import function_words, words
from r1jax.text import Completion, Example

MAX_LENGTH = 300_000  # Characters of a text that are read.
MAX_SENTENCE = 1000  # Characters of a sentence that are classified.
MAX_WORD = 40  # Characters of a word that are classified.
MAX_ENVIRONMENTS = 20  # Kinds of LaTeX environments that are removed.
PRIOR = 3.0  # Nats added to the score of the expected language.
CUE = 24.0  # Nats subtracted from languages that lack a function word.

# Spans that are not prose. A span without its end is prose.
SPANS = (("```", "```"), ("$$", "$$"), (r"\[", r"\]"), (r"\(", r"\)"))
ENVIRONMENT = re.compile(r"\\begin\{(\w{1,20}\*?)\}")
NO_PROSE = tuple(
  re.compile(pattern)
  for pattern in (
    r"`[^`\n]*`",
    r"\$(?=[^$\n]*[\\^_={}<>+*/]|[^$\s]\$)[^$\n]*\$",  # Not "$10 and $20".
    r"\\[a-zA-Z]+(?:\{[^{}]*\}|\[[^\[\]]*\])*",
    r"</?\w{1,20}>",
    r"(?:https?://|www\.)\S+",
    r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,64}\.[\w.]{1,64}",
  )
)
SENTENCE = re.compile(r"[^.!?\n。！？;；।॥]+[.!?\n。！？;；।॥]*")
# A single letter that is a symbol, such as x, belongs to no language.
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
# Languages that share a script. The first one is the script's default.
SHARED = {
  "latin": (
    *("en", "de", "es", "fi", "fr", "id", "it", "nl", "pl", "pt", "sv", "sw"),
    *("tr", "vi"),
  ),
  "cyrillic": ("ru", "bg", "uk"),
  "arabic": ("ar", "fa", "ur"),
  "devanagari": ("hi", "mr", "ne"),
}
LANGUAGES = (  # The codes of all languages that are told apart.
  *(code for codes in SHARED.values() for code in codes),
  *("ja", "zh"),
  *(code for code, _ in SCRIPTS if len(code) == 2),
)


def reward(
  example: Example, completion: Completion, *, target: str | None = None
) -> float:
  """Returns the share of the thoughts' words that are in the target language.

  The thoughts are the text before the last </think>, or the whole text without
  that tag. The reward is 0 if they have no words.

  Args:
    example: without `target`, its `metadata["language"]` is the target, or else
      the language of its prompt.
    completion: its thoughts are graded.
    target: the code (ISO 639-1) of the target language.
  """
  target = target_of(example, target)
  counts = count_thought(example, completion, target)
  total = sum(counts.values())
  if not total:
    return 0.0
  if target is None:  # The prompt has no words, so any one language will do.
    return max(counts.values()) / total
  return counts[target] / total


def target_of(example: Example, target: str | None = None) -> str | None:
  """Returns the code of the language that is asked for; see `reward`."""
  target = target or example.metadata.get("language")
  if target is None:
    target = identify(prose(example.prompt))
  return target and target.split("-")[0].lower()


def count_thought(
  example: Example, completion: Completion, target: str | None = None
) -> Counter[str]:
  """Returns the number of a thought's words in each language.

  A thought that is too short to classify is in the target language.
  """
  target = target_of(example, target)
  return count(prose(thinking(completion.text)), target)


def thinking(text: str) -> str:
  """Returns the chain of thought: the text before the last </think>."""
  before, closed, _ = text.rpartition("</think>")
  return (before if closed else text).replace("<think>", " ")


def prose(text: str) -> str:
  """Returns the text without formulas, code, tags and addresses."""
  text = text[:MAX_LENGTH]
  for opening, closing in SPANS:
    text = _cut(text, opening, closing)
  for name in sorted({*ENVIRONMENT.findall(text)})[:MAX_ENVIRONMENTS]:
    text = _cut(text, rf"\begin{{{name}}}", rf"\end{{{name}}}")
  for pattern in NO_PROSE:
    text = pattern.sub(" ", text)
  return text


def _cut(text: str, opening: str, closing: str) -> str:
  """Returns the text without the spans between two marks, in linear time."""
  kept, position = [], 0
  while (start := text.find(opening, position)) >= 0:
    end = text.find(closing, start + len(opening))
    if end < 0:
      break
    kept.append(text[position:start])
    position = end + len(closing)
  return " ".join([*kept, text[position:]])


def identify(text: str, expected: str | None = None) -> str | None:
  """Returns the language (ISO 639-1) of most words; None without words.

  `expected` is the language to assume if the text is too short to classify.
  """
  counts = count(text[:MAX_LENGTH], expected)
  return max(sorted(counts), key=counts.__getitem__, default=None)


def count(text: str, expected: str | None = None) -> Counter[str]:
  """Returns the number of a text's words in each language.

  A sentence that is too short to classify is in the language of the whole text,
  and a text that is too short is in the `expected` language.
  """
  sentences, texts = [*_sentences(text)], {}
  for script, sentence in sentences:
    if script in SHARED:
      texts.setdefault(script, []).extend(sentence)
  default = {
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
      counts[_language(script, sentence, default[script])] += len(sentence)
    else:
      counts[script] += len(sentence)
  return counts


def _sentences(text: str) -> Iterator[tuple[str, list[str]]]:
  """Yields (script, words) for each script of each sentence."""
  for match in SENTENCE.finditer(text):
    by_script = {}
    for word in words.split(match[0]):
      if script := _script(word[:MAX_WORD]):
        by_script.setdefault(script, []).append(word)
    if kana := by_script.pop("kana", None):  # Han beside kana is Japanese.
      by_script["ja"] = kana + by_script.pop("han", [])
    if han := by_script.pop("han", None):
      by_script["zh"] = han
    yield from by_script.items()


@functools.lru_cache(1 << 16)
def _script(word: str) -> str | None:
  """Returns the script of a word; None for symbols and other scripts."""
  if SYMBOL.fullmatch(word):
    return None
  for script, letters in SCRIPTS:
    if letters.search(word):
      return script
  return None


def _language(script: str, sentence: Sequence[str], default: str) -> str:
  """Returns the most likely language of words in a shared script."""
  text = " ".join(sentence)[:MAX_SENTENCE]
  scores = _scores(script, text)
  return max(
    sorted(scores),
    key=lambda code: (
      scores[code] + PRIOR * (code == default),
      code == default,
    ),
  )


@functools.lru_cache(4096)
def _scores(script: str, text: str) -> dict[str, float]:
  """Returns log-probabilities of a script's languages, up to a constant.

  Letters are not independent, so that the sum of their log-probabilities is too
  confident. Dividing it by the square root of the number of bytes calibrates
  it, as in py3langid.
  """
  ranked = dict(load().rank(text))
  scores = {code: ranked[code] for code in SHARED[script]}
  for codes in function_words.matches(text):
    for code in scores.keys() - codes:
      scores[code] -= CUE
  scale = math.sqrt(len(text.encode("utf-8", "surrogatepass")))
  return {code: score / scale for code, score in scores.items()}


@functools.cache
def load():
  """Returns the language identifier; loading it takes most of a second."""
  from py3langid.langid import MODEL_FILE, LanguageIdentifier

  identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
  identifier.set_languages(
    [code for codes in SHARED.values() for code in codes]
  )
  return identifier
