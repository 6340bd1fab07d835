"""Accuracy reward: whether the final answer is correct.

DeepSeek-R1 (arXiv:2501.12948), section 2.2.2. Only the text after the last
</think> is graded; a correct answer within the thoughts earns nothing. The
example's domain, up to its first "/", selects the grader, so that one reward
serves a mixture of domains. Other domains are compared as text. Programs run
as in the `code` reward, with the same arguments.
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
  r"""Returns the final answer, stripped; None if there is none.

  Only the text after the last </think> is read. The answer is the content of
  the last \boxed{...}, from the last <answer> on if there is one; without a
  box, the content of <answer>...</answer>; and without these tags, what follows
  "####" or "A:" in the last line, as in GSM8K (arXiv:2110.14168).

  Examples:
    >>> extract(r"<think> Is it \boxed{6}? No. </think> It is \boxed{7}.")
    '7'
  """
  text = completion if isinstance(completion, str) else completion.text
  _, closed, text = text.rpartition("</think>")
  if not closed:
    return None
  head, closed, tail = text.rpartition("</answer>")
  _, opened, answer = head.rpartition("<answer>")
  if not (closed and opened):
    return answers.last_boxed(text) if answers.has_box(text) else _marked(text)
  boxed = answers.last_boxed(answer + tail)
  return answer.strip() if boxed is None else boxed


def _marked(text: str) -> str | None:
  """Returns the answer that the last line marks with "####" or "Answer:"."""
  marked = MARKED.search(text)
  return marked[1].strip() if marked else None


def answered(example: Example, completion: Completion) -> float:
  """Returns 1.0 if a completion has a final answer, even a wrong one."""
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
  r"""Returns 1.0 if the answer is correct, 0.0 if wrong, None if undecided.

  Examples:
    >>> example = Example("What is 1/2 + 1/4?", r"\frac{3}{4}", "math")
    >>> reward(example, Completion("<think></think> <answer> 0.75 </answer>"))
    1.0
    >>> reward(example, Completion("<think> 0.75 </think>"))
    0.0

  The keyword arguments are those of `code.programs.judge` and are used for
  programs only.
  """
  programs = dict(
    partial=partial, seconds=seconds, sandbox=sandbox, packages=packages
  )
  return judge(example, completion, **programs)[0]


def judge(
  example: Example, completion: Completion, **programs: Any
) -> tuple[float | None, str]:
  """Returns the `reward`, and feedback on programs ("" for other domains)."""
  family = _family(example)
  if family == "code":
    return code.judge(example, completion, **programs)
  if family in COMPLETION_GRADERS:
    return COMPLETION_GRADERS[family](example, completion), ""
  answer = extract(completion)
  if family == "choice" and (answer is None or not choice.letters(answer)):
    # The box holds a formula, and the last line names the letter.
    answer = _marked(completion.text.rpartition("</think>")[2]) or answer
  return (0.0 if answer is None else grade(example, answer)), ""


def check(examples: Sequence[Example] = (), **programs: Any) -> None:
  """Raises ValueError if examples need programs that cannot be run here."""
  code.check_arguments(**programs)
  if any(_family(example) == "code" for example in examples):
    code.check(**programs)


def grade(example: Example, answer: str) -> float | None:
  """Returns the `reward` of an extracted answer."""
  return ANSWER_GRADERS.get(_family(example), grade_exact)(example, answer)


def grade_exact(example: Example, answer: str) -> float:
  """Returns 1.0 if two texts are equal up to case and whitespace, else 0.0."""
  return float(_fold(answer) == _fold(example.answer))


# Graders of the final answer.
ANSWER_GRADERS: dict[str, Callable[[Example, str], float | None]] = {
  "choice": choice.grade,
  "countdown": countdown.grade,
  "logic": logic.grade,
  "math": answers.grade,
  "reasoning_gym": reasoning_gym.grade,
}

# Graders of the whole completion.
COMPLETION_GRADERS: dict[str, Callable[..., float | None]] = {
  "code": code.reward,
  "instructions": instructions.reward,
}


def canonical(example: Example, answer: str) -> str:
  """Returns the key under which equal answers are counted in a majority vote.

  Numbers have equal keys if their values are equal (+01.0 and 1), sums if their
  signed terms are, in any order, formulas if their values at a point are, and
  choices if their letters are. Other answers are compared as text, up to case
  and whitespace.
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
  """Returns (id, answer) of examples whose gold answer is graded as wrong.

  Domains without gold answers are skipped: those in COMPLETION_GRADERS, and
  Countdown.
  """
  graders = ANSWER_GRADERS | {"math": answers.verify_gold}
  return [
    (example.id, example.answer)
    for example in examples
    if _family(example) not in {*COMPLETION_GRADERS, "countdown"}
    and graders.get(_family(example), grade_exact)(example, example.answer) != 1
  ]


def _family(example: Example) -> str:
  """Returns the start of a domain, which selects the grader."""
  return example.domain.partition("/")[0]


def _fold(text: str) -> str:
  return " ".join(text.lower().split())
