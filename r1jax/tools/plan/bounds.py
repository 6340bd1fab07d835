"""Lower bounds on the time of a program: a roofline model, no simulation."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r1jax.tools.plan.chips import Topology
from r1jax.tools.plan.costs import Collective, Costs


class Bounds(NamedTuple):
  """Seconds of work for each part of a chip at its nominal speed."""

  compute: float
  memory: float
  network: float

  @property
  def overlapped(self) -> float | int:
    """The bound if all parts work in parallel; no run is faster."""
    return max(self)

  @property
  def serial(self) -> float | int:
    """The bound if computation and network never overlap."""
    return max(self.compute, self.memory) + self.network


def bounds(
  costs: Costs, topology: Topology, places: Sequence[tuple[int, ...]]
) -> Bounds:
  """The bounds of a program with these costs on each device.

  Args:
    costs: of one device.
    topology: of the chips.
    places: coordinates (slice, x, y, ...) of every device, in mesh order.
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
  """The seconds of one run of a collective over the links of its devices.

  Along each dimension of a torus that the devices fill as a ring, there are two
  links; there is one if they are part of a dimension, or if it is not a ring.
  All links of a chip work in parallel; devices that share a chip share them.
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
    # Between slices, each device sends its share of the slice's data.
    n, per_slice = len(slices), counts.min()
    part = {
      "all-gather": one.bytes * (n - 1),
      "all-reduce": 2 * one.bytes / per_slice * (n - 1) / n,
      "reduce-scatter": one.bytes / per_slice * (n - 1) / n,
      "collective-permute": one.bytes,
    }.get(one.kind, one.bytes * (n - 1) / n)
    time += part * shared / chip.network
  return time


def _within(one: Collective, at: np.ndarray, topology: Topology) -> float | int:
  """The seconds of a collective among devices of one slice or one host."""
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
  if not rates:  # The devices are on one chip.
    return 0.0
  if one.kind.endswith("all-to-all"):
    # In a ring of L chips, the mean distance is L / 4.
    return max(
      one.bytes * length / (4 * rate) for length, rate in zip(longest, rates)
    )
  if one.kind == "collective-permute":
    return one.bytes / min(chip.link, min(rates))
  return received / sum(rates)


def _rate(along: np.ndarray, size: int, topology: Topology) -> float | int:
  """Bytes per second into a chip along one dimension of the torus."""
  step = int(np.diff(along).min())
  closed = len(along) * step == size and is_ring(topology, size)
  return topology.chip.link * (2 if closed else 1) / step


def is_ring(topology: Topology, size: int) -> bool:
  """Whether a dimension of a slice wraps around.

  On 3D tori, it does if the slice consists of whole cubes of 4x4x4 chips; on 2D
  tori, if it has the full size of the pod, 16.
  """
  chip = topology.chip
  if chip.torus == 3:
    return size % 4 == 0 and math.prod(topology.shape) >= 64
  return size == 16
