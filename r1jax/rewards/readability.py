"""Readability of a thought: the filters of DeepSeek-R1's own samples.

"We have filtered out chain-of-thought with mixed languages, long paragraphs,
and code blocks" (arXiv:2501.12948v1, section 2.3.3). The `language` reward
measures the first, and these the others; repetition has a reward of its own.
In the loop `generate` the section `keep` sets what a sample must reach.

The thought is the text before the last </think>, or the whole text without it.
"""

import re

from r1jax.rewards import words
from r1jax.rewards.format import full_text
from r1jax.rewards.language import thinking
from r1jax.text import Completion, Example

FENCE = re.compile(r"^[ \t>]*(?:`{3}|~{3})", re.MULTILINE)


def paragraphs(
  example: Example, completion: Completion, *, max_words: int
) -> float:
  """Returns 1.0 if no paragraph of the thought is long, and 0.0 otherwise.

  A line break ends a paragraph. Numbers and formulas count as words, and in
  scripts without spaces each character does. Raises ValueError for a
  `max_words` below 1.
  """
  del example
  if max_words < 1:
    raise ValueError(
      f"paragraphs: max_words must be 1 or more, got {max_words}"
    )
  lines = thinking(full_text(completion)).splitlines()
  return float(all(len(words.WORD.findall(x)) <= max_words for x in lines))


def prose(example: Example, completion: Completion) -> float:
  """Returns 1.0 if the thought has no fenced code block, and 0.0 otherwise.

  An opening fence is enough. Code within a line is prose.
  """
  del example
  return float(not FENCE.search(thinking(full_text(completion))))
