"""Accuracy reward: the final answer is right.

DeepSeek-R1 (arXiv:2501.12948), section 2.2.2. Only what follows the last
</think> is graded, so that a right answer in passing is worth nothing. The
example's domain, up to its first "/", picks the grader: a mixture of domains
needs one reward. Domains that have none are compared as text. Programs are run
as the `code` reward runs them, and with its arguments.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from r1jax.rewards.code import programs as code
from r1jax.rewards.maths import answers, arithmetic
from r1jax.rewards.tasks import (
  choice,
  countdown,
  instructions,
  logic,
  reasoning_gym,
)
from r1jax.text import Completion, Example

MARKED = re.compile(
  r"^[*_ \t]*(?:####|A:|(?:Final )?Answer:)[*_ \t]*(\S[^\n]*)\s*\Z",
  re.MULTILINE,
)


def extract(completion: Completion | str) -> str | None:
  r"""The final answer, stripped; None if there is none.

  It is the content of the last <answer>...</answer> after the last </think>,
  or of the last balanced \boxed{...} inside or after that, or instead of it.
  Without either, it is what follows "####" or "A:" in the last line, which is
  how GSM8K (arXiv:2110.14168) marks it.
  """
  text = completion if isinstance(completion, str) else completion.text
  _, closed, text = text.rpartition("</think>")
  if not closed:
    return None
  head, found, tail = text.rpartition("</answer>")
  _, opened, answer = head.rpartition("<answer>")
  if not (found and opened):
    return answers.last_boxed(text) if answers.has_box(text) else _marked(text)
  boxed = answers.last_boxed(answer + tail)
  return answer.strip() if boxed is None else boxed


def _marked(text: str) -> str | None:
  """What the last line says to be the answer."""
  marked = MARKED.search(text)
  return marked[1].strip() if marked else None


def answered(example: Example, completion: Completion) -> float:
  """1 if an answer can be read from the completion, right or wrong, or 0."""
  del example
  return float(extract(completion) is not None)


def reward(
  example: Example,
  completion: Completion,
  *,
  partial: bool = False,
  seconds: float = 4.0,
  sandbox: str = "bwrap",
  packages: Sequence[str] = (),
) -> float | None:
  """1 if what was written is right, 0 if not, None if it cannot be told.

  Keyword arguments are those of `code.judge`, and matter to programs alone.
  """
  programs = dict(
    partial=partial, seconds=seconds, sandbox=sandbox, packages=packages
  )
  return judge(example, completion, **programs)[0]


def judge(
  example: Example, completion: Completion, **programs: Any
) -> tuple[float | None, str]:
  """As `reward`, and what a program's tests say about it; "" for all else."""
  family = _family(example)
  if family == "code":
    return code.judge(example, completion, **programs)
  if family in WHOLE:
    return WHOLE[family](example, completion), ""
  answer = extract(completion)
  if family == "choice" and (answer is None or not choice.letters(answer)):
    # A formula in a box, and the letter below it.
    answer = _marked(completion.text.rpartition("</think>")[2]) or answer
  return (0.0 if answer is None else grade(example, answer)), ""


def check(examples: Sequence[Example] = (), **programs: Any) -> None:
  """Raises ValueError if programs cannot be run as asked, if there are any."""
  code.check_arguments(**programs)
  if any(_family(example) == "code" for example in examples):
    code.check(**programs)


def grade(example: Example, answer: str) -> float | None:
  """As `reward`, for an answer already extracted."""
  return GRADERS.get(_family(example), grade_exact)(example, answer)


def grade_exact(example: Example, answer: str) -> float:
  """1 if the strings are equal but for case and spaces, or 0."""
  return float(_fold(answer) == _fold(example.answer))


# Of a final answer.
GRADERS: dict[str, Callable[[Example, str], float | None]] = {
  "choice": choice.grade,
  "countdown": countdown.grade,
  "logic": logic.grade,
  "math": answers.grade,
  "reasoning_gym": reasoning_gym.grade,
}

# Of all that was written.
WHOLE: dict[str, Callable[..., float | None]] = {
  "code": code.reward,
  "instructions": instructions.followed,
}


def canonical(example: Example, answer: str) -> str:
  """The key under which answers count as the same in a majority vote.

  Numbers are equal by value (+01.0 is 1), sums by their signed terms in any
  order, formulas by their value at a point, choices by their letter, all else
  as text, but for case and spaces.
  """
  family = _family(example)
  if family == "math":
    return answers.canonical(answer)
  if family == "choice":
    choices = example.metadata.get("choices") or ()
    return choice.letters(answer, choices) or _fold(answer)
  value = arithmetic.number(answer)
  if value is not None:
    return str(value)
  tree = arithmetic.parse(answer)
  if tree is not None:
    return " ".join(sorted(arithmetic.terms(tree)))
  return _fold(answer)


def verify_golds(examples: Sequence[Example]) -> list[tuple[str, str]]:
  """The (id, answer) of examples whose own answer is not graded as right.

  Examples without an answer of their own have nothing to verify: those that
  are graded whole, and Countdown's.
  """
  graders = GRADERS | {"math": answers.verify_gold}
  return [
    (example.id, example.answer)
    for example in examples
    if _family(example) not in {*WHOLE, "countdown"}
    and graders.get(_family(example), grade_exact)(example, example.answer) != 1
  ]


def _family(example: Example) -> str:
  return example.domain.partition("/")[0]


def _fold(text: str) -> str:
  return " ".join(text.lower().split())
