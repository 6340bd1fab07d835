"""Quality of an answer to a general request, by a rule.

The mean of six criteria. A tiny model's answers to the requests of
`r1jax.data.general` are short sentences, so simple checks tell good answers
from bad ones. Training uses a reward model that learned from pairs; this rule
says how good that model, and the policy that it trains, really are.
"""

import re
from collections.abc import Sequence

from r1jax.rewards import language, repetition, words
from r1jax.text import DOES_NOT_APPLY, Completion, Example

DOMAIN = "general"
MIN_WORDS, MAX_WORDS = 4, 30  # Of an answer; each Han character is a word.
ENDS = (".", "!", "?", "。", "！", "？")
TAGS = ("<answer>", "</answer>")


def reward(example: Example, completion: Completion) -> float | str:
  """Returns the mean of `criteria`, in [0, 1].

  It does not apply outside of the domain "general".
  """
  if not applies(example):
    return DOES_NOT_APPLY
  values = criteria(example, summary(completion.text)).values()
  return sum(values) / len(values)


def applies(example: Example) -> bool:
  """Whether an example is a general request."""
  return example.domain.partition("/")[0] == DOMAIN


def check(examples: Sequence[Example]) -> None:
  """Raises ValueError for a general request without the metadata."""
  for example in examples:
    missing = {"language", "name", "ideas"} - example.metadata.keys()
    if applies(example) and missing:
      raise ValueError(
        f"the metadata of example {example.id!r} lack {sorted(missing)}; take "
        "the requests of the dataset 'general'"
      )


def summary(text: str) -> str:
  """Returns what the reader sees: the text after the last </think>.

  The tags of the answer are removed.
  """
  text = text.rpartition("</think>")[2]
  for tag in TAGS:
    text = text.replace(tag, "")
  return text.strip()


def criteria(example: Example, answer: str) -> dict[str, float]:
  """Returns the value of each criterion, in [0, 1].

      addressed   the answer names the person who asks
      relevant    the share of the ideas that it mentions
      language    the share of its words in the language of the request
      sentence    it is a sentence: a capital or Han at its start, and an end
      fresh       no three words in a row occur twice
      length      it has 4 to 30 words

  Args:
    example: its metadata are "language" (ISO 639-1), "name", the spellings of
      the person's name, and "ideas": for each idea, the words of which one
      expresses it.
    answer: the text that the reader sees.
  """
  target, ideas = example.metadata["language"], example.metadata["ideas"]
  counts = language.count(language.prose(answer), target)
  number, first = len(words.split(answer)), answer[:1]
  repeats = repetition.reward(example, Completion(answer)) < 0
  is_sentence = (
    answer.endswith(ENDS) and first.isalpha() and first == first.upper()
  )
  return {
    "addressed": float(mentions(answer, example.metadata["name"])),
    "relevant": sum(mentions(answer, idea) for idea in ideas) / len(ideas),
    "language": counts[target] / max(counts.total(), 1),
    "sentence": float(is_sentence),
    "fresh": float(number > 0 and not repeats),
    "length": float(MIN_WORDS <= number <= MAX_WORDS),
  }


def mentions(answer: str, options: Sequence[str]) -> bool:
  """Whether one of the options occurs, and not within a longer Latin word."""
  return any(
    re.search(rf"(?<![a-z]){re.escape(option)}(?![a-z])", answer, re.IGNORECASE)
    for option in options
  )
