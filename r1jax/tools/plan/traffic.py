"""What an instruction reads from and writes to the device's main memory."""

import collections
from collections.abc import Mapping

from r1jax.tools.plan.hlo import Computation, Instruction, Module, Shape

FREE = {  # They move nothing, or what they call does.
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"),
  *("conditional", "call", "after-all", "partition-id", "replica-id", "iota"),
  *("async-start", "async-update", "async-done", "opt-barrier"),
}
SLICES = ("dynamic-slice", "slice", "gather")
UPDATES = {"dynamic-update-slice": 1, "scatter": -1}  # Which operand is new.


def read(lines: Computation, line: Instruction) -> list[Shape]:
  """The arrays that an instruction is given."""
  return [
    shape
    for name in line.operands
    if name in lines
    for shape in lines[name].shapes
  ]


def moved(module: Module, lines: Computation, line: Instruction) -> float | int:
  """Bytes that an instruction reads from and writes to the main memory."""
  if line.opcode in FREE or line.opcode.endswith("-done"):
    return 0.0
  if line.opcode in SLICES:
    return 2 * _main(line.shapes)
  if line.opcode in UPDATES:
    return 2 * _main(_new(lines, line).shapes)
  if line.opcode == "fusion":
    return _of_fusion(module, lines, line)
  if line.opcode.endswith("-start"):
    return _main(read(lines, line)) + _main(line.shapes[1:2])
  return _main(read(lines, line)) + _main(line.shapes)


def _new(lines: Computation, line: Instruction) -> Instruction:
  """What an update in place writes."""
  return lines[line.operands[UPDATES[line.opcode]]]


def _main(shapes) -> float | int:
  """Bytes of those in the main memory."""
  return sum(shape.bytes for shape in shapes if shape.space == 0)


def _of_fusion(module, lines, line) -> float | int:
  """A fusion reads slices where it slices, and updates in place."""
  inner, total, updated = module.computations[line.calls], 0.0, 0.0
  users = _users(inner)
  for own in inner.values():
    if own.opcode != "parameter":
      continue
    outside = lines.get(line.operands[int(own.argument)])
    if outside is None or any(shape.space for shape in outside.shapes):
      continue
    if users[own.name] and all(
      user.opcode in UPDATES and not at for user, at in users[own.name]
    ):
      for user, _ in users[own.name]:
        updated += sum(s.bytes for s in own.shapes)
        total += sum(s.bytes for s in _new(inner, user).shapes)
      continue
    sliced = _sliced(module, users, own.name)
    total += _main(outside.shapes) if sliced is None else sliced
  return total + max(0.0, _main(line.shapes) - updated)


def _users(lines: Computation) -> Mapping[str, list[tuple[Instruction, int]]]:
  """Who reads each instruction, and as which operand."""
  users = collections.defaultdict(list)
  for line in lines.values():
    for at, name in enumerate(line.operands):
      users[name].append((line, at))
  return users


def _sliced(module, users, name) -> float | int | None:
  """Bytes of the slices that are read of an array; None if all of it is."""
  total = 0.0 if users[name] else None
  for user, at in users[name]:
    part = None
    if user.opcode in SLICES and not at:
      part = sum(shape.bytes for shape in user.shapes)
    elif user.opcode == "bitcast":
      part = _sliced(module, users, user.name)
    elif user.opcode == "fusion":  # Fusions may hold others.
      inner = module.computations[user.calls]
      given = next(
        line.name
        for line in inner.values()
        if line.opcode == "parameter" and int(line.argument) == at
      )
      part = _sliced(module, _users(inner), given)
    if part is None:
      return None
    total += part
  return total
