"""Which mesh suits a run: all of them by arithmetic, the best ones compiled."""

from typing import NamedTuple

from ml_collections import ConfigDict

from r1jax.tools.plan import estimate
from r1jax.tools.plan.chips import Topology
from r1jax.tools.plan.programs import needed, sizes_of

STATE = 12  # Bytes of a weight, with its two means, in float32.
REFERENCE = 2


class Ranked(NamedTuple):
  """A mesh, and what an update takes of it by arithmetic."""

  mesh: dict[str, int]
  seconds: float
  bytes: float  # Of one device.


def ranked(config: ConfigDict, topology: Topology, devices: int):
  """Every mesh that could hold the run, the quickest first.

  Raises ValueError if none could.
  """
  sizes, rows = sizes_of(config), config.rows.to_dict()
  flops = 3 * needed(sizes, rows["max_rows"], rows["width"])
  room, found, least = topology.memory(devices), [], float("inf")
  slices = topology.num_slices if topology.chip.torus else 1
  for mesh in estimate.meshes(sizes, rows, devices, slices):
    weights = sum(estimate.sizes_of(sizes)) * mesh["data"] / devices
    total = weights * (STATE + REFERENCE) + sum(
      estimate.temporaries(sizes, rows, mesh).values()
    )
    least = min(least, total)
    if total <= room:
      time = estimate.bounds(sizes, rows, mesh, topology, flops).serial
      found.append(Ranked(mesh, time, total))
  if not found:
    raise ValueError(
      f"no mesh of the {devices} devices holds it: rows.microbatch_rows "
      f"{rows['microbatch_rows']} must divide over them, and at best it takes "
      f"{least / 2**30:.3g} GiB where {room / 2**30:.3g} are; take more chips, "
      "other rows.microbatch_rows, or a smaller model.how.moe_chunk"
    )
  return sorted(found, key=lambda one: (one.seconds, one.bytes))
