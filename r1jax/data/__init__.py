"""Examples: datasets addressed by index, and drawing from them.

To add a dataset: write a module with `load`, and name it in DATASETS.
"""

import functools
from collections.abc import Callable, Sequence

from r1jax.data import gsm8k, reasoning_gym, worked
from r1jax.types import Example

DATASETS: dict[str, Callable[..., Sequence[Example]]] = {
  "gsm8k": gsm8k.load,
  "reasoning_gym": reasoning_gym.load,
  "worked": worked.load,
}


def load(name: str, **kwargs) -> Sequence[Example]:
  """The dataset `name`; its section's other keys are its arguments."""
  return DATASETS[name](**kwargs)


def draw(
  dataset: Sequence[Example], count: int, *, seed: int, step: int
) -> list[Example]:
  """The `step`-th `count` examples of the shuffled, repeated dataset.

  A pure function of (seed, step): nothing is saved or replayed, and a run
  resumes exactly from its step alone. Every epoch has an order of its own.
  """
  order = _order(len(dataset), seed)
  return [dataset[order[step * count + i]] for i in range(count)]


@functools.lru_cache(maxsize=8)
def _order(size: int, seed: int):
  import grain

  return grain.MapDataset.range(size).shuffle(seed=seed).repeat()
