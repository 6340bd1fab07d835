"""A parser of compiled HLO text: instructions, and groups of devices."""

import math
import re
from typing import NamedTuple

import numpy as np

BITS = {"pred": 8, "token": 0, "opaque": 0, "s4": 4, "u4": 4, "s2": 2, "u2": 2}
_SHAPE = re.compile(r"(\w+)\[([^\]]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_IOTA = re.compile(r"replica_groups=(\[[^ ]*?\](?:T\([\d,]*\))?)[, ]")
_MESH = re.compile(
  r"mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? ?\{([^}]*)\}"
)


class Shape(NamedTuple):
  """The shape of an array."""

  dtype: str
  dims: tuple[int, ...]
  space: int  # The memory space; 0 is the main memory of the device.

  @property
  def bytes(self) -> float:
    """The size in bytes, without the padding of the layout."""
    bits = BITS.get(self.dtype)
    if bits is None:
      bits = int(re.search(r"\d+", self.dtype)[0])
    return math.prod(self.dims) * bits / 8


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  opcode: str
  shapes: tuple[Shape, ...]  # One shape, or those of a tuple.
  operands: tuple[str, ...]
  argument: str  # The text inside the parentheses.
  attributes: str  # The text after them.
  root: bool

  def attribute(self, pattern: str) -> str | None:
    """The first group of a pattern in the attributes; None if absent."""
    match = re.search(pattern, self.attributes)
    return match[1] if match else None

  @property
  def calls(self) -> str | None:
    """The name of the computation of a fusion or call."""
    return self.attribute(r"(?:calls|to_apply)=%?([\w.\-]+)")


Computation = dict[str, Instruction]


class Module(NamedTuple):
  """A compiled program."""

  computations: dict[str, Computation]
  entry: str
  sources: dict[int, str]  # The line of each stack frame, as "file:number".

  def source_of(self, instruction: Instruction) -> str:
    """The line of Python that asked for an instruction; "" if unknown.

    What a custom gradient asks for counts as the line that calls its function.
    """
    file = instruction.attribute(r'source_file="([^"]*)"')
    if file:
      number = instruction.attribute(r"source_line=(\d+)")
      return f"{file}:{number}"
    frame = instruction.attribute(r"stack_frame_id=(\d+)")
    return self.sources.get(int(frame), "") if frame else ""

  def root(self, name: str) -> Instruction:
    """The root instruction of a computation."""
    lines = self.computations[name].values()
    return next(line for line in lines if line.root)


def parse(text: str) -> Module:
  """The module in the text of `compiled.as_text()`.

  Raises ValueError if the text is not an HLO module.
  """
  computations: dict[str, Computation] = {}
  entry, current, section = "", None, ""
  tables: dict[str, dict[int, str]] = {}
  for line in text.splitlines():
    if current is not None:
      if line.startswith("}"):
        current = None
      elif match := _LINE.match(line):
        instruction = _instruction(match[2], match[3], root=bool(match[1]))
        current[instruction.name] = instruction
    elif match := _HEADER.match(line):
      current = computations.setdefault(match[2], {})
      entry = match[2] if match[1] else entry
    elif line[:1].isalpha():
      section = line.strip()
    elif line[:1].isdigit():
      number, _, rest = line.partition(" ")
      tables.setdefault(section, {})[int(number)] = rest
  if not entry:
    raise ValueError("not an HLO module: it has no ENTRY")
  return Module(computations, entry, _sources(tables))


def _sources(tables: dict[str, dict[int, str]]) -> dict[int, str]:
  """The line of each stack frame, from the tables before the computations."""
  field = lambda text, name: int(re.search(rf"\b{name}=(\d+)", text)[1])
  names, sources = tables.get("FileNames", {}), {}
  for frame, text in tables.get("StackFrames", {}).items():
    place = tables["FileLocations"][field(text, "file_location_id")]
    file = names[field(place, "file_name_id")].strip('"')
    sources[frame] = f"{file}:{field(place, 'line')}"
  return sources


def _instruction(name: str, text: str, *, root: bool) -> Instruction:
  """The instruction in the text after "name = "."""
  end = _closing(text, 0) if text.startswith("(") else text.index(" ")
  kind, rest = text[:end], text[end:].lstrip()
  opcode, _, _ = rest.partition("(")
  close = _closing(rest, len(opcode))
  argument = rest[len(opcode) + 1 : close - 1]
  return Instruction(
    name=name,
    opcode=opcode,
    shapes=tuple(map(_shape, _SHAPE.finditer(kind))),
    operands=tuple(_NAME.findall(argument)),
    argument=argument,
    attributes=rest[close:],
    root=root,
  )


def _closing(text: str, start: int) -> int:
  """The index after the parenthesis that closes the one at `start`."""
  depth = 0
  for match in re.compile(r"[()]").finditer(text, start):
    depth += 1 if match[0] == "(" else -1
    if not depth:
      return match.end()
  raise ValueError(f"HLO with an open parenthesis: {text[:80]!r}")


def _shape(match: re.Match) -> Shape:
  dims = [d.strip("<= ") for d in match[2].split(",")] if match[2] else []
  space = re.search(r"S\((\d+)\)", match[3] or "")
  return Shape(match[1], tuple(map(int, dims)), int(space[1]) if space else 0)


def groups(instruction: Instruction) -> np.ndarray | None:
  """The groups of devices [G, n] of a collective; None for one group of all.

  Devices are numbered as in the mesh. For a permutation, each cycle is a group.
  """
  text = instruction.attributes
  if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", text):
    return _cycles(np.array(_lists(pairs[1])))
  if match := re.search(r"replica_groups=\{(\{.*?\})\}", text):
    return np.array(_lists(match[1]))
  if match := _IOTA.search(text):
    return _iota(match[1])
  if match := re.search("replica_groups=" + _MESH.pattern, text):
    return _of_mesh(*match.groups())
  return None


def _lists(text: str) -> list[list[int]]:
  return [
    [int(i) for i in part.split(",")] for part in re.findall(r"{([^}]+)}", text)
  ]


def _iota(text: str) -> np.ndarray:
  """The groups that "[2,4]<=[8]" or "[4,2]<=[2,4]T(1,0)" stands for."""
  numbers = lambda part: [int(i) for i in re.findall(r"\d+", part)]
  shape, arrow, rest = text.partition("<=")
  if not arrow:
    shape, rest = None, text
  base, _, order = rest.partition("T")
  dims = numbers(base)
  result = np.arange(math.prod(dims)).reshape(dims)
  if order:
    result = result.transpose(numbers(order))
  return result.reshape(numbers(shape)) if shape else result


def _of_mesh(axes: str, devices: str | None, named: str) -> np.ndarray:
  """The groups over named axes of a mesh that XLA defined.

  An axis may be split: 'a':(2)4 is the factor of size 4 after a factor of 2.
  """
  names = re.findall(r"'?(\w+)'?=(\d+)", axes)
  sizes = {name: int(size) for name, size in names}
  dims, labels = [], []
  parts = re.findall(r"'?(\w+)'?(?::\((\d+)\)(\d+))?", named)
  for name, size in sizes.items():
    cuts = sorted(
      (int(before), int(part))
      for n, before, part in parts
      if n == name and part
    )
    done = 1
    for before, part in cuts:
      dims, labels = [*dims, before // done, part], [*labels, None, name]
      done = before * part
    whole = not cuts and name in [n for n, _, _ in parts]
    dims, labels = [*dims, size // done], [*labels, name if whole else None]
  order = _iota(devices) if devices else np.arange(math.prod(dims))
  grid = order.reshape(dims)
  joined = [i for i, label in enumerate(labels) if label]
  moved = np.moveaxis(grid, joined, range(-len(joined), 0))
  return moved.reshape(-1, math.prod(dims[i] for i in joined))


def _cycles(pairs: np.ndarray) -> np.ndarray:
  """The cycles of a permutation; the pairs, if cycles differ in size."""
  follows = dict(pairs.tolist())
  cycles, seen = [], set()
  for start in follows:
    group, at = [], start
    while at in follows and at not in seen:
      seen.add(at)
      group.append(at)
      at = follows[at]
    if group:
      cycles.append(group)
  same = len({len(group) for group in cycles}) == 1
  return np.array(cycles) if same and len(cycles[0]) > 1 else pairs


def axes_of(
  groups: np.ndarray | None, sizes: dict[str, int]
) -> tuple[str, ...]:
  """The mesh axes along which the devices of a group differ."""
  shape = tuple(sizes.values())
  if groups is None:
    return tuple(name for name, size in sizes.items() if size > 1)
  places = np.stack(np.unravel_index(groups, shape))  # [axes, G, n]
  differ = (places != places[:, :, :1]).any(axis=(1, 2))
  return tuple(name for name, yes in zip(sizes, differ) if yes)
