"""Speed reward: among the right programs of a group, the faster ones.

The sandbox measures the CPU time of a program over all of its tests, without
its build. While it is measured, it can start no processes or threads, whose
time might not show (but for Node, which needs threads). A busy machine hardly
changes CPU time, and what is left of noise changes no reward: only whole
factors count.
"""

import math
from collections.abc import Sequence

from r1jax.rewards.code import programs
from r1jax.rewards.code.sandbox import Limits
from r1jax.text import DOES_NOT_APPLY, Completion, Example


def check(
  examples: Sequence[Example] = (),
  *,
  factor: float = 2.0,
  floor: float = 0.1,
  seconds: float = 4.0,
  sandbox: str = "bwrap",
  packages: Sequence[str] = (),
) -> None:
  """Raises ValueError for arguments that `group` cannot use on this machine."""
  del examples
  if not 1 < factor < math.inf:
    raise ValueError(f"factor must be above 1, got {factor}")
  if not 0 < floor < seconds:
    raise ValueError(f"floor must be 0 to seconds {seconds}, got {floor}")
  programs.check(seconds=seconds, sandbox=sandbox, packages=packages)


def group(
  example: Example,
  completions: Sequence[Completion],
  *,
  factor: float = 2.0,
  floor: float = 0.1,
  seconds: float = 4.0,
  sandbox: str = "bwrap",
  packages: Sequence[str] = (),
) -> list[float | str]:
  """Returns 1 for a group's fastest right programs, and less for slower ones.

      factor ** -n, n = floor(log(time / fastest) / log(factor))

  A program that does not pass all tests gets 0. Grading a group takes up to
  `seconds` for each of its completions: set the time limit of the grader pool
  accordingly.

  Args:
    example: of the domain "code"; to others, the reward does not apply.
    completions: a group.
    factor: by which a program must be slower to be rewarded less.
    floor: CPU seconds below which times are equal: so much is noise.
    seconds: see `programs.judge`, also for the next two.
    sandbox: the kind.
    packages: that programs may import.
  """
  if example.domain.partition("/")[0] != "code":
    return [DOES_NOT_APPLY] * len(completions)
  limits = Limits(seconds=seconds, packages=tuple(packages), alone=True)
  results = [programs.test(example, c, sandbox, limits) for c in completions]
  return rewards(
    [r.cpu_seconds if r.verdict.score == 1.0 else None for r in results],
    factor=factor,
    floor=floor,
  )


def rewards(
  times: Sequence[float | None], *, factor: float, floor: float
) -> list[float]:
  """Returns the rewards for CPU times; None for a program that is not right.

  Examples:
    >>> rewards([0.3, 0.5, 0.7, None, 3.0], factor=2.0, floor=0.1)
    [1.0, 1.0, 0.5, 0.0, 0.125]
  """
  known = [max(time, floor) for time in times if time is not None]
  if not known:
    return [0.0] * len(times)
  slower = lambda time: math.log(max(time, floor) / min(known), factor)
  return [
    0.0 if time is None else factor ** -math.floor(slower(time))
    for time in times
  ]
