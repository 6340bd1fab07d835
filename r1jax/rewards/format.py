"""Format rewards: the thinking inside its tags, the answer inside its own.

DeepSeek-R1 (arXiv:2501.12948), section 2.2.2. A tag that the template had
written (`Completion.prefill`) counts as the policy's.
"""

import re

from r1jax.text import Completion, Example

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
PATTERN = re.compile(
  r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL
)


def reward(example: Example, completion: Completion) -> float:
  """1 if the text is <think>...</think> <answer>...</answer> and no more, or 0.

  Each tag stands there once; only whitespace may stand between the two parts
  and around them.
  """
  del example
  text = whole(completion)
  once = all(text.count(tag) == 1 for tag in TAGS)
  return float(once and PATTERN.fullmatch(text) is not None)


def tags(example: Example, completion: Completion) -> float:
  """A quarter for each of the four tags that stands there once, in its place.

  A tag is out of place if it comes before one that should precede it and that
  stands there once too. What is outside of the tags does not matter.
  """
  del example
  text = whole(completion)
  credit, last = 0.0, -1
  for tag in TAGS:
    if text.count(tag) == 1 and text.index(tag) > last:
      last = text.index(tag)
      credit += 0.25
  return credit


def whole(completion: Completion) -> str:
  """The text with what the template had written before it, once."""
  text, prefill = completion.text, completion.prefill
  return text if text.startswith(prefill) else prefill + text
