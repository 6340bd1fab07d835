"""Costs of one run of a compiled program on a device: FLOPs, memory, network.

XLA's own cost analysis counts the body of a loop once. Here it is multiplied by
the trip count, which is read from the HLO text. If the trip count depends on
data, the caller sets it for the `jax.named_scope` that contains the loop.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from r1jax.tools.plan import hlo
from r1jax.tools.plan.hlo import Instruction, Module
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


class Collective(NamedTuple):
  """One collective operation."""

  kind: str
  groups: np.ndarray | None  # Devices [G, n] of each group; None: all devices.
  bytes: float  # Input bytes per device and run.
  times: float  # The number of runs.
  file: str  # The Python file that it comes from; "" if XLA inserted it.

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
class Costs:
  """The costs of one run of a program on one device."""

  flops: float = 0.0  # FLOPs of matmuls and convolutions.
  bytes: float = 0.0  # Bytes read from and written to main memory.
  collectives: list[Collective] = dataclasses.field(default_factory=list)
  # Names of instructions that transfer data to or from the host.
  transfers: list[str] = dataclasses.field(default_factory=list)
  once: set[str] = dataclasses.field(default_factory=set)  # See `count`.
  between: np.ndarray | None = None  # See `count`.


def count(
  module: Module,
  trips: Mapping[str, Sequence[float | int]] = {},
  between: np.ndarray | None = None,
) -> Costs:
  """The costs of a module.

  Args:
    module: compiled for one device of many.
    trips: trip counts of loops within a named scope, the outermost first. Loops
      with neither a known nor a given trip count are counted once and listed in
      `Costs.once`.
    between: groups of devices [G, n] that communicate between slices; None if
      there is one slice.
  """
  costs = Costs(between=between)
  _walk(module, module.entry, 1.0, _Inside((), ()), costs, trips)
  return costs


class _Inside(NamedTuple):
  """The context in which a computation runs."""

  # The enclosing loops, each with the computation that contains it.
  loops: tuple[tuple[str, Instruction], ...]
  scopes: tuple[
    str, ...
  ]  # Scopes of enclosing loops with data-dependent trips.
  fused: bool = False


def _walk(module, name, times, inside: _Inside, costs, trips) -> None:
  """Adds the costs of `times` runs of the computation `name`."""
  lines = module.computations[name]
  for line in lines.values():
    kind = line.opcode.removesuffix("-start")
    if line.opcode == "while":
      within = inside._replace(loops=(*inside.loops, (name, line)))
      runs = trip_count(module, line, within.loops)
      if runs is None:
        runs, scope = _configured_trips(line, trips, costs, inside.scopes)
        within = within._replace(scopes=(*inside.scopes, scope))
      for part in ("body", "condition"):
        called = line.attribute(rf"{part}=%?([\w.\-]+)")
        _walk(module, called, times * runs, within, costs, trips)
    elif line.opcode == "conditional":
      for branch in _branches(line):
        _walk(module, branch, times, inside, costs, trips)
    elif line.opcode in ("fusion", "call", "async-start"):
      fused = inside.fused or line.opcode == "fusion"
      within = inside._replace(fused=fused)
      _walk(module, line.calls, times, within, costs, trips)
    elif kind in KINDS:
      scatters = inside.fused and kind == "all-reduce" and _scatters(lines)
      costs.collectives.append(
        Collective(
          kind="reduce-scatter" if scatters else kind,
          groups=hlo.groups(line),
          bytes=sum(shape.bytes for shape in read(lines, line)),
          times=times,
          file=module.file_of(line),
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
            file=module.file_of(line),
          )
        )
    elif line.opcode in ("infeed", "outfeed", "send", "recv") or (
      line.opcode == "custom-call" and "callback" in line.attributes
    ):
      costs.transfers.append(line.name)
    costs.flops += times * _flops(lines, line)
    if not inside.fused:
      costs.bytes += times * moved(module, lines, line)


def _configured_trips(line, trips, costs, scopes) -> tuple[float | int, str]:
  """The trip count of a data-dependent loop, and the scope that contains it."""
  path = line.attribute(r'op_name="([^"]*)"') or line.name
  known = [word for word in re.findall(r"\w+", path) if word in trips]
  if not known:
    costs.once.add(path)
    return 1.0, ""
  levels, scope = trips[known[-1]], known[-1]
  return levels[min(scopes.count(scope), len(levels) - 1)], scope


def _branches(line: Instruction) -> list[str]:
  listed = line.attribute(r"branch_computations=\{([^}]*)\}")
  if listed is not None:
    return re.findall(r"%([\w.\-]+)", listed)
  pattern = r"(?:true|false)_computation=%?([\w.\-]+)"
  return re.findall(pattern, line.attributes)


def _scatters(lines) -> bool:
  """Whether a fused all-reduce keeps one part only: a reduce-scatter on TPU."""
  root = next(line for line in lines.values() if line.root)
  return root.opcode in ("dynamic-slice", "bitcast", "reshape") and any(
    line.opcode == "dynamic-slice" for line in lines.values()
  )


# Loops.


def trip_count(module: Module, loop: Instruction, callers) -> int | None:
  """The trip count of a loop; None if it depends on data."""
  if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"\}'):
    return int(known)
  condition = loop.attribute(r"condition=%?([\w.\-]+)")
  test, lines = _test(module, condition)
  if test is None or test.attribute(r"direction=(\w+)") != "LT":
    return None
  counter, end = (
    _constant(module, condition, name, callers, lines) for name in test.operands
  )
  start = counter[1] if counter[0] == "start" else None
  if start is None or end[1] is None:
    return None
  return max(0, end[1] - start)


def _test(module, condition):
  """The comparison that ends a loop, and outer names of its fused operands."""
  root = module.root(condition)
  if root.opcode == "compare":
    return root, {}
  if root.opcode == "fusion":
    inner = module.root(root.calls)
    lines = module.computations[root.calls]
    if inner.opcode == "compare":
      outside = {
        line.name: root.operands[int(line.argument)]
        for line in lines.values()
        if line.opcode == "parameter"
      }
      constants = {
        line.name: line for line in lines.values() if line.opcode == "constant"
      }
      return inner, outside | constants
  return None, {}


def _constant(module, computation, name, callers, renamed={}):
  """(kind, value) of an integer within a computation.

  The kind is "end" for constants and loop-invariant values, "start" for values
  that the loop changes, of which the initial value is returned, or "unknown".
  """
  lines = module.computations[computation]
  name = renamed.get(name, name)
  line = name if isinstance(name, Instruction) else lines.get(name)
  while line is not None and line.opcode in ("copy", "bitcast", "convert"):
    line = lines.get(line.operands[0])
  if line is None:
    return "unknown", None
  if line.opcode == "constant":
    value = re.fullmatch(r"-?\d+", line.argument)
    return "end", int(value[0]) if value else None
  if line.opcode != "get-tuple-element" or not callers:
    return "unknown", None
  source = lines.get(line.operands[0])
  if source is None or source.opcode != "parameter":
    return "unknown", None
  index = int(line.attribute(r"index=(\d+)"))
  above, loop = callers[-1]
  init = module.computations[above].get(loop.operands[0])
  if init is None or init.opcode != "tuple":
    return "unknown", None
  _, value = _constant(module, above, init.operands[index], callers[:-1])
  return "end" if _unchanged(module, loop, index) else "start", value


def _unchanged(module, loop, index) -> bool:
  """Whether the body of a loop returns an entry of its tuple unchanged."""
  body = loop.attribute(r"body=%?([\w.\-]+)")
  lines, root = module.computations[body], module.root(body)
  if root.opcode != "tuple":
    return False
  line = lines.get(root.operands[index])
  while line is not None and line.opcode in ("copy", "bitcast"):
    line = lines.get(line.operands[0])
  return (
    line is not None
    and line.opcode == "get-tuple-element"
    and int(line.attribute(r"index=(\d+)")) == index
    and lines[line.operands[0]].opcode == "parameter"
  )


# Matmuls.


def _flops(lines, line: Instruction) -> float | int:
  """The FLOPs of an instruction: two per multiply-add."""
  if line.opcode == "dot":
    left = lines[line.operands[0]].shapes[0]
    over = line.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
    summed = [left.dims[int(i)] for i in over.split(",") if i]
    return 2.0 * math.prod(line.shapes[0].dims) * math.prod(summed)
  if line.opcode == "convolution":
    return _convolution(lines, line)
  if line.opcode == "custom-call" and "ragged-dot" in line.attributes:
    return _ragged(lines, line)
  return 0.0


def _convolution(lines, line: Instruction) -> float | int:
  """The FLOPs of a convolution; as in XLA, padding is not counted.

  On TPUs, every matmul is a convolution, and batches are dilated windows.
  """
  left, right = (lines[name].shapes[0].dims for name in line.operands[:2])
  labels = line.attribute(r"dim_labels=(\S+?)(?:,|$)")
  of_left, of_right, of_out = re.split(r"_|->", labels)
  out = line.shapes[0].dims
  parts = (line.attribute(r"window=\{([^}]*)\}") or "").split()
  window = dict(part.split("=") for part in parts)

  def field(name, i, default):
    values = window.get(name)
    return default if values is None else values.split("x")[i]

  total = 2.0 * out[of_out.index("b")] * out[of_out.index("f")]
  total *= right[of_right.index("i")]
  spatial = sorted(c for c in of_out if c.isdigit())
  for i, c in enumerate(spatial):
    size = left[of_left.index(c)]
    stride, dilate, grow = (
      int(field(name, i, 1)) for name in ("stride", "rhs_dilate", "lhs_dilate")
    )
    low = int(field("pad", i, "0_0").split("_")[0])
    place = np.arange(out[of_out.index(c)])[:, None] * stride
    place = place + np.arange(right[of_right.index(c)]) * dilate - low
    inside = (place >= 0) & (place <= (size - 1) * grow) & (place % grow == 0)
    total *= inside.sum()
  return total


def _ragged(lines, line: Instruction) -> float | int:
  """The FLOPs of a grouped matmul whose buffer is full."""
  arrays = [s for s in read(lines, line) if len(s.dims) > 1]
  out = line.shapes[0].dims
  if len(arrays) < 2:
    return 0.0
  rows, summed = arrays[0].dims[0], arrays[0].dims[-1]
  if len(out) == 2:
    return 2.0 * math.prod(out) * summed
  return 2.0 * rows * out[-1] * out[-2]


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
