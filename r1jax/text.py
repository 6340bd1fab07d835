"""The nouns that are text: what graders see. No JAX is imported for them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# The value of a reward for an example that is none of its business; None is
# that of a completion that it could not grade.
DOES_NOT_APPLY = "does not apply"


class Example(NamedTuple):
  """A problem and what its grader needs; text, on the host."""

  prompt: str  # The question alone; the template is added when encoding.
  answer: str  # The reference answer.
  domain: str = ""  # Picks the grader, and names the task in metrics.
  id: str = ""  # Unique within its dataset.
  metadata: Mapping[str, Any] = {}  # What else the domain's grader reads.


class Completion(NamedTuple):
  """What the policy wrote, as rewards see it; text, on the host."""

  text: str  # Whole: a prefilled tag is put back; EOS is not in it.
  num_tokens: int = 0  # Tokens that the policy chose, EOS included.
  max_tokens: int = 0  # The limit it ran under; 0 if unknown.
  finish: str = "stop"  # "stop" (EOS) or "length" (cut at the limit).
  prefill: str = ""  # The part of `text` that the template had written.
