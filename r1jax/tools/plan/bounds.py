"""The least time that a program takes: by arithmetic, no cycle is simulated."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r1jax.tools.plan.chips import Topology
from r1jax.tools.plan.costs import Collective, Costs


class Bounds(NamedTuple):
  """Seconds that each part of a chip needs at its nominal speed."""

  compute: float
  memory: float
  network: float

  @property
  def overlapped(self) -> float | int:
    """When all of it happens at once: no run is faster."""
    return max(self)

  @property
  def serial(self) -> float | int:
    """When matmuls wait for the network, and the network for matmuls."""
    return max(self.compute, self.memory) + self.network


def bounds(
  costs: Costs, topology: Topology, places: Sequence[tuple[int, ...]]
) -> Bounds:
  """The bounds of a program with these costs for each device.

  Args:
    costs: of one device.
    topology: whose chips they are.
    places: (slice, x, y, ...) of every device, in the order of the mesh.
  """
  chip, shared = topology.chip, len(places) / topology.num_chips
  where = np.array(places)
  return Bounds(
    compute=costs.flops * shared / chip.flops,
    memory=costs.bytes * shared / chip.memory_rate,
    network=sum(
      seconds(one, topology, where) * one.times for one in costs.collectives
    ),
  )


def seconds(
  one: Collective, topology: Topology, where: np.ndarray
) -> float | int:
  """Of one collective, once: over the links between its devices.

  A ring has two links in each direction of a torus that its devices fill, one
  where they are a part of it, or where the torus is open. All links of a chip
  work at once; devices that share a chip share them.
  """
  group = np.arange(len(where)) if one.groups is None else one.groups[0]
  if len(group) < 2:
    return 0.0
  chip, at = topology.chip, where[group]
  shared = len(where) / topology.num_chips
  slices, counts = np.unique(at[:, 0], return_counts=True)
  inside = at[at[:, 0] == slices[0]]
  time = _within(one, inside, topology) * shared
  if len(slices) > 1:
    # Between slices each device sends its part of what a slice has.
    n, own = len(slices), counts.min()
    part = {
      "all-gather": one.bytes * (n - 1),
      "all-reduce": 2 * one.bytes / own * (n - 1) / n,
      "reduce-scatter": one.bytes / own * (n - 1) / n,
      "collective-permute": one.bytes,
    }.get(one.kind, one.bytes * (n - 1) / n)
    time += part * shared / chip.network
  return time


def _within(one: Collective, at: np.ndarray, topology: Topology) -> float | int:
  """Seconds of a collective among devices of one slice, or of one host."""
  chip, n = topology.chip, len(at)
  received = one._replace(groups=np.arange(n)[None], times=1.0).received(n)
  if n < 2:
    return 0.0
  if not chip.torus:
    return received / chip.link
  rates, longest = [], []
  for axis in range(chip.torus):
    along = np.unique(at[:, axis + 1])
    if len(along) < 2:
      continue
    rates.append(_rate(along, topology.shape[axis], topology))
    longest.append(len(along))
  if not rates:  # Two devices of one chip.
    return 0.0
  if one.kind.endswith("all-to-all"):
    # A dimension of L carries what goes a quarter of its length on average.
    return max(
      one.bytes * length / (4 * rate) for length, rate in zip(longest, rates)
    )
  if one.kind == "collective-permute":
    return one.bytes / min(chip.link, min(rates))
  return received / sum(rates)


def _rate(along: np.ndarray, size: int, topology: Topology) -> float | int:
  """Bytes per second into a chip, along one dimension of the torus."""
  step = int(np.diff(along).min())
  closed = len(along) * step == size and wraps(topology, size)
  return topology.chip.link * (2 if closed else 1) / step


def wraps(topology: Topology, size: int) -> bool:
  """Whether a dimension of a slice is a ring.

  In three dimensions, where it is whole cubes of 4 chips; in two, where it is
  the pod's own 16.
  """
  chip = topology.chip
  if chip.torus == 3:
    return size % 4 == 0 and math.prod(topology.shape) >= 64
  return size == 16
