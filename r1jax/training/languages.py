"""The languages that a policy thinks in, from some completions of a round."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from r1jax.rewards import language
from r1jax.types import Completion, Example

READ = 32  # Completions of a round that each host reads, at even distances.
MIXED = 0.95  # A thought is mixed if fewer of its words are in one language.


def count(
  examples: Sequence[Example], completions: Sequence[Completion | None]
) -> Int[np.ndarray, "N"]:
  """The words of thoughts in each of `language.LANGUAGES`, and two more counts.

  These are the thoughts that have words, and those of them that are mixed. They
  may be added up over hosts. A completion that is None is on another host.
  """
  known = [i for i, c in enumerate(completions) if c is not None]
  words, thoughts, mixed = Counter(), 0, 0
  for i in known[:: max(len(known) // READ, 1)][:READ]:
    counts = language.count_thought(examples[i], completions[i])
    words += counts
    thoughts += bool(counts)
    mixed += is_mixed(counts)
  return np.array([*(words[c] for c in language.LANGUAGES), thoughts, mixed])


def is_mixed(counts: Counter[str]) -> bool:
  """Whether the words of a thought, by language, are of several."""
  return bool(counts) and max(counts.values()) < MIXED * sum(counts.values())


def numbers(counts: Int[np.ndarray, "N"]) -> dict[str, float]:
  """The metrics of `count`: the share of each language that occurs."""
  *words, thoughts, mixed = counts.tolist()
  if not thoughts:
    return {}
  shares = {
    f"language/{code}": number / sum(words)
    for code, number in zip(language.LANGUAGES, words, strict=True)
    if number
  }
  return shares | {"language/mixed": mixed / thoughts}
