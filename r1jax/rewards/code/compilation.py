"""Syntax reward: whether a program compiles, whatever it computes.

A part of its own beside the tests: a program that fails for a typing error is
told from one that computes something else. Python is compiled to byte code,
C++ by GCC, and JavaScript is parsed by Node, in the sandbox of the `code`
reward; nothing of the program runs.
"""

from r1jax.rewards.code import programs
from r1jax.rewards.code.programs import Verdict
from r1jax.rewards.code.sandbox import Ended, Limits, Run, run_cases
from r1jax.text import DOES_NOT_APPLY, Completion, Example


def check(*, sandbox: str = "bwrap", seconds: float = 4.0) -> None:
  """Raises ValueError unless this machine can compile programs so."""
  programs.check(sandbox=sandbox, seconds=seconds)


def reward(
  example: Example,
  completion: Completion,
  *,
  seconds: float = 4.0,
  sandbox: str = "bwrap",
) -> float | str:
  """Returns 1.0 if the program in a completion compiles, and 0.0 if not.

  Args:
    example: of the domain "code"; to others, the reward does not apply.
    completion: its last fenced block is the program.
    seconds: wall-clock time; a program that needs more does not compile.
    sandbox: see `programs.judge`.
  """
  return judge(example, completion, seconds=seconds, sandbox=sandbox)[0]


def judge(
  example: Example,
  completion: Completion,
  *,
  seconds: float = 4.0,
  sandbox: str = "bwrap",
) -> tuple[float | str, str]:
  """Returns the `reward`, and the compiler's first message."""
  if example.domain.partition("/")[0] != "code":
    return DOES_NOT_APPLY, ""
  language, source, reason = programs.find(example, completion.text)
  if source is None:
    return Verdict(0.0, reason)
  build = lambda text: _build(language, text, sandbox, Limits(seconds=seconds))
  built = build(source)
  prefix = programs.prefix_of(example) if language == "python" else ""
  if built.status and prefix:
    # It may go on where the prompt, which is the head of a function, ends.
    whole = build(prefix + source)
    built = built if whole.status else whole
  errors = " ".join(built.errors.split())[: programs.MAX_FEEDBACK]
  return Verdict(float(not built.status), built.status and errors or "")


def _build(language: str, source: str, sandbox: str, limits: Limits) -> Run:
  try:
    return next(run_cases(language, source, [], sandbox, limits))
  except Ended as error:
    return Run(1, b"", f"not compiled: {error}", 0.0)
