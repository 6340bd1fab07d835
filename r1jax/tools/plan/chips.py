"""Chips and their networks: nominal figures that the makers publish."""

import dataclasses
import math
import re
from typing import Any, NamedTuple

GB, GIB = 1e9, 2**30


class Chip(NamedTuple):
  """One accelerator."""

  name: str
  libtpu: str  # Its name in libtpu; "" for a GPU.
  flops: float  # Dense bfloat16 FLOPs per second.
  memory: float | int  # Bytes that a program may use.
  memory_rate: float  # Bytes per second.
  link: float  # Bytes per second and direction of a link; for a GPU, of all.
  network: float  # Bytes per second and direction beyond the slice or host.
  torus: int  # Dimensions of the torus network; 0 for a switch.
  source: str


_TPU = "https://cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
# The memory of TPUs is the limit that XLA:TPU reports in its out-of-memory
# errors. The rate of a link is the published bandwidth of a chip divided by its
# number of links (6 in a 3D torus, 4 in 2D), in one direction.
CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v4", "v4", 275e12, 30.5 * GIB, 1228 * GB, 50 * GB, 6.25 * GB, 3,
         _TPU + "v4"),
    Chip("v5e", "v5e", 197e12, 15.75 * GIB, 819 * GB, 50 * GB, 3.125 * GB, 2,
         _TPU + "v5e"),
    Chip("v5p", "v5p", 459e12, 95.74 * GIB, 2765 * GB, 100 * GB, 6.25 * GB, 3,
         _TPU + "v5p"),
    Chip("v6e", "v6e", 918e12, 31.25 * GIB, 1638 * GB, 100 * GB, 12.5 * GB, 2,
         _TPU + "v6e"),
    Chip("tpu7x", "tpu7x", 2307e12, 189.5 * GIB, 7380 * GB, 100 * GB,
         12.5 * GB, 3, _TPU + "tpu7x"),
    # The driver and XLA leave about 95% of a GPU's memory to programs.
    Chip("h100", "", 989e12, 0.95 * 80 * GB, 3350 * GB, 450 * GB, 50 * GB, 0,
         _NVIDIA + "h100"),
    Chip("h200", "", 989e12, 0.95 * 141 * GB, 4800 * GB, 450 * GB, 50 * GB, 0,
         _NVIDIA + "h200"),
    Chip("b200", "", 2250e12, 0.95 * 180 * GB, 7700 * GB, 900 * GB, 50 * GB, 0,
         _NVIDIA + "dgx-b200"),
  )
}  # fmt: skip

# Of the nominal rate of a link between TPUs, what measurements reach:
# https://jax-ml.github.io/scaling-book/tpus/ has 90 GB/s for v5p, 45 for v5e.
MEASURED = 0.9


class Client(NamedTuple):
  """The client of planned devices, which belong to no process."""

  def process_index(self) -> int:
    """-1, the index of no process."""
    return -1


@dataclasses.dataclass(frozen=True)
class Device:
  """A planned GPU, with the attributes that meshes and shardings use."""

  id: int
  process_index: int
  platform: str = "gpu"
  device_kind: str = "planned"
  client: Client = Client()


class Topology(NamedTuple):
  """Chips in slices, as `--topology` names them."""

  chip: Chip
  shape: tuple[int, ...]  # Chips of a slice by dimension; for GPUs, of a host.
  num_slices: int = 1  # For GPUs, the number of hosts.

  @property
  def num_chips(self) -> int:
    """The number of chips in all slices."""
    return math.prod(self.shape) * self.num_slices

  @property
  def name(self) -> str:
    """The name that `topology` parses."""
    shape = "x".join(map(str, self.shape))
    if not self.chip.torus:
      return f"{self.chip.name}:{shape}x{self.num_slices}"
    slices = f"*{self.num_slices}" if self.num_slices > 1 else ""
    return f"{self.chip.name}:{shape}{slices}"

  def memory(self, devices: int) -> float | int:
    """The bytes of one of `devices` devices; a chip may have two devices."""
    return self.chip.memory * self.num_chips / devices


FORM = (
  "use CHIP:SHAPE, such as v5p:8x16x16 for one slice, CHIP:SHAPE*SLICES, such "
  "as v6e:16x16*4, or GPU:PER_HOSTxHOSTS, such as h200:8x64"
)


def topology(name: str) -> Topology:
  """The topology of a name like "v5p:8x16x16", "v6e:16x16*4" or "h200:8x64".

  Raises ValueError for an unknown chip or a malformed name.
  """
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", name.strip())
  if not match:
    raise ValueError(f"unknown topology {name!r}; {FORM}")
  chip = CHIPS.get(match[1].lower())
  if chip is None:
    raise ValueError(
      f"unknown topology {name!r}: there is no chip {match[1]!r} among "
      f"{', '.join(CHIPS)}"
    )
  shape, slices = tuple(map(int, match[2].split("x"))), int(match[3] or 1)
  if not chip.torus:
    shape = (*shape, 1)[:3]
    if len(shape) > 2 and shape[2] > 1 or match[3]:
      raise ValueError(f"unknown topology {name!r}; {FORM}")
    shape, slices = shape[:1], shape[1]
  elif len(shape) != chip.torus:
    raise ValueError(
      f"topology {name!r} has {len(shape)} dimensions, and a slice of "
      f"{chip.name} has {chip.torus}"
    )
  if not math.prod(shape) * slices:
    raise ValueError(f"topology {name!r} has no chips")
  return Topology(chip, shape, slices)


def with_measured_links(topology: Topology) -> Topology:
  """The topology with links at the rate that they reach in measurements.

  Raises ValueError for GPUs, whose switches have no such figure.
  """
  chip = topology.chip
  if not chip.torus:
    raise ValueError(f"--measured_ici is for TPUs, not for {topology.name}")
  return topology._replace(chip=chip._replace(link=MEASURED * chip.link))


def devices(topology: Topology) -> list[Any]:
  """The devices of a topology; for TPUs, those that libtpu compiles for.

  Raises ValueError if libtpu is not installed or does not know the topology.
  """
  chip, shape = topology.chip, topology.shape
  if not chip.torus:
    each, count = shape[0], topology.num_chips
    return [Device(i, i // each) for i in range(count)]
  import importlib.util

  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      "libtpu, which compiles for TPUs, is not installed; `make plan "
      "CONFIG=... TOPOLOGY=...` makes an environment that has it, or: pip "
      "install 'r1jax[tpu]'"
    )
  from jax.experimental import topologies

  name = f"{chip.libtpu}:{'x'.join(map(str, shape))}"
  slices = (
    {} if topology.num_slices == 1 else {"num_slices": topology.num_slices}
  )
  try:
    made = topologies.get_topology_desc(
      topology_name=name, platform="tpu", **slices
    )
  except Exception as error:  # A JaxRuntimeError, but not of every version.
    raise ValueError(f"libtpu refuses the topology {name}: {error}") from error
  return list(made.devices)


def places(devices, topology: Topology):
  """The coordinates (slice, x, y, ...) of every device, in order."""
  if not topology.chip.torus:
    each = topology.shape[0]
    return [(device.id // each, device.id % each) for device in devices]
  return [
    (getattr(d, "slice_index", 0) or 0, *d.coords[: len(topology.shape)])
    for d in devices
  ]
