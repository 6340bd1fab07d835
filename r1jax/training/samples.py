"""Graded samples: which are kept, what is recorded of them, their numbers."""

import collections
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from r1jax.data import templates
from r1jax.data.decontamination import (
  Index,
  first_occurrences,
  is_contaminated,
)
from r1jax.rewards import Scores
from r1jax.types import Completion, Example

TABLE = ("samples", "kept", "tokens")  # Of each domain, in metrics.
DOMAIN = re.compile(r"generate/domain/(.+)/(\w+)")
DROPPED = re.compile(r"generate/dropped/(.+)")


class Sample(NamedTuple):
  """A completion of a problem, what it earned and which filters it met."""

  example: Example
  position: int  # Of the example in the dataset.
  number: int  # Of the sample among those of the example, from 0.
  completion: Completion
  # By name, without those that do not apply; None was not graded.
  rewards: Mapping[str, float | None]
  filters: Mapping[str, bool]  # By name: whether it met them.
  original: str | None = None  # What it was before it was rewritten.

  @property
  def kept(self) -> bool:
    """Whether it met all filters."""
    return all(self.filters.values())

  @property
  def id(self) -> str:
    """Unique in a run."""
    return f"{self.position}/{self.example.id}#{self.number}"


def judged(
  samples: Sequence[Sample],
  scores: Scores,
  *,
  keep: Mapping[str, float],
  index: Index,
) -> list[Sample]:
  """The samples with their rewards and filters.

  Args:
    samples: whatever they held of rewards and filters is replaced.
    scores: of their completions.
    keep: the least that a sample must reach in each reward that applies.
    index: of the evaluation sets.
  """
  result = []
  for i, sample in enumerate(samples):
    values = {}
    for name, part in scores.parts.items():
      if name not in scores.applies or scores.applies[name][i]:
        values[name] = None if np.isnan(part[i]) else float(part[i])
    text = sample.completion.text
    filters = {"ended": sample.completion.finish == "stop"}
    for name, least in keep.items():
      if name in values:
        value = values[name]
        filters[name] = value is not None and value >= least
    filters["uncontaminated"] = not is_contaminated(index, text)
    result.append(sample._replace(rewards=values, filters=filters))
  return result


def distinct(samples: Sequence[Sample]) -> list[Sample]:
  """The samples with the filter "distinct", which drops repeated texts.

  A text counts as a repetition of those before it that are kept.
  """
  kept = [sample for sample in samples if sample.kept]
  first = first_occurrences(f"{s.position} {s.completion.text}" for s in kept)
  is_first = {sample.id: value for sample, value in zip(kept, first)}
  return [
    sample._replace(
      filters={**sample.filters, "distinct": is_first.get(sample.id, True)}
    )
    for sample in samples
  ]


def row(sample: Sample, provenance: Mapping[str, Any]) -> dict[str, Any]:
  """The JSON object of a sample; see `training.generate`.

  `provenance` is what all samples of a run share.
  """
  example, completion = sample.example, sample.completion
  text = completion.text.strip().encode("utf-8", "replace").decode()
  made = dict(
    **provenance,
    prompt=example.id,
    sample=sample.number,
    rewards=dict(sample.rewards),
    filters=dict(sample.filters),
    tokens=completion.num_tokens,
    finish=completion.finish,
  )
  if sample.original is not None:
    made["original"] = sample.original
  return {
    "id": sample.id,
    "messages": [
      *templates.user_turn(example.prompt),
      {"role": "assistant", "content": text},
    ],
    "domain": example.domain,
    "answer": example.answer,
    "provenance": made,
  }


def numbers(samples: Sequence[Sample]) -> dict[str, float | int]:
  """The metrics of a shard; see `runtime.metrics.names`."""
  kept = [sample for sample in samples if sample.kept]
  result = {"generate/samples": len(samples), "generate/kept": len(kept)}
  for name in samples[0].filters if samples else ():
    asked = [s.filters[name] for s in samples if name in s.filters]
    result[f"generate/dropped/{name}"] = asked.count(False)
  for name in dict.fromkeys(name for s in samples for name in s.rewards):
    values = [s.rewards[name] for s in samples if name in s.rewards]
    graded = [value for value in values if value is not None]
    if graded:
      result[f"reward/{name}/mean"] = float(np.mean(graded))
    result[f"reward/{name}/none_frac"] = 1 - len(graded) / len(values)
  lengths = [s.completion.num_tokens for s in samples]
  result["completions/mean_length"] = float(np.mean(lengths or [0]))
  result["data/tokens"] = sum(lengths)
  for domain, part in _by_domain(samples).items():
    good = [s.completion.num_tokens for s in part if s.kept]
    for name, value in zip(TABLE, (len(part), len(good), sum(good))):
      result[f"generate/domain/{domain}/{name}"] = value
  return result


def summarise(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """The content of summary.json, from the rows of metrics.jsonl.

  `dropped` counts the samples that did not meet each filter: one sample may
  have failed several. `domains` is Table 5 of arXiv:2501.12948v2 for this run:
  samples, those that were kept, and the mean tokens of these.
  """
  totals = collections.Counter()
  for row in rows:
    totals.update({k: v for k, v in row.items() if DOMAIN.match(k)})
    totals.update({k: v for k, v in row.items() if DROPPED.match(k)})
    for name in ("generate/samples", "generate/kept"):
      totals[name] += row.get(name, 0)
  domains: dict[str, dict[str, Any]] = {}
  for key, value in sorted(totals.items()):
    if found := DOMAIN.fullmatch(key):
      domains.setdefault(found[1], {})[found[2]] = value
  for entry in domains.values():
    entry["mean_tokens"] = entry.pop("tokens") / max(entry["kept"], 1)
  return dict(
    samples=totals["generate/samples"],
    kept=totals["generate/kept"],
    dropped={
      found[1]: value
      for key, value in sorted(totals.items())
      if value and (found := DROPPED.fullmatch(key))
    },
    domains=domains,
  )


def shown(samples: Sequence[Sample], step: int) -> Iterator[dict[str, Any]]:
  """Rows of completions.jsonl for the first two samples of four problems."""
  by_position = collections.defaultdict(list)
  for sample in samples:
    by_position[sample.position].append(sample)
  for group in [*by_position.values()][:4]:
    for sample in group[:2]:
      yield {
        "step": step,
        "task": _domain(sample),
        "prompt": sample.example.prompt,
        "completion": sample.completion.text,
        "answer": sample.example.answer,
        "rewards": dict(sample.rewards) | {"kept": float(sample.kept)},
        "length": sample.completion.num_tokens,
        "finish": sample.completion.finish,
      }


def _domain(sample: Sample) -> str:
  return sample.example.domain.partition("/")[0] or "other"


def _by_domain(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
  result = collections.defaultdict(list)
  for sample in samples:
    result[_domain(sample)].append(sample)
  return dict(sorted(result.items()))
