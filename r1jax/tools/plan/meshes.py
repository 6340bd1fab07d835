"""The ranking of all meshes for a run, by estimates."""

import functools
from typing import NamedTuple

from ml_collections import ConfigDict

from r1jax.tools.plan import estimate
from r1jax.tools.plan.chips import Topology
from r1jax.tools.plan.fill import Lengths, full, simulate
from r1jax.tools.plan.programs import PER_STEP, forward_flops, sizes_of

STATE = 12  # Bytes per weight of float32 weights and two moments.
REFERENCE = 2  # Bytes per weight of the reference policy.


class Ranked(NamedTuple):
  """A mesh, with estimates for an update."""

  mesh: dict[str, int]
  seconds: float  # Of the gradients of an update.
  bytes: float  # Per device.
  use: float  # The share of slots that hold real tokens; see `fill.Fill`.


def ranked(
  config: ConfigDict,
  topology: Topology,
  devices: int,
  lengths: Lengths | None = None,
) -> list[Ranked]:
  """The meshes that the run fits, the fastest first.

  They are ranked for completions of these lengths, or, with None, of full
  length. Raises ValueError if it fits none.
  """
  sizes, widths = sizes_of(config), sorted(config.rows.widths)
  simulated = functools.cache(
    lambda shards: simulate(config, shards, lengths or full, rounds=1)
  )
  available, fitting, least = topology.memory(devices), [], float("inf")
  slices = topology.num_slices if topology.chip.torus else 1
  for mesh in estimate.meshes(sizes, widths, devices, slices):
    shards = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    rows = shards * config.rows.shard_rows
    weights = sum(estimate.sizes_of(sizes)) * mesh["data"] / devices
    total = weights * (STATE + REFERENCE) + sum(
      estimate.temporaries(sizes, (rows, widths[-1]), mesh).values()
    )
    least = min(least, total)
    if total <= available:
      fill = simulated(shards)
      time = sum(
        count
        * estimate.bounds(
          sizes,
          (rows, width),
          mesh,
          topology,
          PER_STEP * forward_flops(sizes, rows, width),
        ).serial
        for width, count in fill.microbatches.items()
      )
      fitting.append(Ranked(mesh, time, total, fill.use))
  if not fitting:
    raise ValueError(
      f"the run fits no mesh of the {devices} devices: it needs at least "
      f"{least / 2**30:.3g} GiB of {available / 2**30:.3g} GiB per device; use "
      "more chips, or a smaller model.how.moe_chunk"
    )
  return sorted(fitting, key=lambda one: (one.seconds, one.bytes))
