"""Random reward: a control experiment, since it carries no information."""

import hashlib

from r1jax.text import Completion, Example


def reward(
  example: Example,
  completion: Completion,
  *,
  probability: float = 0.5,
  seed: int = 0,
) -> float:
  """Returns 1.0 with the given probability, and 0.0 otherwise.

  The value is a hash of (example.id, text, seed), so that equal completions of
  an example get equal rewards.
  """
  text = f"{seed}\0{example.id}\0{completion.text}"
  digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
  return float(int.from_bytes(digest.digest()) < probability * 2**64)
