"""Random reward: a control; what it teaches, no reward has taught."""

import hashlib

from r1jax.text import Completion, Example


def reward(
  example: Example,
  completion: Completion,
  *,
  probability: float = 0.5,
  seed: int = 0,
) -> float:
  """1 with the given probability, or 0: a coin that the text itself tosses.

  A function of (example.id, text, seed), so equal completions are paid alike.
  """
  text = f"{seed}\0{example.id}\0{completion.text}"
  digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
  return float(int.from_bytes(digest.digest()) < probability * 2**64)
