"""Rules that grade what the policy wrote: (example, completion) -> float.

A reward is total: any text gives a float, or None for "could not grade", which
is never a wrong answer. It is deterministic, and imports no JAX: graders run in
processes of their own. To add one, write a module with `reward`, and name it in
REWARDS; if it hands the text to a library, name it in POOLED too.
"""

import difflib
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from r1jax.rewards import accuracy, format, random
from r1jax.rewards.grader import Call, GraderPool
from r1jax.types import Completion, Example

logger = logging.getLogger(__name__)

Reward = Callable[..., float | None]

REWARDS: dict[str, Reward] = {
  "accuracy": accuracy.reward,
  "format": format.reward,
  "random": random.reward,
}

# These hand the policy's text to libraries that may hang or crash on it.
POOLED = {"accuracy"}


class Scores(NamedTuple):
  """What B completions are worth; NaN where one could not be graded."""

  total: np.ndarray  # float64 [B]: the weighted sum of the parts.
  parts: dict[str, np.ndarray]  # Each reward's own float64 [B], unweighted.
  counts: dict[str, int]  # "timeouts" and "crashes": parts lost to them.


def score(
  examples: Sequence[Example],
  completions: Sequence[Completion | str],
  *,
  pool: GraderPool | None = None,
  **spec: Any,
) -> Scores:
  """The named rewards of each completion, and their weighted sum.

  Args:
    examples: one for each completion.
    completions: what was written; a plain string is a completion's text.
    pool: where rewards that may hang are computed; None computes them here,
      with no limit on time or memory.
    **spec: a reward's weight, or a mapping of `weight` and its own arguments:
      `accuracy=1.0, random=dict(weight=0.5, probability=0.1)`. A reward of
      weight 0 is measured and does not count.
  """
  return submit(examples, completions, pool=pool, **spec)()


def submit(
  examples: Sequence[Example],
  completions: Sequence[Completion | str],
  *,
  pool: GraderPool | None = None,
  **spec: Any,
) -> Callable[[], Scores]:
  """Starts what `score` does; call the result, once, to wait for the scores."""
  spec = check(**spec)
  pairs = [
    (example, Completion(written) if isinstance(written, str) else written)
    for example, written in zip(examples, completions, strict=True)
  ]
  calls = {
    name: [Call(REWARDS[name], pair, kwargs) for pair in pairs]
    for name, (_, kwargs) in spec.items()
  }
  gradings = {
    name: pool.submit(calls[name]) for name in calls if pool and name in POOLED
  }

  def finish() -> Scores:
    counts = Counter(timeouts=0, crashes=0)
    parts = {}
    for name in spec:
      if grading := gradings.get(name):
        values = grading.values()
        counts.update(grading.counts)
      else:
        values = [_compute(name, call, counts) for call in calls[name]]
      parts[name] = np.array(
        [np.nan if value is None else value for value in values], np.float64
      )
    total = np.zeros(len(pairs))
    for name, (weight, _) in spec.items():
      if weight:
        total += weight * parts[name]
    return Scores(total, parts, dict(counts))

  return finish


def check(**spec: Any) -> dict[str, tuple[float, dict[str, Any]]]:
  """The weight and the own arguments of each reward that a spec names.

  Raises ValueError for a reward that does not exist, an argument it does not
  take, or a weight that is not a finite number.
  """
  checked = {}
  for name, entry in spec.items():
    if name not in REWARDS:
      close = difflib.get_close_matches(name, REWARDS, 1)
      hint = f"did you mean {close[0]!r}?" if close else f"have {[*REWARDS]}"
      raise ValueError(f"rewards: unknown reward {name!r}; {hint}")
    kwargs = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
    weight = kwargs.pop("weight", None)
    if not isinstance(weight, (int, float)) or not np.isfinite(weight):
      raise ValueError(
        f"rewards.{name}: weight must be a finite number, got {weight!r}"
      )
    try:
      inspect.signature(REWARDS[name]).bind(None, None, **kwargs)
    except TypeError as error:
      raise ValueError(f"rewards.{name}: {error}") from None
    checked[name] = (float(weight), kwargs)
  return checked


def _compute(name: str, call: Call, counts: Counter) -> float | None:
  """The reward, computed here; an exception counts as a crash."""
  try:
    return call.function(*call.args, **call.kwargs)
  except Exception as error:
    if not counts["crashes"]:
      example = call.args[0]
      logger.warning("reward %s raised %r on %r", name, error, example.id)
    counts["crashes"] += 1
    return None
