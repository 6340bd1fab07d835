"""Rewards for the length of a completion, in tokens of the policy.

A completion whose number of tokens is unknown (0) is not graded (None). Neither
is a completion whose token limit is needed and unknown.
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
  """Returns a penalty that falls from 0 to -1 in the last `buffer` tokens.

      ((limit - buffer) - tokens) / buffer, clipped to [-1, 0]

  DAPO (arXiv:2503.14476), eq. 13.

  Args:
    example: not used.
    completion: its `num_tokens` is graded.
    buffer: the number of tokens before the limit over which the penalty grows.
    max_tokens: the limit; None uses the one that the completion was sampled
      with.
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
  """Returns a reward that favours short correct and long wrong completions.

      last + (first - last) (1 + cos(pi tokens / limit)) / 2

  Yeo et al. (arXiv:2502.03373), section 4. Beyond the limit it stays at `last`.

  Args:
    example: the accuracy reward grades the completion with it.
    completion: its `num_tokens` and its answer are graded.
    max_tokens: the limit; None uses the one that the completion was sampled
      with.
    right: (first, last) for a correct answer: the rewards at 0 tokens and at
      the limit.
    wrong: (first, last) for a wrong answer.
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
  """Returns rewards from 0.5 for a group's shortest to -0.5 for its longest.

      0.5 - (tokens - shortest) / (longest - shortest)

  The reward of a wrong answer is at most 0. All rewards are 0 if all lengths
  are equal. Kimi k1.5 (arXiv:2501.12599), section 2.3.3. A completion whose
  number of tokens is unknown gets None and is not compared with; one whose
  answer cannot be graded gets None.
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
  """Returns the token limit; None if it or the number of tokens is unknown."""
  limit = completion.max_tokens if max_tokens is None else max_tokens
  if limit < 0:
    raise ValueError(f"max_tokens must be 1 or more, got {limit}")
  return limit if limit > 0 and completion.num_tokens > 0 else None
