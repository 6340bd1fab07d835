"""Examples: datasets addressed by index, and drawing from them.

A dataset is a sequence of Examples. To add one, write a module with `load` and
name it in DATASETS; or name a function of a module of your own in a config:

    dataset=dict(name="my_module:load", path="mine.jsonl")
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from r1jax import config
from r1jax.data import mixture, order, own, problems, reasoning_gym, worked
from r1jax.types import Example

PROBES = 16


DATASETS = config.Table(
  {
    "problems": problems.load,
    "reasoning_gym": reasoning_gym.load,
    "worked": worked.load,
  },
  own.dataset,
)
DATASETS["mixture"] = config.Table(
  {name: mixture.of_mixture(load) for name, load in DATASETS.items()},
  lambda function: mixture.of_mixture(own.dataset(function)),
)


def load(name: str = "", **section) -> Sequence[Example]:
  """The dataset `name`; its section's other keys are its arguments.

  Without a name the section is `mixture={label: part}`; see `data.mixture`.
  """
  if not name and [*section] == ["mixture"]:
    name, section = "mixture", {**section["mixture"]}
  if name not in DATASETS:
    raise ValueError(
      f"dataset.name is {name!r}, with {[*section]}; it is one of "
      f"{[*DATASETS]}, or else 'mixture' stands alone"
    )
  if name != "mixture":
    return DATASETS[name](**section)
  parts = {}
  for label, part in sorted(section.items()):  # As they are, or in a config.
    arguments = {"name": label, **part}
    load_part = DATASETS["mixture"][arguments.pop("name")]
    try:
      parts[label] = load_part(**arguments)
    except ValueError as error:
      raise ValueError(f"dataset.mixture.{label}: {error}") from error
  return mixture.Mixture(parts)


def content_hash(dataset: Sequence[Example]) -> str:
  """A checksum of the examples, of all that are in memory.

  Of a dataset that makes them when they are read it is of its length and of
  PROBES of them: its arguments, which the config holds, say what they are.
  """
  if isinstance(dataset, mixture.Mixture):
    parts = {
      label: [content_hash(part.dataset), [*part.kept]]
      for label, part in dataset.parts.items()
    }
    return _sha256(parts)
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
) -> list[Example]:
  """The `step`-th `count` examples of the shuffled, repeated dataset.

  A pure function of (seed, step): nothing is saved or replayed, and a run
  resumes exactly from its step alone. Every epoch has an order of its own. Of a
  mixture, every draw has its proportions as nearly as whole numbers allow, and
  in the long run exactly.

  An `attempt` above 0 draws instead of, or beside, the examples of the same
  step: from another shuffle, so that what one step needs moves no other's.
  """
  if isinstance(dataset, mixture.Mixture):
    return dataset.draw(count, seed=seed, step=step, attempt=attempt)
  if attempt:
    seed = order.seed_of(seed, attempt)
  indices = order.shuffled(len(dataset), seed)
  return [dataset[indices[step * count + i]] for i in range(count)]


def epochs(
  dataset: Sequence[Example], count: int, *, step: int
) -> dict[str, float]:
  """Passes over the dataset before the `step`-th draw of `count`, as metrics.

  "data/epoch", and for each part of a mixture "data/epoch/LABEL"; of the
  mixture as a whole it is what was drawn over what there is.
  """
  numbers = {"data/epoch": step * count / len(dataset)}
  if isinstance(dataset, mixture.Mixture):
    for label, passes in dataset.epochs(count, step).items():
      numbers[f"data/epoch/{label}"] = passes
  return numbers
