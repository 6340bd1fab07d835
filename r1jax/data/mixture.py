"""Several datasets as one, in fixed proportions.

    dataset=dict(mixture={
      "problems": dict(weight=2.0, path="train.jsonl"),
      "sums": dict(weight=1.0, name="reasoning_gym", tasks={...}, ...),
    })

A part's key is its label, and its dataset's name unless it gives a `name`. The
rest are the arguments of `of_mixture` and of the dataset's own loader.
"""

import dataclasses
import fractions
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

from r1jax.data import order, pass_rates
from r1jax.types import Example


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """A dataset of a mixture, and which of its examples take part."""

  dataset: Sequence[Example]
  weight: float | int
  kept: Sequence[int]  # Indices of the dataset, ascending.
  counts: Mapping[str, int]  # Examples by kind, as `pass_rates.choose` has it.


def of_mixture(load: Callable[..., Sequence[Example]]) -> Callable[..., Part]:
  """`load`, with the arguments that a part of a mixture has beside its own:

  weight: of the part; its share is this over the sum of all weights.
  pass_rates: a file, or a directory, of recorded pass rates; what lies outside
    of the range is left out (see `r1jax.data.pass_rates`). It reads the whole
    dataset once. None keeps everything.
  min_pass_rate, max_pass_rate: that range, ends included.
  """

  def load_part(
    *,
    weight: float | int,
    pass_rates: str | None = None,
    min_pass_rate: float = 0.0,
    max_pass_rate: float = 1.0,
    **kwargs,
  ) -> Part:
    if not isinstance(weight, int | float) or not 0 < weight < math.inf:
      raise ValueError(f"weight must be a number above 0, got {weight!r}")
    dataset = load(**kwargs)
    if pass_rates is None:
      return Part(dataset, weight, range(len(dataset)), {})
    kept, counts = _choose(dataset, pass_rates, min_pass_rate, max_pass_rate)
    return Part(dataset, weight, kept, counts)

  # A config is checked against it: the loader's arguments instead of **kwargs.
  *own, _ = inspect.signature(load_part).parameters.values()
  others = inspect.signature(load).parameters.values()
  load_part.__signature__ = inspect.Signature([*own, *others])
  return load_part


_choose = pass_rates.choose  # The argument `pass_rates` hides the module.


class Mixture(Sequence[Example]):
  """All examples that take part, part after part; `draw` mixes them."""

  def __init__(self, parts: Mapping[str, Part]):
    if not parts:
      raise ValueError("dataset.mixture names no dataset")
    self.parts = dict(parts)
    self._units = units([part.weight for part in parts.values()])
    self._ends = [*itertools.accumulate(len(p.kept) for p in parts.values())]

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> Example:
    if not -len(self) <= index < len(self):
      raise IndexError(f"index {index} of {len(self)} examples")
    index %= len(self)
    for part, end in zip(self.parts.values(), self._ends):
      if index < end:
        return part.dataset[part.kept[index - end]]
    raise AssertionError("unreachable: the last end is the length")

  def draw(
    self, count: int, *, seed: int, step: int, attempt: int = 0
  ) -> list[Example]:
    """The `step`-th `count` examples, part after part; see `data.draw`.

    Each part has shuffled epochs of its own, which neither the other parts nor
    what is left out of it put into another order.
    """
    drawn = []
    for (label, part), (first, number) in zip(
      self.parts.items(), quotas(self._units, count, step)
    ):
      own = order.seed_of(seed, label, attempt)
      drawn += [
        part.dataset[_nth(part, own, index)]
        for index in range(first, first + number)
      ]
    return drawn

  def epochs(self, count: int, step: int) -> dict[str, float]:
    """Passes over each part before the `step`-th draw of `count`, by label."""
    firsts = [first for first, _ in quotas(self._units, count, step)]
    return {
      label: first / len(part.kept)
      for (label, part), first in zip(self.parts.items(), firsts)
    }

  def describe(self) -> list[str]:
    """A line for each part: its share, its size, and what was left out."""
    lines = []
    for (label, part), unit in zip(self.parts.items(), self._units):
      line = f"{label}: {unit / sum(self._units):.1%} of each round, from "
      line += f"{len(part.kept):,} examples"
      if part.counts:
        line += (
          "; left out {below:,} below and {above:,} above the range of pass "
          "rates; {unrecorded:,} have none on record"
        ).format(**part.counts)
      lines.append(line)
    return lines


def units(weights: Sequence[float | int]) -> list[int]:
  """The least whole numbers in the proportion of the weights: 0.5, 1 -> 1, 2.

  A weight is the decimal that it prints as.
  """
  exact = [fractions.Fraction(str(weight)) for weight in weights]
  least = math.lcm(*(weight.denominator for weight in exact))
  whole = [int(weight * least) for weight in exact]
  return [number // math.gcd(*whole) for number in whole]


def quotas(
  units: Sequence[int], count: int, step: int
) -> list[tuple[int, int]]:
  """For each part how many were drawn before the step, and how many in it.

  Systematic sampling (W. G. Madow 1949): the parts lie on a line, each as long
  as its share of `count`, and every whole number plus an offset draws from the
  part that it hits. So a step has the share, rounded up or down, and `count` in
  all. The offset of step s is (s p mod U) / U, for U the sum of the units and p
  coprime to it: in U steps it is every multiple of 1 / U once, and each part
  has exactly its share.
  """
  total = sum(units)
  stride = round(total * (math.sqrt(5) - 1) / 2)  # Spreads the offsets.
  while math.gcd(stride, total) != 1:
    stride += 1
  edges = [0, *itertools.accumulate(unit * count for unit in units)]
  before, after = (
    [floor_sum(steps, stride, edge, total) for edge in edges]
    for steps in (step, step + 1)
  )
  firsts = [right - left for left, right in itertools.pairwise(before)]
  lasts = [right - left for left, right in itertools.pairwise(after)]
  return [(first, last - first) for first, last in zip(firsts, lasts)]


def floor_sum(n: int, a: int, b: int, m: int) -> int:
  """The sum of floor((a i + b) / m) for i < n, in about log(m) steps.

  Whole parts of a / m and b / m are summed at once; what is left is the points
  under a line, which are counted along the other axis.
  """
  total = 0
  while n:
    total += n * (n - 1) // 2 * (a // m) + n * (b // m)
    top = a % m * n + b % m
    n, a, b, m = top // m, m, top % m, a % m
  return total


def _nth(part: Part, seed: int, index: int) -> int:
  """Which example of the part's dataset is read `index`-th."""
  size = len(part.dataset)
  if len(part.kept) == size:
    return order.shuffled(size, seed)[index]
  epoch, index = divmod(index, len(part.kept))
  return _kept_epoch(part, seed, epoch)[index]


@functools.lru_cache(maxsize=64)
def _kept_epoch(part: Part, seed: int, epoch: int) -> list[int]:
  """The whole dataset's epoch, less what is left out of it."""
  size, kept = len(part.dataset), set(part.kept)
  whole = order.shuffled(size, seed)
  read = (whole[epoch * size + i] for i in range(size))
  return [index for index in read if index in kept]
