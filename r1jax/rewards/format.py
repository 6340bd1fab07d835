"""Format reward: the thinking inside its tags, then the answer inside its own.

DeepSeek-R1 (arXiv:2501.12948), section 2.2.2.
"""

import re

from r1jax.types import Completion, Example

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
PATTERN = re.compile(
  r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL
)


def reward(example: Example, completion: Completion) -> float:
  """1 if the text is <think>...</think> <answer>...</answer> and no more, or 0.

  Each tag stands there once; only whitespace may stand between the two parts
  and around them. What the template wrote for the policy is part of the text.
  """
  del example
  text = completion.text
  once = all(text.count(tag) == 1 for tag in TAGS)
  return float(once and PATTERN.fullmatch(text) is not None)
