"""Reductions of metrics over hosts.

A mean of means is correct only if all parts have the same size. Each part
therefore carries its sums and counts, and `combine` computes the result that
one host with all the data would compute.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Sum(NamedTuple):
  """A count, or another quantity that is summed."""

  total: float


class Max(NamedTuple):
  """A maximum."""

  value: float


class Min(NamedTuple):
  """A minimum."""

  value: float


class Mean(NamedTuple):
  """A mean: total / count."""

  total: float
  count: float


class Deviation(NamedTuple):
  """A standard deviation of a population."""

  squares: float  # Sum of squared differences from the mean.
  mean: float
  count: float


Part = Sum | Max | Min | Mean | Deviation
_KINDS = {kind.__name__: kind for kind in (Sum, Max, Min, Mean, Deviation)}


def mean(values: Any, weights: Any = 1.0) -> Mean:
  """The weighted mean of the values that are not NaN; weights broadcast."""
  values, weights = np.broadcast_arrays(np.float64(values), np.float64(weights))
  known = ~np.isnan(values)
  total = float(np.sum(values[known] * weights[known]))
  return Mean(total, float(np.sum(weights[known])))


def deviation(values: Any) -> Deviation:
  """The standard deviation of the values that are not NaN."""
  values = np.float64(values)
  known = values[~np.isnan(values)]
  if not known.size:
    return Deviation(0.0, 0.0, 0.0)
  centre = float(known.mean())
  return Deviation(
    float(np.sum((known - centre) ** 2)), centre, float(known.size)
  )


def combine(parts: Iterable[Mapping[str, Part]]) -> dict[str, float]:
  """Each number reduced over all parts; NaN if its count is 0.

  Raises ValueError if a name has different types in different parts.
  """
  groups: dict[str, list[Part]] = {}
  for part in parts:
    for name, value in part.items():
      groups.setdefault(name, []).append(value)
  return {name: _value(name, group) for name, group in groups.items()}


def over_hosts(part: Mapping[str, Part]) -> dict[str, float]:
  """The numbers reduced over all hosts of the job; every host must call it.

  Hosts may pass different names, such as a domain that occurs on one host only.
  """
  return combine(_gather(part))


def by_domain(domains: Sequence[str], **values: np.ndarray) -> dict[str, Part]:
  """Means over the completions of each domain: "domain/math/gsm8k/reward".

  `values` are arrays of the same length as `domains`; NaN is left out.
  "domain/.../completions" is the number of completions of the domain.
  """
  domains = np.asarray(domains)
  numbers: dict[str, Part] = {}
  for domain in sorted({*domains.tolist()}):
    members = domains == domain
    numbers[f"domain/{domain}/completions"] = Sum(float(members.sum()))
    for name, value in values.items():
      numbers[f"domain/{domain}/{name}"] = mean(np.asarray(value)[members])
  return numbers


def _value(name: str, group: Sequence[Part]) -> float:
  kinds = {type(part).__name__ for part in group}
  if len(kinds) > 1:
    raise ValueError(f"metric {name!r} has several types: {sorted(kinds)}")
  columns = [[*map(float, column)] for column in zip(*group)]
  match kinds.pop():
    case "Sum":
      return math.fsum(columns[0])
    case "Max":
      return float(np.max(columns[0]))  # NaN if any value is.
    case "Min":
      return float(np.min(columns[0]))
    case "Mean":
      return _divide(math.fsum(columns[0]), math.fsum(columns[1]))
    case _:
      squares, means, counts = map(np.array, columns)
      centre = _divide(math.fsum(means * counts), math.fsum(counts))
      between = counts * (means - centre) ** 2  # Chan, Golub, LeVeque 1983.
      return math.sqrt(_divide(math.fsum(squares + between), counts.sum()))


def _divide(total: float, count: float) -> float:
  return total / count if count else math.nan


def _gather(part: Mapping[str, Part]) -> list[dict[str, Part]]:
  """The parts of all hosts, in the order of hosts."""
  if jax.process_count() == 1:
    return [dict(part)]
  from jax.experimental import multihost_utils

  # Sent as JSON: names may differ, and a device would round to float32.
  plain = {k: (type(v).__name__, *map(float, v)) for k, v in part.items()}
  data = np.frombuffer(json.dumps(plain).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(data.size)).reshape(-1)
  padded = np.pad(data, (0, int(sizes.max()) - data.size))
  gathered = np.asarray(multihost_utils.process_allgather(padded))
  parts = []
  for size, row in zip(sizes, gathered.reshape(len(sizes), -1)):
    received = json.loads(row[: int(size)].astype(np.uint8).tobytes())
    parts.append({k: _KINDS[kind](*v) for k, (kind, *v) in received.items()})
  return parts
