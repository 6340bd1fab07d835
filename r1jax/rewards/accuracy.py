"""Accuracy reward: the final answer is right.

DeepSeek-R1 (arXiv:2501.12948), section 2.2.2. Only what follows the last
</think> is graded, so that a right answer in passing is worth nothing. The
example's domain, up to its first "/", picks the grader.
"""

from collections.abc import Callable, Sequence

from r1jax.rewards import arithmetic, math, reasoning_gym
from r1jax.types import Completion, Example


def extract(completion: Completion | str) -> str | None:
  r"""The final answer, stripped; None if there is none.

  It is the content of the last <answer>...</answer> after the last </think>,
  or of the last balanced \boxed{...} inside or after that, or instead of it.
  """
  text = completion if isinstance(completion, str) else completion.text
  _, closed, text = text.rpartition("</think>")
  if not closed:
    return None
  head, found, tail = text.rpartition("</answer>")
  _, opened, answer = head.rpartition("<answer>")
  if not (found and opened):
    return math.last_boxed(text)
  boxed = math.last_boxed(answer + tail)
  return answer.strip() if boxed is None else boxed


def reward(example: Example, completion: Completion) -> float | None:
  """1 if the final answer is right, 0 if not, None if it cannot be told."""
  answer = extract(completion)
  return 0.0 if answer is None else grade(example, answer)


def grade(example: Example, answer: str) -> float | None:
  """As `reward`, for an answer already extracted."""
  return GRADERS.get(_family(example), grade_exact)(example, answer)


def grade_exact(example: Example, answer: str) -> float:
  """1 if the strings are equal but for case and spaces, or 0."""
  return float(_fold(answer) == _fold(example.answer))


GRADERS: dict[str, Callable[[Example, str], float | None]] = {
  "reasoning_gym": reasoning_gym.grade,
  "math": math.grade,
}


def canonical(example: Example, answer: str) -> str:
  """The key under which answers count as the same in a majority vote.

  Numbers are equal by value (+01.0 is 1), sums by their signed terms in any
  order, all else as text, but for case and spaces.
  """
  if _family(example) == "math":
    answer = math.normalise(answer)
  value = arithmetic.number(answer)
  if value is not None:
    return str(value)
  tree = arithmetic.parse(answer)
  if tree is not None:
    return " ".join(sorted(arithmetic.terms(tree)))
  return _fold(answer)


def verify_golds(examples: Sequence[Example]) -> list[tuple[str, str]]:
  """The (id, answer) of examples whose own answer is not graded as right."""
  graders = GRADERS | {"math": math.verify_gold}
  return [
    (example.id, example.answer)
    for example in examples
    if graders.get(_family(example), grade_exact)(example, example.answer) != 1
  ]


def _family(example: Example) -> str:
  return example.domain.partition("/")[0]


def _fold(text: str) -> str:
  return " ".join(text.lower().split())
