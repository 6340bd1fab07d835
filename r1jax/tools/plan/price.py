"""The price of one program: memory, FLOPs, network traffic and least time."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax.tools.plan import chips, estimate, hlo, loads
from r1jax.tools.plan import costs as plan_costs
from r1jax.tools.plan.bounds import Bounds, bounds
from r1jax.tools.plan.fill import Fill
from r1jax.tools.plan.programs import Program, bytes_per_device

SPARE = 0.05  # Share of the memory that must be free for a program to fit.
# Faults, as shares of the bytes of the model: the size of one all-gather, and
# the size of an output that every device holds a copy of.
GATHERED = 1 / 2
COPIED = 1 / 100


class Compiled(NamedTuple):
  """One compiled program."""

  report: dict
  # Its bounds; those of a program of training depend on the rows.
  bounds: Callable[[Fill | None], Bounds]


def compiled(
  program: Program, topology: chips.Topology, largest: int = 0
) -> Compiled:
  """The costs of one program, compiled by XLA:TPU.

  The report lists the `largest` instructions by bytes and by FLOPs.
  """
  began, mesh = time.monotonic(), program.mesh
  room, result = topology.memory(mesh.size), _arguments(program)
  try:
    with jax.set_mesh(mesh):
      lowered = program.function.lower(*program.arguments, **program.options)
      built = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    result |= {
      "fits": False,
      "compile_seconds": time.monotonic() - began,
      "error": str(error),
    }
    return Compiled(result, lambda fill: None)
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
  places = chips.places(mesh.devices.flat, topology)

  def count(**load):
    return plan_costs.count(module, program.declare(**load), between)

  def bounds_of(fill):
    return bounds(count(fill=fill), topology, places)

  costs = count()
  if largest:
    result["largest"] = plan_costs.largest(costs, largest)
  if program.sizes.experts is not None:
    skewed = count(routing=loads.ZIPF)
    result[loads.ZIPF] = {
      "flops": skewed.flops,
      "bytes": skewed.bytes,
      **_speed(program, bounds(skewed, topology, places), topology),
    }

  received = [
    (one.kind, one._replace(times=1).received(mesh.size))
    for one in costs.collectives
  ]
  result |= {
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
    **_speed(program, bounds(costs, topology, places), topology),
  }
  return Compiled(result, bounds_of)


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
  is_gradient = program.name.startswith("gradient")
  if rows is not None and not is_gradient:
    del parts["gradients"]
  result["estimated"] = parts
  total = result["arguments"] + result["beside"] + sum(parts.values())
  result |= {"total": total, "fits": total <= (1 - SPARE) * room}
  if not is_gradient:
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
