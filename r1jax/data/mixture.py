"""A mixture of datasets in fixed proportions.

    dataset=dict(mixture={
      "problems": dict(weight=2.0, path="train.jsonl"),
      "sums": dict(weight=1.0, name="reasoning_gym", tasks={...}, ...),
    })

The key of a part is its label, and also the name of its dataset unless it has a
`name`. Its other arguments are those of `part_loader` and of the dataset.
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
  """A dataset of a mixture, and which of its examples are used."""

  dataset: Sequence[Example]
  weight: float | int
  kept: Sequence[int]  # Indices of the examples that are used, ascending.
  counts: Mapping[str, int]  # Of examples by kind; see `pass_rates.select`.
  first_round: int = 0  # That draws from it.


def part_loader(load: Callable[..., Sequence[Example]]) -> Callable[..., Part]:
  """Returns a loader of a `Part`, with these arguments besides those of `load`:

  weight: the part's share is its weight divided by the sum of all weights.
  pass_rates: a file, or a directory, of recorded pass rates. Examples outside
    of the range are left out, for which the whole dataset is read once (see
    `r1jax.data.pass_rates`). None keeps all examples.
  min_pass_rate, max_pass_rate: the range, ends included.
  first_round: the first round (in SFT, step) that draws from the part. The
    others divide earlier ones among them.
  """

  def load_part(
    *,
    weight: float | int,
    first_round: int = 0,
    pass_rates: str | None = None,
    min_pass_rate: float = 0.0,
    max_pass_rate: float = 1.0,
    **kwargs,
  ) -> Part:
    if not isinstance(weight, int | float) or not 0 < weight < math.inf:
      raise ValueError(f"weight must be a number above 0, got {weight!r}")
    if first_round < 0:
      raise ValueError(f"first_round must be at least 0, got {first_round}")
    dataset, counts = load(**kwargs), {}
    kept: Sequence[int] = range(len(dataset))
    if pass_rates is not None:
      kept, counts = _select(dataset, pass_rates, min_pass_rate, max_pass_rate)
    return Part(dataset, weight, kept, counts, first_round)

  # Configs are checked against the signature, so it needs the loader's names in
  # place of **kwargs.
  *part_parameters, _ = inspect.signature(load_part).parameters.values()
  parameters = inspect.signature(load).parameters.values()
  load_part.__signature__ = inspect.Signature([*part_parameters, *parameters])
  return load_part


_select = pass_rates.select  # The argument `pass_rates` shadows the module.


class Mixture(Sequence[Example]):
  """The examples that are used, part after part; `draw` mixes the parts."""

  def __init__(self, parts: Mapping[str, Part]):
    if not parts:
      raise ValueError("dataset.mixture names no dataset")
    self.parts = dict(parts)
    if all(part.first_round for part in parts.values()):
      raise ValueError(
        "every part of dataset.mixture has a first_round above 0: there is "
        "nothing to draw from before"
      )
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
    self,
    count: int,
    *,
    seed: int,
    step: int,
    attempt: int = 0,
    shard: slice = slice(None),
  ) -> list[Example]:
    """Returns the `count` examples of a step, part after part; see `data.draw`.

    Each part has its own shuffled epochs. Their order depends neither on the
    other parts nor on which examples are left out.
    """
    drawn = []
    for (label, part), (first, number) in zip(
      self.parts.items(), self._quotas(count, step)
    ):
      part_seed = order.seed_of(seed, label, attempt)
      drawn += [
        (part, part_seed, index) for index in range(first, first + number)
      ]
    return [
      part.dataset[_dataset_index(part, part_seed, index)]
      for part, part_seed, index in drawn[shard]
    ]

  def epochs(self, count: int, step: int) -> dict[str, float]:
    """Returns the number of epochs of each part before a step, by label."""
    firsts = [first for first, _ in self._quotas(count, step)]
    return {
      label: first / len(part.kept)
      for (label, part), first in zip(self.parts.items(), firsts)
    }

  def _quotas(self, count: int, step: int) -> list[tuple[int, int]]:
    """Returns (draws before the step, draws in the step) for each part.

    Between two rounds in which parts enter, shares are those of `quotas`.
    """
    parts = [*self.parts.values()]
    before, now = [0] * len(parts), [0] * len(parts)
    starts = sorted({part.first_round for part in parts})
    for start, end in zip(starts, [*starts[1:], math.inf]):
      if start > step:
        break
      drawn = [i for i, part in enumerate(parts) if part.first_round <= start]
      weights = integer_weights([parts[i].weight for i in drawn])
      steps = int(min(step, end)) - start
      for i, (first, number) in zip(drawn, quotas(weights, count, steps)):
        before[i] += first
        now[i] = number if step < end else 0
    return [*zip(before, now)]

  def describe(self) -> list[str]:
    """Returns a line on each part: its share, size, and examples left out."""
    total = sum(part.weight for part in self.parts.values())
    lines = []
    for label, part in self.parts.items():
      line = f"{label}: {part.weight / total:.1%} of each round, from "
      line += f"{len(part.kept):,} examples"
      if part.first_round:
        line += f", from round {part.first_round:,} on"
      if part.counts:
        line += (
          "; left out {below:,} below and {above:,} above the range of pass "
          "rates; {unrecorded:,} have no pass rate"
        ).format(**part.counts)
      lines.append(line)
    return lines


def integer_weights(weights: Sequence[float | int]) -> list[int]:
  """Returns the smallest integers in the ratio of the weights: 0.5, 1 -> 1, 2.

  A weight is taken for the decimal number that it prints as.
  """
  exact = [fractions.Fraction(str(weight)) for weight in weights]
  least = math.lcm(*(weight.denominator for weight in exact))
  whole = [int(weight * least) for weight in exact]
  return [number // math.gcd(*whole) for number in whole]


def quotas(
  weights: Sequence[int], count: int, step: int
) -> list[tuple[int, int]]:
  """Returns for each part (draws before the step, draws in the step).

  Systematic sampling (W. G. Madow 1949): the parts are intervals on a line,
  each as long as its share of `count`. Each integer plus an offset draws from
  the part in whose interval it lies. A part's draws in a step are therefore its
  share, rounded up or down, and `count` in total. The offset of step s is
  (s p mod W) / W, where W is the sum of the weights and p is coprime to W: over
  W steps it takes each multiple of 1 / W once, so that the shares are exact.
  """
  total = sum(weights)
  stride = round(total * (math.sqrt(5) - 1) / 2)  # Spreads the offsets.
  while math.gcd(stride, total) != 1:
    stride += 1
  edges = [0, *itertools.accumulate(weight * count for weight in weights)]
  before, after = (
    [floor_sum(steps, stride, edge, total) for edge in edges]
    for steps in (step, step + 1)
  )
  firsts = [right - left for left, right in itertools.pairwise(before)]
  lasts = [right - left for left, right in itertools.pairwise(after)]
  return [(first, last - first) for first, last in zip(firsts, lasts)]


def floor_sum(n: int, a: int, b: int, m: int) -> int:
  """Returns the sum of floor((a i + b) / m) over i < n, in O(log m) steps.

  The integer parts of a / m and b / m are summed in closed form. The rest is
  the number of lattice points under a line, counted along the other axis.
  """
  total = 0
  while n:
    total += n * (n - 1) // 2 * (a // m) + n * (b // m)
    top = a % m * n + b % m
    n, a, b, m = top // m, m, top % m, a % m
  return total


def _dataset_index(part: Part, seed: int, index: int) -> int:
  """Returns the index of the example of a part that is read `index`-th."""
  size = len(part.dataset)
  if len(part.kept) == size:
    return order.shuffled(size, seed)[index]
  epoch, index = divmod(index, len(part.kept))
  return _kept_epoch(part, seed, epoch)[index]


@functools.lru_cache(maxsize=64)
def _kept_epoch(part: Part, seed: int, epoch: int) -> list[int]:
  """Returns an epoch of the whole dataset without the examples left out."""
  size, kept = len(part.dataset), set(part.kept)
  whole = order.shuffled(size, seed)
  read = (whole[epoch * size + i] for i in range(size))
  return [index for index in read if index in kept]
