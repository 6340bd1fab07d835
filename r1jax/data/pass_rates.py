"""Selects problems by recorded pass rates.

A policy learns nothing from problems that it always or never solves. The pass
rate, the share of correct completions, is read from JSON lines of two forms:

    {"id": "a.jsonl:7", "pass_rate": 0.25}
    {"id": "a.jsonl:7", "domain": "math/gsm8k", "rewards": {"accuracy": 1.0}}

The second form is one completion, as in the rollouts that a run writes; the
pass rate is the mean over all lines of a problem. A line with a domain applies
only to the problem of that domain.
"""

import numbers
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from r1jax.data import jsonl
from r1jax.types import Example


def read(path: str | Path) -> dict[tuple[str, str], float]:
  """Returns pass rates by (id, domain); the domain is "" for lines without one.

  `path` is a file, or a directory whose .jsonl and .jsonl.gz files are read. A
  completion that could not be graded (null) is ignored.

  Raises FileNotFoundError, or ValueError that names the file and the line.
  """
  path, known = Path(path), defaultdict(list)
  files = [path]
  if path.is_dir():
    files = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")])
  for file in files:
    for number, row in jsonl.read(file, surrogates=True):
      where = f"{file}:{number}"
      key = jsonl.text(row, "id", where=where), row.get("domain", "")
      if (rate := _rate(row, where)) is not None:
        known[key].append(rate)
  if not known:
    raise ValueError(f"{path}: no pass rate is recorded in it")
  return {key: float(np.mean(rates)) for key, rates in known.items()}


def _rate(row: Mapping, where: str) -> float | None:
  """Returns the pass rate of a line; None if it could not be graded."""
  rewards = row.get("rewards")
  if "pass_rate" in row:
    rate = row["pass_rate"]
  elif isinstance(rewards, Mapping) and "accuracy" in rewards:
    rate = rewards["accuracy"]
  else:
    raise ValueError(
      f"{where}: neither 'pass_rate' nor 'accuracy' among 'rewards'"
    )
  if rate is None:
    return None
  if not isinstance(rate, numbers.Real) or not 0 <= rate <= 1:
    raise ValueError(f"{where}: a pass rate is within 0..1, got {rate!r:.80}")
  return float(rate)


def select(
  examples: Sequence[Example], path: str | Path, low: float, high: float
) -> tuple[list[int], dict[str, int]]:
  """Returns the indices of examples to keep, and the number of each kind.

  The kinds are "below" and "above" the range [low, high], which are left out,
  and "within" and "unrecorded" (without a pass rate), which are kept.

  Raises ValueError for an invalid range, if no example has a pass rate (the
  file probably belongs to another dataset), or if no example is left.
  """
  if not 0 <= low <= high <= 1:
    raise ValueError(
      f"min_pass_rate {low} and max_pass_rate {high} are not a range in 0..1"
    )
  rates = read(path)
  kept, counts = [], dict(below=0, above=0, within=0, unrecorded=0)
  for index, example in enumerate(examples):
    rate = rates.get((example.id, example.domain), rates.get((example.id, "")))
    kind = (
      "unrecorded"
      if rate is None
      else "below"
      if rate < low
      else "above"
      if rate > high
      else "within"
    )
    counts[kind] += 1
    if kind in ("within", "unrecorded"):
      kept.append(index)
  if counts["unrecorded"] == len(examples):
    raise ValueError(
      f"{path}: none of its {len(rates)} ids, such as "
      f"{next(iter(rates))[0]!r}, is one of the {len(examples)} examples', "
      f"such as {examples[0].id!r}"
    )
  if not kept:
    raise ValueError(
      f"{path}: no example has a pass rate within {low}..{high}; widen the "
      "range"
    )
  return kept, counts
