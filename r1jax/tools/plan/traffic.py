"""The memory traffic of HLO instructions: bytes read and written."""

import collections
from collections.abc import Mapping

from r1jax.tools.plan.hlo import Computation, Instruction, Module, Shape

FREE = {  # Opcodes without traffic of their own.
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"),
  *("conditional", "call", "after-all", "partition-id", "replica-id", "iota"),
  *("async-start", "async-update", "async-done", "opt-barrier"),
}
SLICES = ("dynamic-slice", "slice", "gather")
UPDATES = {"dynamic-update-slice": 1, "scatter": -1}  # Index of the new values.


def read(lines: Computation, line: Instruction) -> list[Shape]:
  """The shapes of the operands of an instruction."""
  return [
    shape
    for name in line.operands
    if name in lines
    for shape in lines[name].shapes
  ]


def moved(module: Module, lines: Computation, line: Instruction) -> float | int:
  """The bytes that an instruction reads from and writes to main memory."""
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
  """The instruction whose values an in-place update writes."""
  return lines[line.operands[UPDATES[line.opcode]]]


def _main(shapes) -> float | int:
  """The bytes of the shapes that are in main memory."""
  return sum(shape.bytes for shape in shapes if shape.space == 0)


def _of_fusion(module, lines, line) -> float | int:
  """The bytes of a fusion; slices and in-place updates count as such."""
  inner, total, updated = module.computations[line.calls], 0.0, 0.0
  users = _users(inner)
  for parameter in inner.values():
    if parameter.opcode != "parameter":
      continue
    outside = lines.get(line.operands[int(parameter.argument)])
    if outside is None or any(shape.space for shape in outside.shapes):
      continue
    sliced = _sliced(module, users, parameter.name)
    if sliced is not None:
      for user, at in users[parameter.name]:
        if _in_place(user, at):
          updated += sum(s.bytes for s in parameter.shapes)
          total += sum(s.bytes for s in _new(inner, user).shapes)
    total += _main(outside.shapes) if sliced is None else sliced
  return total + max(0.0, _main(line.shapes) - updated)


def _users(lines: Computation) -> Mapping[str, list[tuple[Instruction, int]]]:
  """The users of each instruction, and the index of the operand."""
  users = collections.defaultdict(list)
  for line in lines.values():
    for at, name in enumerate(line.operands):
      users[name].append((line, at))
  return users


def _in_place(user: Instruction, at: int) -> bool:
  """Whether an instruction updates its operand `at` in place."""
  return user.opcode in UPDATES and not at


def _sliced(module, users, name) -> float | int | None:
  """The bytes read of an array in slices; None if it is read as a whole.

  An update in place reads nothing.
  """
  total = 0.0 if users[name] else None
  for user, at in users[name]:
    part = 0.0 if _in_place(user, at) else None
    if user.opcode in SLICES and not at:
      part = sum(shape.bytes for shape in user.shapes)
    elif user.opcode == "bitcast":
      part = _sliced(module, users, user.name)
    elif user.opcode == "fusion":  # Fusions may hold others.
      inner = module.computations[user.calls]
      parameter = next(
        line.name
        for line in inner.values()
        if line.opcode == "parameter" and int(line.argument) == at
      )
      part = _sliced(module, _users(inner), parameter)
    if part is None:
      return None
    total += part
  return total
