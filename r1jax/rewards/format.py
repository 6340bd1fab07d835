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
  """Returns 1.0 for <think>...</think> <answer>...</answer>, and 0.0 otherwise.

  Each tag must occur exactly once. Only whitespace may surround and separate
  the two parts.

  Examples:
    >>> text = "<think> 1 + 1 = 2 </think> <answer> 2 </answer>"
    >>> example = Example("1 + 1 =", "2")
    >>> reward(example, Completion(text))
    1.0
    >>> reward(example, Completion("2 " + text))
    0.0
  """
  del example
  text = full_text(completion)
  once = all(text.count(tag) == 1 for tag in TAGS)
  return float(once and PATTERN.fullmatch(text) is not None)


def tags(example: Example, completion: Completion) -> float:
  """Returns 0.25 for each of the four tags that occurs once and in order.

  A tag is out of order if it comes before another tag that occurs once and
  should precede it. Text outside of the tags does not matter.

  Examples:
    >>> tags(Example("1 + 1 =", "2"), Completion("<think> 2 </think> 2"))
    0.5
  """
  del example
  text = full_text(completion)
  credit, last = 0.0, -1
  for tag in TAGS:
    if text.count(tag) == 1 and text.index(tag) > last:
      last = text.index(tag)
      credit += 0.25
  return credit


def thought(example: Example, completion: Completion) -> float:
  """Returns 1.0 for <think>thought</think> and a summary, and 0.0 otherwise.

  It is the output pattern of DeepSeek-R1 (arXiv:2501.12948, section 2.3.1): a
  thought, then a text for the reader; the tags around an answer are no matter.
  Each tag of the thought must occur exactly once, and neither part be blank.

  Examples:
    >>> thought(Example("1 + 1", "2"), Completion("<think> 1+1 </think> 2"))
    1.0
  """
  del example
  before, opened, rest = full_text(completion).partition("<think>")
  inside, closed, summary = rest.partition("</think>")
  alone = opened and closed and "<think>" not in inside + summary
  alone = alone and "</think>" not in before + summary and not before.strip()
  return float(bool(alone and inside.strip() and summary.strip()))


def full_text(completion: Completion) -> str:
  """Returns the completion with the template's prefill before it, once."""
  text, prefill = completion.text, completion.prefill
  return text if text.startswith(prefill) else prefill + text
