"""Datasets of examples with random access, and drawing from them.

A dataset is a sequence of Examples. To add one, write a module with a function
`load` and add it to DATASETS. A config can also name a function of the user's
module:

    dataset=dict(name="my_module:load", path="mine.jsonl")
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from r1jax import config
from r1jax.data import (
  bilingual,
  conversations,
  corpus,
  custom,
  general,
  judged_pairs,
  livecodebench,
  mixture,
  order,
  pairs,
  preferences,
  problems,
  reasoning_gym,
  worked,
)
from r1jax.types import Example

PROBES = 16  # Examples of a generated dataset that are hashed.


DATASETS = config.Table(
  {
    "bilingual": bilingual.load,
    "conversations": conversations.load,
    "corpus": corpus.load,
    "general": general.load,
    "judged_pairs": judged_pairs.load,
    "livecodebench": livecodebench.load,
    "pairs": pairs.load,
    "preferences": preferences.load,
    "problems": problems.load,
    "reasoning_gym": reasoning_gym.load,
    "worked": worked.load,
  },
  custom.dataset,
)
DATASETS["mixture"] = config.Table(
  {name: mixture.part_loader(load) for name, load in DATASETS.items()},
  lambda function: mixture.part_loader(custom.dataset(function)),
)


def load(name: str = "", **section) -> Sequence[Example]:
  """Returns the dataset `name`, loaded with the section's other keys.

  Examples:
    >>> words = dict(spell_backward=dict(min_word_len=4, max_word_len=4))
    >>> options = dict(tasks=words, split="train", size=9, seed=0)
    >>> dataset = load("reasoning_gym", **options)
    >>> len(dataset), dataset[0].domain
    (9, 'reasoning_gym/spell_backward')

  A section without a name is `mixture={label: part}`; see `data.mixture`.
  Raises ValueError for an unknown name, and what the dataset's loader raises.
  """
  if not name and [*section] == ["mixture"]:
    name, section = "mixture", {**section["mixture"]}
  if name not in DATASETS:
    raise ValueError(
      f"dataset.name is {name!r}, with {[*section]}; set it to one of "
      f"{[*DATASETS]}, or set dataset.mixture and nothing else"
    )
  if name != "mixture":
    return DATASETS[name](**section)
  parts = {}
  for label, part in sorted(section.items()):  # A config sorts them, too.
    arguments = {"name": label, **part}
    load_part = DATASETS["mixture"][arguments.pop("name")]
    try:
      parts[label] = load_part(**arguments)
    except ValueError as error:
      raise ValueError(f"dataset.mixture.{label}: {error}") from error
  return mixture.Mixture(parts)


def content_hash(dataset: Sequence[Example]) -> str:
  """Returns a checksum of a dataset's examples, or of the files they are in.

  For a dataset that generates examples on demand, it covers the length and
  PROBES of the examples; the rest follows from the arguments in the config.
  """
  if isinstance(dataset, mixture.Mixture):
    parts = {
      label: [content_hash(part.dataset), [*part.kept]]
      for label, part in dataset.parts.items()
    }
    return _sha256(parts)
  if checksum := getattr(dataset, "checksum", None):  # Of its files.
    return checksum()
  whole = isinstance(dataset, list | tuple)
  stride = 1 if whole else max(len(dataset) // PROBES, 1)
  read = [dataset[i]._asdict() for i in range(0, len(dataset), stride)]
  return _sha256([len(dataset), read])


def _sha256(value: Any) -> str:
  text = json.dumps(value, sort_keys=True, default=repr)
  return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def draw(
  dataset: Sequence[Example],
  count: int,
  *,
  seed: int,
  step: int,
  attempt: int = 0,
  shard: slice = slice(None),
) -> list[Example]:
  """Returns the `count` examples of a step from the shuffled, repeated dataset.

  The result is a pure function of (seed, step), so that a run resumes exactly
  from its step alone, without saved state. Each epoch has its own order. Each
  draw from a mixture has the mixture's proportions up to rounding; over many
  steps they are exact.

  Only the `shard` of the `count` examples is read and returned.

  An `attempt` above 0 draws more examples for the same step, or others in their
  place. They come from another shuffle, so that the draws of other steps do not
  change.
  """
  if isinstance(dataset, mixture.Mixture):
    return dataset.draw(
      count, seed=seed, step=step, attempt=attempt, shard=shard
    )
  if attempt:
    seed = order.seed_of(seed, attempt)
  indices = order.shuffled(len(dataset), seed)
  return [dataset[indices[step * count + i]] for i in range(count)[shard]]


def epochs(
  dataset: Sequence[Example], count: int, *, step: int
) -> dict[str, float]:
  """Returns the number of epochs before a step, as metrics.

  The metrics are "data/epoch", and "data/epoch/LABEL" for each part of a
  mixture. For a mixture, "data/epoch" is the number of drawn examples divided
  by the number of all examples.
  """
  numbers = {"data/epoch": step * count / len(dataset)}
  if isinstance(dataset, mixture.Mixture):
    for label, passes in dataset.epochs(count, step).items():
      numbers[f"data/epoch/{label}"] = passes
  return numbers
