"""Compile a run for a pod, without having one.

    r1jax plan --config=experiments/r1_zero.py --topology=v5p:8x16x16

It compiles the programs of the run with XLA:TPU, on a CPU, for a topology such
as v5p:8x16x16 (v6e:16x16*4 means four slices). For each program it prints the
memory per chip, FLOPs, bytes moved in memory, bytes sent by each kind of
collective and mesh axis, a lower bound on the time, and the MFU that this bound
allows. It needs libtpu; `make plan CONFIG=... TOPOLOGY=...` creates an
environment with it. For GPUs (h200:8x64 is 64 hosts of 8) nothing is compiled:
the sizes of arguments are exact, and the rest is estimated.

`--config.mesh.fsdp=32` and similar overrides try another mesh. `--sweep_mesh`
ranks all meshes by estimates and compiles the best three. `--json` prints one
JSON object as the last line. The exit code is 0 if all programs fit and have no
faults (see `faults`), else 1.
"""

import os

# Set before JAX is imported, so that neither JAX nor libtpu looks for TPUs.
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
from r1jax.parallel.mesh import make_mesh
from r1jax.tools import command_line
from r1jax.tools.plan import chips, estimate, hlo, meshes
from r1jax.tools.plan import costs as plan_costs
from r1jax.tools.plan import text as tables
from r1jax.tools.plan.bounds import bounds
from r1jax.tools.plan.hosts import host_memory
from r1jax.tools.plan.programs import PROGRAMS, Program, bytes_per_device
from r1jax.training import inspection

SPARE = 0.05  # Share of the memory that must be free for a program to fit.
BEST = 3  # The number of meshes that a sweep compiles.
# Faults, as shares of the bytes of the model: the size of one all-gather, and
# the size of an output that every device holds a copy of.
GATHERED = 1 / 2
COPIED = 1 / 100


def plan(
  config: ConfigDict,
  topology: chips.Topology,
  *,
  only: tuple[str, ...] = (),
  log=lambda text: None,
) -> dict:
  """The costs of a config on a topology, as one JSON object.

  Args:
    config: of a run, with its mesh.
    topology: of chips.
    only: names of programs to plan; empty means all.
    log: called with messages about the progress.

  Raises ValueError for a loop without a plan, or a mesh that does not fit the
  topology.
  """
  if config.loop not in PROGRAMS:
    raise ValueError(configs.unknown("loop to plan", config.loop, PROGRAMS))
  mesh = planned_mesh(config, topology)
  inspection.check_rows(config.rows, mesh)
  programs = PROGRAMS[config.loop](config, mesh)
  names = [program.name for program in programs]
  for name in only:
    if name not in names:
      raise ValueError(configs.unknown("program", name, names))
  report = {
    "topology": topology.name,
    "chips": topology.num_chips,
    "mesh": {name: size for name, size in mesh.shape.items() if size > 1},
    "memory_per_device": topology.memory(mesh.size),
    "host_memory": host_memory(programs[0]),
    "programs": {},
  }
  for program in programs:
    if only and program.name not in only:
      continue
    log(f"{program.name} ...")
    report["programs"][program.name] = (
      compiled(program, topology)
      if topology.chip.torus
      else estimated(program, topology)
    )
  results = report["programs"].values()
  report["fits"] = all(result["fits"] for result in results)
  report["sound"] = not any(result.get("faults") for result in results)
  return report


def planned_mesh(config: ConfigDict, topology: chips.Topology):
  """The mesh of a config on the chips of a topology."""
  devices = chips.devices(topology)
  slices = topology.num_slices if topology.chip.torus else 1
  sizes = dict(num_slices=slices) | config.mesh.to_dict()
  return make_mesh(**sizes, devices=devices)


def sweep(config: ConfigDict, topology: chips.Topology, **options) -> dict:
  """The ranking of all meshes (see `ranked`), and plans of the best three."""
  if config.loop not in PROGRAMS:
    raise ValueError(configs.unknown("loop to plan", config.loop, PROGRAMS))
  devices = len(chips.devices(topology))
  ranking = meshes.ranked(config, topology, devices)
  plans = []
  for candidate in ranking[:BEST]:
    variant = ConfigDict(config.to_dict())
    variant.mesh = candidate.mesh
    plans.append(plan(variant, topology, **options))
  return {
    "ranked": [candidate._asdict() for candidate in ranking],
    "plans": plans,
    "fits": any(one["fits"] for one in plans),
    "sound": all(one["sound"] for one in plans),
  }


def compiled(program: Program, topology: chips.Topology) -> dict:
  """The costs of one program, compiled by XLA:TPU."""
  began, mesh = time.monotonic(), program.mesh
  room, result = topology.memory(mesh.size), _arguments(program)
  try:
    with jax.set_mesh(mesh):
      lowered = program.function.lower(*program.arguments, **program.options)
      built = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return result | {
      "fits": False,
      "compile_seconds": time.monotonic() - began,
      "error": str(error),
    }
  seconds = time.monotonic() - began
  stats = built.memory_analysis()
  # XLA uses this number to decide whether a program fits; it includes arguments
  # and results.
  peak = stats.peak_memory_in_bytes
  result["arguments"] = stats.argument_size_in_bytes
  result["temporaries"] = peak - result["arguments"]
  result["code"] = stats.generated_code_size_in_bytes
  result["host"] += stats.host_temp_size_in_bytes
  total = peak + result["code"] + result["beside"]
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
  return result | {
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
  shardings: Sequence[jax.sharding.Sharding],
) -> list[str]:
  """Descriptions of what no program should do, even with enough memory.

  Args:
    program: that was compiled.
    gathered: the most bytes that a device receives in one all-gather.
    transfers: names of instructions that wait for the host.
    outputs: shapes of the outputs of the program.
    shardings: of the outputs.
  """
  problems = [f"it waits for the host: {name}" for name in transfers]
  whole = sum(estimate.sizes_of(program.sizes))
  whole *= np.dtype(program.sizes.compute_dtype).itemsize
  if program.mesh.size > 1 and gathered >= GATHERED * whole:
    problems.append(
      f"it gathers {gathered:.3g} bytes at once, of a model of {whole:.3g}"
    )
  if program.name == "reshard":  # The sampler may hold replicated weights.
    return problems
  for x, on in zip(outputs, shardings, strict=True):
    count = math.prod(x.shape) * x.dtype.itemsize
    if (
      count >= COPIED * whole and on.is_fully_replicated and on.num_devices > 1
    ):
      problems.append(f"every device makes {x.dtype}{list(x.shape)} whole")
  return problems


def estimated(program: Program, topology: chips.Topology) -> dict:
  """The estimated costs of one program; only its arguments are exact."""
  mesh, sizes, rows = program.mesh, program.sizes, program.rows
  room, result = topology.memory(mesh.size), _arguments(program)
  shape, parts = dict(mesh.shape), {}
  if rows is not None:
    parts = estimate.temporaries(sizes, rows, shape)
  if rows is not None and program.name != "update":
    del parts["gradients"]
  result["estimated"] = parts
  total = result["arguments"] + result["beside"] + sum(parts.values())
  result |= {"total": total, "fits": total <= (1 - SPARE) * room}
  if program.name != "update":
    return result
  lower_bounds = estimate.bounds(sizes, rows, shape, topology, program.flops)
  return result | _speed(program, lower_bounds, topology)


def _arguments(program: Program) -> dict:
  """Bytes per device of everything that exists before the program runs."""
  parts = {name: bytes_per_device(tree) for name, tree in program.parts.items()}
  beside = {
    name: bytes_per_device(tree) for name, tree in program.beside.items()
  }
  return {
    "parts": parts | beside,
    "arguments": bytes_per_device(program.arguments),
    "beside": sum(beside.values()),
    "host": bytes_per_device(
      (program.arguments, dict(program.beside)), offloaded=True
    ),
  }


def _speed(program: Program, lower_bounds, topology: chips.Topology) -> dict:
  """Lower bounds in seconds, and the MFU that they allow."""
  mfu = lambda seconds: (
    program.flops / (seconds * topology.num_chips * topology.chip.flops)
  )
  return {
    "model_flops": program.flops,
    "tokens": program.tokens,
    "bounds": lower_bounds._asdict(),
    "seconds": {
      "overlapped": lower_bounds.overlapped,
      "serial": lower_bounds.serial,
    },
    "mfu": {
      "overlapped": mfu(lower_bounds.overlapped),
      "serial": mfu(lower_bounds.serial),
    },
  }


def define_flags() -> None:
  """Defines the flags that `main` reads."""
  command_line.define_config_flags()
  flags.DEFINE_string("topology", None, "The chips, such as v5p:8x16x16.")
  flags.DEFINE_list("programs", [], "Plan only these, such as update,decode.")
  flags.DEFINE_bool("sweep_mesh", False, "Rank all meshes; plan the best.")
  flags.DEFINE_bool("json", False, "Print one JSON object as the last line.")


def main() -> int:
  """Prints the plan; returns the exit code."""
  options = flags.FLAGS
  if not options.topology:
    raise ValueError(f"--topology is not set; {chips.FORM}")
  settings = command_line.config()
  configs.check(settings)
  log = lambda text: print(text, file=sys.stderr, flush=True)
  topology, only = chips.topology(options.topology), options.programs
  make = sweep if options.sweep_mesh else plan
  report = make(settings, topology, only=tuple(only), log=log)
  print(tables.text(report))
  if options.json:
    print(json.dumps(report))
  return 0 if report["fits"] and report["sound"] else 1
