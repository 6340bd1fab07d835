"""Trip counts of loops, read from the text of a compiled program."""

import re

from r1jax.tools.plan.hlo import Instruction, Module


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
