"""Slices of TPUs: those that exist, and what Google Cloud calls them.

The shapes and names are those of https://cloud.google.com/tpu/docs (one page
for each version) and of "Plan TPUs in GKE". They are the same on the queued
resources of Cloud TPU and on GKE, except for TPU7x, which only GKE has.
"""

from typing import NamedTuple

from r1jax.tools.plan.chips import Topology

PER_HOST = 4  # Chips; smaller slices have one host.
CUBE = 4  # Chips along each side of the cubes that 3D tori are built of.
SQUARES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
PARTS = ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))  # Of a cube.


class Kind(NamedTuple):
  """The names of one version of TPUs, and its largest slice."""

  accelerator: str  # Begins its accelerator types; "" if only GKE has it.
  cores: int  # That an accelerator type counts for each chip.
  gke: str  # The label cloud.google.com/gke-tpu-accelerator of its nodes.
  largest: tuple[int, ...]  # Chips along each side.


KINDS = {
  "v4": Kind("v4", 2, "tpu-v4-podslice", (16, 16, 16)),
  "v5e": Kind("v5litepod", 1, "tpu-v5-lite-podslice", (16, 16)),
  "v5p": Kind("v5p", 2, "tpu-v5p-slice", (16, 16, 24)),
  "v6e": Kind("v6e", 1, "tpu-v6e-slice", (16, 16)),
  "tpu7x": Kind("", 2, "tpu7x", (16, 24, 24)),  # 9,216 chips.
}


def warnings(topology: Topology) -> list[str]:
  """What is wrong with a topology that nobody can rent, in one sentence each.

  Empty for slices that exist, and for GPUs.
  """
  kind = KINDS.get(topology.chip.name)
  if kind is None or topology.shape in (SQUARES + PARTS):
    return []
  name, shape = topology.chip.name, topology.shape
  text = f"there is no slice {_sides(shape)} of {name}: "
  if len(shape) == 2:
    return [text + f"it has {', '.join(map(_sides, SQUARES))}"]
  if any(side % CUBE for side in shape):
    parts = ", ".join(map(_sides, PARTS))
    return [text + f"it has {parts}, and sides that are multiples of {CUBE}"]
  if any(a > b for a, b in zip(sorted(shape), kind.largest)):
    return [text + f"its largest is {_sides(kind.largest)}"]
  if shape != tuple(sorted(shape)):
    return [text + f"its sides ascend, as in {_sides(tuple(sorted(shape)))}"]
  return []


def names(topology: Topology) -> dict[str, str | int]:
  """What the slices of a topology are called elsewhere; empty for GPUs.

  Keys: "accelerator_type" (`--accelerator-type` of gcloud), "type" and
  "topology" (`--type`, `--topology`), "gke_accelerator" and "gke_topology" (the
  node labels), "slices", and "hosts" and "chips_per_host" of each slice.
  """
  kind = KINDS.get(topology.chip.name)
  if kind is None:
    return {}
  chips, shape = topology.num_chips // topology.num_slices, topology.shape
  per_host = min(PER_HOST, chips)
  found = {
    "gke_accelerator": kind.gke,
    "gke_topology": _sides(shape),
    "slices": topology.num_slices,
    "hosts": chips // per_host,
    "chips_per_host": per_host,
  }
  if kind.accelerator:
    found["accelerator_type"] = f"{kind.accelerator}-{chips * kind.cores}"
    found["type"], found["topology"] = kind.accelerator, _sides(shape)
  return found


def text(names: dict[str, str | int]) -> str:
  """`names` as one line."""
  queued = "only on GKE"
  if "type" in names:
    queued = (
      f"--accelerator-type={names['accelerator_type']}, or --type="
      f"{names['type']} --topology={names['topology']}"
    )
  each = "of each slice " if names["slices"] > 1 else ""
  return (
    f"{queued}; on GKE {names['gke_accelerator']} {names['gke_topology']}, "
    f"{names['hosts']} hosts {each}with {names['chips_per_host']} chips"
  )


def _sides(shape: tuple[int, ...]) -> str:
  return "x".join(map(str, shape))
