"""Repetition penalty: the share of word sequences that occurred before."""

from r1jax.rewards import words
from r1jax.rewards.format import full_text
from r1jax.text import Completion, Example


def reward(example: Example, completion: Completion, *, size: int = 3) -> float:
  """Returns 0 if no sequence of `size` words repeats, and less the more do.

      distinct sequences / sequences - 1, in (-1, 0]

  Yeo et al. (arXiv:2502.03373), section 5.2, with a penalty per sequence
  instead of per token. In scripts without spaces each character is a word. A
  text of fewer than `size` words gets 0. Raises ValueError for a `size` below
  1.
  """
  del example
  if size < 1:
    raise ValueError(f"repetition: size must be 1 or more, got {size}")
  tokens = words.split(full_text(completion).lower())
  sequences = [*zip(*(tokens[i:] for i in range(size)))]
  if not sequences:
    return 0.0
  return len(set(sequences)) / len(sequences) - 1.0
