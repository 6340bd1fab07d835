"""Rewards of length, all of it counted in the policy's own tokens.

Characters are not tokens: a completion whose number of tokens is not known (0)
is not graded, and neither is one whose limit is needed and not known.
"""

import math
from collections.abc import Sequence

from r1jax.rewards import accuracy
from r1jax.text import Completion, Example


def overlong(
  example: Example,
  completion: Completion,
  *,
  buffer: int,
  max_tokens: int | None = None,
) -> float | None:
  """0 up to `buffer` tokens before the limit, falling to -1 at the limit.

      ((limit - buffer) - tokens) / buffer, between 0 and -1

  DAPO (arXiv:2503.14476), eq. 13.

  Args:
    example: not read.
    completion: what was written.
    buffer: the tokens before the limit in which the penalty grows.
    max_tokens: the limit; None takes the one that the completion ran under.
  """
  del example
  limit = _limit(completion, max_tokens)
  if not 0 < buffer:
    raise ValueError(f"overlong: buffer must be 1 or more, got {buffer}")
  if limit is None:
    return None
  over = completion.num_tokens - (limit - buffer)
  return -min(max(over / buffer, 0.0), 1.0)


def cosine(
  example: Example,
  completion: Completion,
  *,
  max_tokens: int | None = None,
  right: Sequence[float] = (1.0, 0.5),
  wrong: Sequence[float] = (-1.0, -0.5),
) -> float | None:
  """Short is better for right answers, and long is better for wrong ones.

      last + (first - last) (1 + cos(pi tokens / limit)) / 2

  Yeo et al. (arXiv:2502.03373), section 4. Beyond the limit it stays at `last`.

  Args:
    example: what the accuracy reward needs.
    completion: what was written.
    max_tokens: the limit; None takes the one that the completion ran under.
    right: the reward of a right answer of no length, and of one at the limit.
    wrong: the same for a wrong answer.
  """
  limit = _limit(completion, max_tokens)
  if limit is None:
    return None
  correct = accuracy.reward(example, completion)
  if correct is None:
    return None
  first, last = right if correct == 1.0 else wrong
  share = min(completion.num_tokens / limit, 1.0)
  return last + (first - last) * (1.0 + math.cos(math.pi * share)) / 2.0


def group(
  example: Example, completions: Sequence[Completion]
) -> list[float | None]:
  """From 0.5 for the group's shortest to -0.5 for its longest.

      0.5 - (tokens - shortest) / (longest - shortest)

  and at most 0 for a wrong answer; 0 for all if they are equally long. Kimi
  k1.5 (arXiv:2501.12599), section 2.3.3. Completions that cannot be graded, or
  whose tokens were not counted, get None and are not compared with.
  """
  known = [c.num_tokens for c in completions if c.num_tokens > 0]
  if not known:
    return [None] * len(completions)
  shortest, longest = min(known), max(known)
  rewards = []
  for completion in completions:
    if completion.num_tokens <= 0:
      rewards.append(None)
    elif shortest == longest:
      rewards.append(0.0)
    elif (correct := accuracy.reward(example, completion)) is None:
      rewards.append(None)
    else:
      share = (completion.num_tokens - shortest) / (longest - shortest)
      value = 0.5 - share
      rewards.append(value if correct == 1.0 else min(value, 0.0))
  return rewards


def _limit(completion: Completion, max_tokens: int | None) -> int | None:
  """The limit in tokens; None if it or the completion's length is unknown."""
  limit = completion.max_tokens if max_tokens is None else max_tokens
  if limit < 0:
    raise ValueError(f"max_tokens must be 1 or more, got {limit}")
  return limit if limit > 0 and completion.num_tokens > 0 else None
