"""The ranking of all meshes for a run, by estimates."""

from typing import NamedTuple

from ml_collections import ConfigDict

from r1jax.tools.plan import estimate
from r1jax.tools.plan.chips import Topology
from r1jax.tools.plan.programs import forward_flops, sizes_of

STATE = 12  # Bytes per weight of float32 weights and two moments.
REFERENCE = 2  # Bytes per weight of the reference policy.


class Ranked(NamedTuple):
  """A mesh, with estimates for an update."""

  mesh: dict[str, int]
  seconds: float
  bytes: float  # Per device.


def ranked(config: ConfigDict, topology: Topology, devices: int):
  """The meshes that the run fits, as `Ranked`, the fastest first.

  Raises ValueError if it fits none.
  """
  sizes, rows = sizes_of(config), config.rows.to_dict()
  flops = 3 * forward_flops(sizes, rows["max_rows"], rows["width"])
  available, fitting, least = topology.memory(devices), [], float("inf")
  slices = topology.num_slices if topology.chip.torus else 1
  for mesh in estimate.meshes(sizes, rows, devices, slices):
    weights = sum(estimate.sizes_of(sizes)) * mesh["data"] / devices
    total = weights * (STATE + REFERENCE) + sum(
      estimate.temporaries(sizes, rows, mesh).values()
    )
    least = min(least, total)
    if total <= available:
      time = estimate.bounds(sizes, rows, mesh, topology, flops).serial
      fitting.append(Ranked(mesh, time, total))
  if not fitting:
    raise ValueError(
      f"the run fits no mesh of the {devices} devices: rows.microbatch_rows "
      f"{rows['microbatch_rows']} must divide over them, and it needs at least "
      f"{least / 2**30:.3g} GiB of {available / 2**30:.3g} GiB per device; use "
      "more chips, other rows.microbatch_rows, or a smaller model.how.moe_chunk"
    )
  return sorted(fitting, key=lambda one: (one.seconds, one.bytes))
