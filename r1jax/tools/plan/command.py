"""What a run would take of a pod that is not there.

    r1jax plan --config=experiments/r1_zero.py \
        --topology=v5p:8x16x16

Compiles the run's own programs with XLA:TPU, on a CPU, for a topology such as
v5p:8x16x16, or v6e:16x16*4 for four slices, and prints what they take of each
chip: memory, FLOPs, bytes moved, bytes that cross the network by kind and by
axis of the mesh, the least time that all this needs, and the share of the
chips' FLOPs (MFU) that it allows. Needs libtpu: `make plan CONFIG=...
TOPOLOGY=...` makes an environment that has it. For GPUs (h200:8x64 is 64 hosts
of 8) nothing is compiled: bytes of arguments are exact, the rest is estimated.

`--config.mesh.fsdp=32` and the like try another mesh, `--sweep_mesh` ranks all
of them by arithmetic and compiles the best three, `--json` prints one JSON
object as the last line. The exit code is 0 if all fits and no program has a
fault (see `faults`), else 1.
"""

import os

# Before JAX: no TPU is looked for, here or in the cloud.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import json
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from r1jax import config as configs
from r1jax.parallel import sharding
from r1jax.tools import command_line
from r1jax.tools.plan import chips, estimate, hlo, meshes
from r1jax.tools.plan import costs as plan_costs
from r1jax.tools.plan import text as tables
from r1jax.tools.plan.bounds import bounds
from r1jax.tools.plan.programs import PROGRAMS, Program, per_device
from r1jax.training import inspection

SPARE = 0.05  # Of the memory, to call it a fit.
BEST = 3  # Meshes that a sweep compiles.
GATHERED = 1 / 2  # Of a model: so much at once is the model, gathered whole.
COPIED = 1 / 100  # Of a model: an array so large is not to be on every device.


def plan(
  config: ConfigDict,
  topology: chips.Topology,
  *,
  only: tuple[str, ...] = (),
  say=lambda text: None,
) -> dict:
  """What `config` takes of `topology`, as one JSON object.

  Args:
    config: of a run; its mesh is the one that is planned.
    topology: of chips.
    only: names of programs; empty for all.
    say: is told what goes on.

  Raises ValueError for a loop that has no plan, or a mesh that the topology
  cannot have.
  """
  if config.loop not in PROGRAMS:
    raise ValueError(configs.unknown("loop to plan", config.loop, PROGRAMS))
  mesh = make_mesh(config, topology)
  inspection.check_rows(config.rows, mesh)
  programs = PROGRAMS[config.loop](config, mesh)
  names = [program.name for program in programs]
  for name in only:
    if name not in names:
      raise ValueError(configs.unknown("program", name, names))
  found = {
    "topology": topology.name,
    "chips": topology.num_chips,
    "mesh": {name: size for name, size in mesh.shape.items() if size > 1},
    "memory_per_device": topology.memory(mesh.size),
    "programs": {},
  }
  for program in programs:
    if only and program.name not in only:
      continue
    say(f"{program.name} ...")
    found["programs"][program.name] = (
      compiled(program, topology)
      if topology.chip.torus
      else estimated(program, topology)
    )
  made = found["programs"].values()
  found["fits"] = all(one["fits"] for one in made)
  found["sound"] = not any(one.get("faults") for one in made)
  return found


def make_mesh(config: ConfigDict, topology: chips.Topology):
  """The mesh of a config on chips that are not there."""
  devices = chips.devices(topology)
  slices = topology.num_slices if topology.chip.torus else 1
  sizes = dict(num_slices=slices) | config.mesh.to_dict()
  return sharding.make_mesh(**sizes, devices=devices)


def sweep(config: ConfigDict, topology: chips.Topology, **options) -> dict:
  """`plan` on the three meshes that are best by arithmetic; see `ranked`."""
  if config.loop not in PROGRAMS:
    raise ValueError(configs.unknown("loop to plan", config.loop, PROGRAMS))
  devices = len(chips.devices(topology))
  found = meshes.ranked(config, topology, devices)
  plans = []
  for one in found[:BEST]:
    tried = ConfigDict(config.to_dict())
    tried.mesh = one.mesh
    plans.append(plan(tried, topology, **options))
  return {
    "ranked": [one._asdict() for one in found],
    "plans": plans,
    "fits": any(one["fits"] for one in plans),
    "sound": all(one["sound"] for one in plans),
  }


def compiled(program: Program, topology: chips.Topology) -> dict:
  """What one program takes, as XLA:TPU compiles it."""
  began, mesh = time.monotonic(), program.mesh
  room, made = topology.memory(mesh.size), _arguments(program)
  try:
    with jax.set_mesh(mesh):
      lowered = program.function.lower(*program.arguments, **program.options)
      built = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return made | {
      "fits": False,
      "compile_seconds": time.monotonic() - began,
      "error": str(error),
    }
  seconds = time.monotonic() - began
  stats = built.memory_analysis()
  # XLA's own measure of a fit; it counts arguments and results.
  peak = stats.peak_memory_in_bytes
  made["arguments"] = stats.argument_size_in_bytes
  made["temporaries"] = peak - made["arguments"]
  made["code"] = stats.generated_code_size_in_bytes
  made["host"] += stats.host_temp_size_in_bytes
  total = peak + made["code"] + made["beside"]
  between = None
  if topology.num_slices > 1:
    between = np.arange(mesh.size).reshape(topology.num_slices, -1).T
  module = hlo.parse(built.as_text())
  costs = plan_costs.count(module, program.trips, between)
  places = chips.places(mesh.devices.flat, topology)
  received = [
    (one.kind, one._replace(times=1).received(mesh.size))
    for one in costs.collectives
  ]
  return made | {
    "total": total,
    "fits": total <= (1 - SPARE) * room,
    "faults": faults(
      program,
      max((n for kind, n in received if kind == "all-gather"), default=0),
      costs.transfers,
      jax.tree.leaves(lowered.out_info),
      jax.tree.leaves(built.output_shardings),
    ),
    "compile_seconds": seconds,
    "flops": costs.flops,
    "bytes": costs.bytes,
    "collectives": [
      {"kind": kind, "axes": list(axes), **row}
      for (kind, axes), row in plan_costs.table(costs, mesh.shape).items()
    ],
    "largest_transfer": max((n for _, n in received), default=0),
    "loops_counted_once": sorted(costs.once),
    **_speed(program, bounds(costs, topology, places), topology),
  }


def faults(
  program: Program,
  gathered: float | int,
  transfers: Sequence[str],
  outputs: Sequence[Any],
  lie: Sequence[jax.sharding.Sharding],
) -> list[str]:
  """What no program of a run may do, however much memory there is.

  Args:
    program: as compiled.
    gathered: bytes that a device gets from others at once, at most.
    transfers: instructions that wait for a host.
    outputs: shapes of all that the program makes,
    lie: and how it is split.
  """
  found = [f"it waits for the host: {name}" for name in transfers]
  whole = sum(estimate.sizes_of(program.sizes))
  whole *= np.dtype(program.sizes.compute_dtype).itemsize
  if program.mesh.size > 1 and gathered >= GATHERED * whole:
    found.append(
      f"it gathers {gathered:.3g} bytes at once, of a model of {whole:.3g}"
    )
  if program.name == "reshard":  # The sampler's weights may lie whole.
    return found
  for x, on in zip(outputs, lie, strict=True):
    count = math.prod(x.shape) * x.dtype.itemsize
    if (
      count >= COPIED * whole and on.is_fully_replicated and on.num_devices > 1
    ):
      found.append(f"every device makes {x.dtype}{list(x.shape)} whole")
  return found


def estimated(program: Program, topology: chips.Topology) -> dict:
  """What one program takes by arithmetic; only its arguments are exact."""
  mesh, sizes, rows = program.mesh, program.sizes, program.rows
  room, made = topology.memory(mesh.size), _arguments(program)
  shape, parts = dict(mesh.shape), {}
  if rows is not None:
    parts = estimate.temporaries(sizes, rows, shape)
  if rows is not None and program.name != "update":
    del parts["gradients"]
  made["estimated"] = parts
  total = made["arguments"] + made["beside"] + sum(parts.values())
  made |= {"total": total, "fits": total <= (1 - SPARE) * room}
  if program.name != "update":
    return made
  least = estimate.bounds(sizes, rows, shape, topology, program.flops)
  return made | _speed(program, least, topology)


def _arguments(program: Program) -> dict:
  """Bytes of a device of all that is there before the program runs."""
  parts = {name: per_device(tree) for name, tree in program.parts.items()}
  beside = {name: per_device(tree) for name, tree in program.beside.items()}
  return {
    "parts": parts | beside,
    "arguments": per_device(program.arguments),
    "beside": sum(beside.values()),
    "host": per_device((program.arguments, dict(program.beside)), parked=True),
  }


def _speed(program: Program, least, topology: chips.Topology) -> dict:
  """Bounds in seconds, and the MFU that they allow."""
  mfu = lambda seconds: (
    program.flops / (seconds * topology.num_chips * topology.chip.flops)
  )
  return {
    "model_flops": program.flops,
    "tokens": program.tokens,
    "bounds": least._asdict(),
    "seconds": {"overlapped": least.overlapped, "serial": least.serial},
    "mfu": {"overlapped": mfu(least.overlapped), "serial": mfu(least.serial)},
  }


def define_flags() -> None:
  """Defines the flags that `main` reads."""
  command_line.define_config_flags()
  flags.DEFINE_string("topology", None, "Chips and their shape: v5p:8x16x16.")
  flags.DEFINE_list("programs", [], "Only these, such as update,decode.")
  flags.DEFINE_bool("sweep_mesh", False, "Rank all meshes; plan the best.")
  flags.DEFINE_bool("json", False, "Print one JSON object as the last line.")


def main() -> int:
  """Plans, and prints what it found; the exit code."""
  options = flags.FLAGS
  if not options.topology:
    raise ValueError(f"no --topology; {chips.FORM}")
  settings = command_line.config()
  configs.check(settings)
  say = lambda text: print(text, file=sys.stderr, flush=True)
  topology, only = chips.topology(options.topology), options.programs
  make = sweep if options.sweep_mesh else plan
  found = make(settings, topology, only=tuple(only), say=say)
  print(tables.text(found))
  if options.json:
    print(json.dumps(found))
  return 0 if found["fits"] and found["sound"] else 1
