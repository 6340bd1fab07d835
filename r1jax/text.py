"""Types of text that graders use; this module does not import JAX."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# The value of a reward that does not apply to an example. None instead means
# that the reward applies, but the completion could not be graded.
DOES_NOT_APPLY = "does not apply"

# Scripts without spaces between words, in which each character is a word.
UNSPACED = (
  "\u3005-\u3007"  # Iteration marks of Han.
  "\u3041-\u3096\u309d-\u309f"  # Hiragana
  "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Katakana
  "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fa1f"  # Han
  "\u0e01-\u0e3a\u0e40-\u0e4e"  # Thai
  "\u0e81-\u0ebd\u0ec0-\u0ece"  # Lao
  "\u1000-\u109f"  # Burmese
  "\u1780-\u17d3"  # Khmer
)


class Example(NamedTuple):
  """A problem, and the data that its grader needs."""

  prompt: str  # The question; encoding adds the template.
  answer: str  # The reference answer.
  domain: str = ""  # Selects the grader, and names the task in metrics.
  id: str = ""  # Unique within a dataset.
  metadata: Mapping[str, Any] = {}  # Further data for the domain's grader.


class Completion(NamedTuple):
  """A completion of a prompt, as rewards see it."""

  text: str  # The whole text, with the prefill and without EOS.
  num_tokens: int = 0  # Tokens that the policy sampled, EOS included.
  max_tokens: int = 0  # The token limit; 0 if unknown.
  finish: str = "stop"  # "stop" (EOS) or "length" (cut at the limit).
  prefill: str = ""  # The start of `text` that the template wrote.
