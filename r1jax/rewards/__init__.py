"""Rules that grade what the policy wrote: (example, completion) -> float.

A reward is total: any text gives a float, or None for "could not grade", which
is never a wrong answer. It is deterministic, and imports no JAX: graders run in
processes of their own. To add one, write a module with `reward`, and name it in
REWARDS; if it hands the text to a library, name it in POOLED too. A reward that
compares the completions of one prompt with each other takes the list of them,
gives a list of floats, and stands in GROUP_REWARDS. One that waits for another
machine, or asks a model about many at once, gives BACKGROUND a function that
starts a whole batch; one that needs something of this machine gives CHECKS a
function that looks for it.
"""

import difflib
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from r1jax.rewards import (
  accuracy,
  code,
  format,
  instructions,
  judge,
  language,
  learned,
  length,
  random,
  repetition,
)
from r1jax.rewards.grader import Call, GraderPool
from r1jax.types import Completion, Example

logger = logging.getLogger(__name__)

Reward = Callable[..., float | None]
GroupReward = Callable[..., list[float | None]]

# Called with (Example, Completion), and the keyword arguments of the spec.
REWARDS: dict[str, Reward] = {
  "accuracy": accuracy.reward,
  "code": code.reward,
  "cosine": length.cosine,
  "format": format.reward,
  "helpfulness": learned.helpfulness,
  "instructions": instructions.reward,
  "judge": judge.reward,
  "language": language.reward,
  "overlong": length.overlong,
  "random": random.reward,
  "repetition": repetition.reward,
  "safety": learned.safety,
  "tags": format.tags,
}

# Called with (Example, list[Completion]): all completions of one prompt.
GROUP_REWARDS: dict[str, GroupReward] = {
  "length": length.group,
  "preference": judge.group_reward,
}

# The same rewards, as (value, feedback): a line for the log on what went wrong.
EXPLAINED: dict[str, Callable[..., tuple[float | None, str]]] = {
  "accuracy": accuracy.judge,
  "code": code.judge,
}

# These hand the policy's text to libraries that may hang or crash on it.
POOLED = {"accuracy", "code", "cosine", "instructions", "language", "length"}

# What these make of bad arguments shows on any completion.
PROBED = {"cosine", "overlong", "random", "repetition"}

# These wait for another machine, or ask a model about many texts at once. Each
# is called with all pairs, or all groups, and the keyword arguments, and
# starts; what it gives is called to wait for the values. With nothing to grade
# it raises what is wrong with the arguments.
BACKGROUND: dict[str, Callable[..., Callable[[], list]]] = {
  "helpfulness": learned.start_helpfulness,
  "judge": judge.start,
  "preference": judge.start_groups,
  "safety": learned.start_safety,
}

# Called with the examples that are known, and the keyword arguments, before
# anything is graded; they raise ValueError where the reward cannot work.
CHECKS: dict[str, Callable[..., None]] = {
  "accuracy": accuracy.check,
  "code": lambda _, **kwargs: code.check(**kwargs),
  "cosine": lambda examples, **_: accuracy.check(examples),
  "length": lambda examples: accuracy.check(examples),
}


class Scores(NamedTuple):
  """What B completions are worth; NaN where one could not be graded."""

  total: np.ndarray  # float64 [B]: the weighted sum of the parts.
  parts: dict[str, np.ndarray]  # Each reward's own float64 [B], unweighted.
  counts: dict[str, int]  # "timeouts" and "crashes": parts lost to them.
  feedback: Sequence[str] = ()  # [B], of a program's tests, say; mostly "".


def score(
  examples: Sequence[Example],
  completions: Sequence[Completion | str],
  *,
  pool: GraderPool | None = None,
  group_size: int | None = None,
  **spec: Any,
) -> Scores:
  """The named rewards of each completion, and their weighted sum.

  Args:
    examples: one for each completion.
    completions: what was written; a plain string is a completion's text.
    pool: where rewards that may hang are computed; None computes them here,
      with no limit on time or memory.
    group_size: completions per prompt, which stand together. It matters to
      rewards of groups alone; None takes neighbours with equal examples for a
      group, so that a prompt drawn twice in a row makes one.
    **spec: a reward's weight, or a mapping of `weight` and its own arguments:
      `accuracy=1.0, random=dict(weight=0.5, probability=0.1)`. A reward of
      weight 0 is measured and does not count.
  """
  return submit(
    examples, completions, pool=pool, group_size=group_size, **spec
  )()


def submit(
  examples: Sequence[Example],
  completions: Sequence[Completion | str],
  *,
  pool: GraderPool | None = None,
  group_size: int | None = None,
  **spec: Any,
) -> Callable[[], Scores]:
  """Starts what `score` does; call the result, once, to wait for the scores."""
  spec = check(examples, **spec)
  pairs = [
    (example, Completion(written) if isinstance(written, str) else written)
    for example, written in zip(examples, completions, strict=True)
  ]
  groups = _groups(pairs, group_size)
  waits = {
    name: BACKGROUND[name](groups if name in GROUP_REWARDS else pairs, **kwargs)
    for name, (_, kwargs) in spec.items()
    if name in BACKGROUND
  }
  calls = {
    name: [
      Call(EXPLAINED.get(name, REWARDS[name]), pair, kwargs) for pair in pairs
    ]
    if name in REWARDS
    else [Call(GROUP_REWARDS[name], group, kwargs) for group in groups]
    for name, (_, kwargs) in spec.items()
  }
  gradings = {
    name: pool.submit(calls[name]) for name in calls if pool and name in POOLED
  }

  def finish() -> Scores:
    counts = Counter(timeouts=0, crashes=0)
    parts, feedback = {}, [""] * len(pairs)
    for name in spec:
      if name in waits:
        values = waits[name]()
      elif grading := gradings.get(name):
        values = grading.values()
        counts.update(grading.counts)
      else:
        values = [_compute(name, call, counts) for call in calls[name]]
      if name in EXPLAINED:
        verdicts = [verdict or (None, "") for verdict in values]
        values = [value for value, _ in verdicts]
        feedback = [
          said or why for said, (_, why) in zip(feedback, verdicts, strict=True)
        ]
      if name in GROUP_REWARDS:
        values = _flatten(values, groups)
      parts[name] = np.array(
        [np.nan if value is None else value for value in values], np.float64
      )
    total = np.zeros(len(pairs))
    for name, (weight, _) in spec.items():
      if weight:
        total += weight * parts[name]
    return Scores(total, parts, dict(counts), feedback)

  return finish


def check(
  examples: Sequence[Example] = (), /, **spec: Any
) -> dict[str, tuple[float, dict[str, Any]]]:
  """The weight and the own arguments of each reward that a spec names.

  Raises ValueError for a reward that does not exist, an argument it does not
  take, a weight that is not a finite number, or what keeps it from grading the
  examples on this machine.
  """
  known = {**REWARDS, **GROUP_REWARDS}
  checked = {}
  for name, entry in spec.items():
    if name not in known:
      close = difflib.get_close_matches(name, known, 1)
      hint = f"did you mean {close[0]!r}?" if close else f"have {[*known]}"
      raise ValueError(f"rewards: unknown reward {name!r}; {hint}")
    kwargs = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
    weight = kwargs.pop("weight", None)
    if not isinstance(weight, (int, float)) or not np.isfinite(weight):
      raise ValueError(
        f"rewards.{name}: weight must be a finite number, got {weight!r}"
      )
    try:
      inspect.signature(known[name]).bind(None, None, **kwargs)
      if name in BACKGROUND:
        BACKGROUND[name]([], **kwargs)
      if name in CHECKS:
        CHECKS[name](examples, **kwargs)
      if name in PROBED:
        known[name](Example("", ""), Completion("", 1, 1), **kwargs)
    except (TypeError, ValueError) as error:
      raise ValueError(f"rewards.{name}: {error}") from None
    checked[name] = (float(weight), kwargs)
  return checked


def _groups(
  pairs: Sequence[tuple[Example, Completion]], group_size: int | None
) -> list[tuple[Example, list[Completion]]]:
  """Each prompt's example, and its completions."""
  if group_size is None:
    runs = [[*run] for _, run in groupby(pairs, key=lambda pair: pair[0])]
  elif group_size < 1 or len(pairs) % group_size:
    raise ValueError(
      f"group_size is {group_size}: {len(pairs)} completions do not divide "
      "into groups of it"
    )
  else:
    starts = range(0, len(pairs), group_size)
    runs = [pairs[start : start + group_size] for start in starts]
  for run in runs:
    if any(example != run[0][0] for example, _ in run):
      raise ValueError(
        f"group_size is {group_size}, but the completions of example "
        f"{run[0][0].id!r} stand together with another's"
      )
  return [(run[0][0], [written for _, written in run]) for run in runs]


def _flatten(
  values: Sequence[Sequence[float | None] | None],
  groups: Sequence[tuple[Example, list[Completion]]],
) -> list[float | None]:
  """One value for each completion; a group that was lost is None throughout."""
  return [
    value
    for of_group, (_, written) in zip(values, groups, strict=True)
    for value in (of_group or [None] * len(written))
  ]


def _compute(name: str, call: Call, counts: Counter) -> Any:
  """The reward, computed here; an exception counts as a crash."""
  try:
    return call.function(*call.args, **call.kwargs)
  except Exception as error:
    if not counts["crashes"]:
      example = call.args[0]
      logger.warning("reward %s raised %r on %r", name, error, example.id)
    counts["crashes"] += 1
    return None
