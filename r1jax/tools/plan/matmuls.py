"""FLOPs of the matmuls in a compiled program."""

import math
import re

import numpy as np

from r1jax.tools.plan.hlo import Computation, Instruction


def flops_of(lines: Computation, line: Instruction) -> float | int:
  """The FLOPs of an instruction: two per multiply-add."""
  if line.opcode == "dot":
    left = lines[line.operands[0]].shapes[0]
    over = line.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
    summed = [left.dims[int(i)] for i in over.split(",") if i]
    return 2.0 * math.prod(line.shapes[0].dims) * math.prod(summed)
  if line.opcode == "convolution":
    return _convolution(lines, line)
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
