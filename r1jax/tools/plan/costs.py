"""Costs of one run of a compiled program on a device: FLOPs, memory, network.

XLA's own cost analysis counts the body of a loop once, and all branches of a
conditional in full. Here, a loop counts as often as it runs, and a branch with
its probability. What depends on data has to be declared by the caller, for the
`jax.named_scope` that contains it. A kernel counts as its own estimate says.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from r1jax.tools.plan import hlo
from r1jax.tools.plan.hlo import Instruction, Module
from r1jax.tools.plan.loops import trip_count
from r1jax.tools.plan.matmuls import flops_of
from r1jax.tools.plan.traffic import moved, read

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "ragged-all-to-all",
)
# Marks transfers between slices, which go through the hosts of TPUs.
CROSSING = r'_xla_megascale_transfer_type="(\w+)"'
KERNEL = 'custom_call_target="tpu_custom_call"'
# XLA's own list of the tiles of a grouped matmul has no estimate.
NEGLIGIBLE = "ragged-dot-metadata"


class Declared(NamedTuple):
  """What the text of a program does not say, by named scope.

  Scopes are words in the path of an instruction. If several are in the path,
  the innermost counts.
  """

  # Trip counts of loops, those of the outermost loop first.
  trips: Mapping[str, Sequence[float | int]] = {}
  # Probabilities of the branches of conditionals; of `lax.cond`, false first.
  branches: Mapping[str, Sequence[float | int]] = {}
  # Shares of a kernel's estimated work that is done, as not all of its rows are
  # in use, or not all of its blocks see each other.
  work: Mapping[str, float | int] = {}


NOTHING = Declared()


class Collective(NamedTuple):
  """One collective operation."""

  kind: str
  groups: np.ndarray | None  # Devices [G, n] of each group; None: all devices.
  bytes: float  # Input bytes per device and run.
  times: float  # The number of runs.
  source: str  # The line of Python that it comes from; "" if unknown.

  def received(self, devices: int) -> float | int:
    """The bytes that a device receives from others, in all runs together."""
    n = devices if self.groups is None else self.groups.shape[1]
    share = {
      "all-gather": n - 1,
      "all-reduce": 2 * (n - 1) / n,
      "collective-permute": 1,
    }.get(self.kind, (n - 1) / n)
    return self.bytes * self.times * share


@dataclasses.dataclass
class Line:
  """The costs of one instruction in all its runs."""

  instruction: Instruction
  source: str  # The line of Python that it comes from; "" if unknown.
  flops: float = 0.0  # Those of the instructions within a fusion, too.
  bytes: float = 0.0
  times: float = 0.0


@dataclasses.dataclass
class Costs:
  """The costs of one run of a program on one device."""

  flops: float = 0.0  # FLOPs of matmuls, convolutions and kernels.
  bytes: float = 0.0  # Bytes read from and written to main memory.
  collectives: list[Collective] = dataclasses.field(default_factory=list)
  # Names of instructions that transfer data to or from the host.
  transfers: list[str] = dataclasses.field(default_factory=list)
  lines: dict[str, Line] = dataclasses.field(default_factory=dict)
  between: np.ndarray | None = None  # See `count`.


def count(
  module: Module,
  declared: Declared = NOTHING,
  between: np.ndarray | None = None,
) -> Costs:
  """The costs of a module.

  Raises ValueError for a loop or a conditional that depends on data and is not
  declared, and for a kernel without an estimate.

  Args:
    module: compiled for one device of many.
    declared: what depends on data.
    between: groups of devices [G, n] that communicate between slices; None if
      there is one slice.
  """
  costs = Costs(between=between)
  _walk(module, module.entry, 1.0, _Inside((), (), None), costs, declared)
  return costs


class _Inside(NamedTuple):
  """The context in which a computation runs."""

  # The enclosing loops, each with the computation that contains it.
  loops: tuple[tuple[str, Instruction], ...]
  scopes: tuple[
    str, ...
  ]  # Scopes of enclosing loops with data-dependent trips.
  fusion: Instruction | None  # The outermost one that contains it.


def _walk(module, name, times, inside: _Inside, costs, declared) -> None:
  """Adds the costs of `times` runs of the computation `name`."""
  lines = module.computations[name]
  for line in lines.values():
    kind = line.opcode.removesuffix("-start")
    if line.opcode == "while":
      within = inside._replace(loops=(*inside.loops, (name, line)))
      runs = trip_count(module, line, within.loops)
      if runs is None:
        scope, levels = _declared(module, line, declared.trips, "trip count")
        runs = levels[min(inside.scopes.count(scope), len(levels) - 1)]
        within = within._replace(scopes=(*inside.scopes, scope))
      for part in ("body", "condition"):
        called = line.attribute(rf"{part}=%?([\w.\-]+)")
        _walk(module, called, times * runs, within, costs, declared)
    elif line.opcode == "conditional":
      _, shares = _declared(module, line, declared.branches, "probability")
      for branch, share in zip(_branches(line), shares, strict=True):
        _walk(module, branch, times * share, inside, costs, declared)
    elif line.opcode in ("fusion", "call", "async-start"):
      within = inside
      if line.opcode == "fusion" and not inside.fusion:
        within = inside._replace(fusion=line)
      _walk(module, line.calls, times, within, costs, declared)
    elif kind in KINDS:
      scatters = inside.fusion and kind == "all-reduce" and _scatters(lines)
      costs.collectives.append(
        Collective(
          kind="reduce-scatter" if scatters else kind,
          groups=hlo.groups(line),
          bytes=sum(shape.bytes for shape in read(lines, line)),
          times=times,
          source=module.source_of(line),
        )
      )
    elif crossing := line.attribute(CROSSING):
      if line.opcode == "send":
        costs.collectives.append(
          Collective(
            kind=crossing.lower().replace("_", "-"),
            groups=costs.between,
            bytes=read(lines, line)[0].bytes,
            times=times,
            source=module.source_of(line),
          )
        )
    elif line.opcode in ("infeed", "outfeed", "send", "recv") or (
      line.opcode == "custom-call" and "callback" in line.attributes
    ):
      costs.transfers.append(line.name)
    flops, size = _of_line(module, lines, line, declared)
    _add(module, costs, inside.fusion, line, times, flops, size)


def _of_line(module, lines, line, declared) -> tuple[float | int, float | int]:
  """FLOPs and bytes of one run of an instruction by itself."""
  if line.opcode == "custom-call" and KERNEL in line.attributes:
    return _kernel(lines, line, declared)
  return flops_of(lines, line), moved(module, lines, line)


def _add(module, costs, fusion, line, times, flops, size) -> None:
  """Adds `times` runs of an instruction; a fusion's own traffic is its."""
  owner = fusion or line
  costs.flops += times * flops
  if fusion is not None:
    size = 0.0
  costs.bytes += times * size
  if not flops and not size:
    return
  entry = costs.lines.setdefault(
    owner.name, Line(owner, module.source_of(owner))
  )
  entry.flops += times * flops
  entry.bytes += times * size
  if owner is line:
    entry.times += times


def _path(line: Instruction) -> str:
  """The path of an instruction: functions, transformations and scopes."""
  return line.attribute(r'op_name="([^"]*)"') or line.name


def _scope(line: Instruction, known: Mapping) -> str | None:
  """The innermost scope of an instruction that is known."""
  words = re.findall(r"\w+", _path(line))
  return next((word for word in reversed(words) if word in known), None)


def _declared(module, line, known: Mapping, what: str) -> tuple[str, Sequence]:
  """The scope of an instruction, and what is declared for it."""
  scope = _scope(line, known)
  if scope is None:
    raise ValueError(
      f"{line.opcode} {_path(line)} at {module.source_of(line) or 'unknown'} "
      f"depends on data and has no declared {what}; put it into a "
      "jax.named_scope and declare that in r1jax/tools/plan/loads.py"
    )
  return scope, known[scope]


def _kernel(
  lines, line: Instruction, declared
) -> tuple[float | int, float | int]:
  """FLOPs and bytes of a kernel, by its own estimate.

  If only a share of its work is done, its traffic shrinks with it. Arrays of
  more than two dimensions, such as weights by group, are moved whole.
  """
  if line.name.startswith(NEGLIGIBLE):
    return 0.0, 0.0
  flops, size = (
    line.attribute(rf'"cost_estimate":\{{[^}}]*"{field}":"?(\d+)')
    for field in ("flops", "bytes_accessed")
  )
  if flops is None or size is None:
    raise ValueError(
      f"kernel {_path(line)} has no cost estimate; give `pallas_call` one"
    )
  share = declared.work.get(_scope(line, declared.work), 1.0)
  arrays = (*read(lines, line), *line.shapes)
  whole = sum(shape.bytes for shape in arrays if len(shape.dims) > 2)
  whole = min(float(size), whole)
  return share * float(flops), whole + share * (float(size) - whole)


def _branches(line: Instruction) -> list[str]:
  """The computations of a conditional, in the order of `Declared.branches`."""
  listed = line.attribute(r"branch_computations=\{([^}]*)\}")
  if listed is not None:
    return re.findall(r"%([\w.\-]+)", listed)
  pattern = r"{}_computation=%?([\w.\-]+)"
  return [line.attribute(pattern.format(kind)) for kind in ("false", "true")]


def _scatters(lines) -> bool:
  """Whether a fused all-reduce keeps one part only: a reduce-scatter on TPU."""
  root = next(line for line in lines.values() if line.root)
  return root.opcode in ("dynamic-slice", "bitcast", "reshape") and any(
    line.opcode == "dynamic-slice" for line in lines.values()
  )


def largest(costs: Costs, number: int) -> dict[str, list[dict]]:
  """The instructions with the most bytes, and those with the most FLOPs."""

  def row(line: Line) -> dict:
    shapes = ", ".join(
      f"{s.dtype}[{','.join(map(str, s.dims))}]"
      for s in line.instruction.shapes
    )
    return {
      "name": line.instruction.name,
      "shapes": shapes,
      "times": line.times,
      "bytes": line.bytes,
      "flops": line.flops,
      "source": line.source,
      "path": _path(line.instruction),
    }

  def most(kind: str) -> list[dict]:
    order = sorted(costs.lines.values(), key=lambda x: -getattr(x, kind))
    return [row(line) for line in order[:number] if getattr(line, kind)]

  return {kind: most(kind) for kind in ("bytes", "flops")}


def table(
  costs: Costs, sizes: Mapping[str, int]
) -> dict[tuple[str, tuple[str, ...]], dict[str, float]]:
  """Bytes received and number of collectives, by kind and mesh axes."""
  rows: dict = {}
  for one in costs.collectives:
    axes = hlo.axes_of(one.groups, dict(sizes))
    row = rows.setdefault((one.kind, axes), {"bytes": 0.0, "times": 0.0})
    row["bytes"] += one.received(math.prod(sizes.values()))
    row["times"] += one.times
  return dict(sorted(rows.items(), key=lambda item: -item[1]["bytes"]))
