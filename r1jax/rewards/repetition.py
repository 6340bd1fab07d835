"""Repetition penalty: the share of word sequences that were there before."""

from r1jax.rewards import words
from r1jax.rewards.format import whole
from r1jax.text import Completion, Example


def reward(example: Example, completion: Completion, *, size: int = 3) -> float:
  """0 if no sequence of `size` words occurs twice, towards -1 the more do.

      distinct sequences / sequences - 1

  Yeo et al. (arXiv:2502.03373), section 5.2, with a penalty per sequence in
  place of one per token. Characters of scripts without spaces are words; a text
  of fewer words than `size` has no sequence, and gets 0.
  """
  del example
  if size < 1:
    raise ValueError(f"repetition: size must be 1 or more, got {size}")
  spoken = words.split(whole(completion).lower())
  sequences = [*zip(*(spoken[i:] for i in range(size)))]
  if not sequences:
    return 0.0
  return len(set(sequences)) / len(sequences) - 1.0
