"""Problems made by the reasoning-gym library, as many as one asks for.

The library seeds item i with seed + i, so that its seeds 42 and 43 share 19 of
20 items. Here each item has a seed of its own, far from all others, and whether
a problem is for training or for testing depends on what it asks alone.
"""

import difflib
import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1jax.data.split import in_test
from r1jax.types import Example

MAX_DRAWS = 1000  # In a row, none of which can be used.


def load(
  *, tasks: Mapping[str, Mapping[str, Any]], split: str, size: int, seed: int
) -> "Problems":
  """`size` examples, one of each task in turn; made when they are read.

  Args:
    tasks: the library's tasks by name, and its arguments for each:
      `{"chain_sum": dict(max_terms=3), "spell_backward": {}}`.
    split: "train" or "test". No problem is in both, whatever the seeds and the
      arguments; and no problem is in "test" twice.
    size: of the whole dataset; it costs nothing.
    seed: another seed gives other problems of the same kind.

  Raises ValueError for a task or an argument that the library does not have,
  and, when read, if the task has not that many different problems for testing.
  """
  return Problems(tasks, split, size, seed)


def is_test(example: Example) -> bool:
  """True if the problem is for testing, and must not be trained on."""
  return in_test(example.domain, content(example))


def content(example: Example) -> str:
  """What a problem asks: equal for two wordings of one problem."""
  task = example.domain.partition("/")[2]
  return CONTENTS.get(task, lambda _: example.prompt)(example.metadata)


def _signed_terms(metadata: Mapping[str, Any]) -> str:
  terms = re.findall(r"[+-]+\d+", "+" + metadata["expression"].replace(" ", ""))
  return " ".join(sorted(terms))


CONTENTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
  "chain_sum": _signed_terms,
  "countdown": lambda m: f"{sorted(m['numbers'])} {m['target']}",
  "spell_backward": lambda m: m["word"].lower(),
}


class Problems(Sequence[Example]):
  """Item i is problem i // len(tasks) of task i % len(tasks).

  It depends on i and the constructor's arguments alone. Any thread may read.
  """

  def __init__(
    self,
    tasks: Mapping[str, Mapping[str, Any]],
    split: str,
    size: int,
    seed: int,
  ):
    if split not in ("train", "test"):
      raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if not tasks or size < 1:
      raise ValueError(f"cannot make {size} problems of tasks {[*tasks]}")
    self._tasks = [*tasks]
    self._sources = [_source(task, tasks[task]) for task in tasks]
    self._split, self._size, self._seed = split, size, seed
    self._lock = threading.Lock()
    self._distinct: list[list[Example]] = [[] for _ in tasks]
    self._drawn = [0] * len(tasks)
    self._contents: list[set[str]] = [set() for _ in tasks]

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Example:
    if not -self._size <= index < self._size:
      raise IndexError(f"index {index} of {self._size} problems")
    number, task = divmod(index % self._size, len(self._tasks))
    if self._split == "test":
      example = self._nth_distinct(task, number)
    else:
      example = self._draw(task, number)
    return example._replace(id=f"{self._tasks[task]}/{self._split}/{number}")

  def _draw(self, task: int, number: int) -> Example:
    """The first problem of the split, of those that the number's seeds give."""
    name = self._tasks[task]
    for attempt in range(MAX_DRAWS):
      text = f"{self._seed}/{name}/{self._split}/{number}/{attempt}"
      digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
      item = self._sources[task][int.from_bytes(digest)]
      example = Example(
        prompt=item["question"],
        answer=item["answer"],
        domain=f"reasoning_gym/{name}",
        metadata=item["metadata"],
      )
      if is_test(example) == (self._split == "test"):
        return example
    raise ValueError(
      f"{name}: no problem for {self._split!r} in {MAX_DRAWS} draws; its "
      "arguments leave too few problems"
    )

  def _nth_distinct(self, task: int, number: int) -> Example:
    """The n-th problem drawn, not counting those drawn before."""
    distinct, contents = self._distinct[task], self._contents[task]
    with self._lock:
      repeats = 0
      while len(distinct) <= number:
        example = self._draw(task, self._drawn[task])
        self._drawn[task] += 1
        if content(example) not in contents:
          contents.add(content(example))
          distinct.append(example)
          repeats = 0
        elif (repeats := repeats + 1) == MAX_DRAWS:
          raise ValueError(
            f"{self._tasks[task]}: only {len(distinct)} different problems for "
            "testing; ask for fewer, or widen the task's arguments"
          )
      return distinct[number]


def _source(task: str, arguments: Mapping[str, Any]):
  """The library's dataset: item n depends on n alone, however large n is."""
  from reasoning_gym import factory  # A second to import.

  if task not in factory.DATASETS:
    close = difflib.get_close_matches(task, factory.DATASETS, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"reasoning-gym has no task {task!r}{hint}")
  try:
    return factory.create_dataset(task, seed=0, **arguments)
  except (TypeError, AssertionError) as error:
    raise ValueError(f"reasoning-gym's {task}: {error}") from error
