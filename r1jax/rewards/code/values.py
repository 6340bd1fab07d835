"""Serialises plain values for processes that do not trust each other.

Unlike with pickle and marshal, reading an adversary's bytes runs no code, and
returns only the exact types below. An instance of a subclass is read as its
base class, without any method that it overrides.
"""

import os

MAX_FRAME = 2**26  # Bytes.

CONSTANTS = {b"N": None, b"T": True, b"F": False}
SCALARS = (  # (letter, type, function to bytes, function from bytes)
  (b"i", int, lambda value: b"%x" % value, lambda data: int(data, 16)),
  (
    b"f",
    float,
    lambda value: float.hex(value).encode(),
    lambda data: float.fromhex(data.decode()),
  ),
  (
    b"s",
    str,
    lambda value: str.encode(value, "utf-8", "surrogatepass"),
    lambda data: data.decode("utf-8", "surrogatepass"),
  ),
  (b"b", (bytes, bytearray), bytes, bytes),
)
CONTAINERS = (  # (letter, type, function to items, function from items)
  (b"l", list, list, list),
  (b"t", tuple, tuple, tuple),
  (b"e", set, list, set),
  (b"z", frozenset, list, frozenset),
  (
    b"c",
    complex,
    lambda value: (value.real, value.imag),
    lambda items: complex(*items),
  ),
  (
    b"r",
    range,
    lambda value: (value.start, value.stop, value.step),
    lambda items: range(*items),
  ),
  (
    b"d",
    dict,
    lambda value: [each for pair in dict.items(value) for each in pair],
    lambda items: dict(zip(items[::2], items[1::2], strict=True)),
  ),
)
# Classes of the standard library, by what constructs an instance. They are
# imported when an instance is read.
CLASSES = {
  "collections.deque": list,
  "decimal.Decimal": str,
  "fractions.Fraction": str,
}
READERS = {letter: read for letter, _, _, read in SCALARS + CONTAINERS}
READERS[b"k"] = lambda items: construct(*items)
FLAT = {b"o", *(letter for letter, *_ in SCALARS)}


def construct(path: str, content):
  """Returns an instance of one of the CLASSES, made from its content."""
  if path not in CLASSES:
    raise ValueError(f"no class {path!r}")
  module, _, name = path.rpartition(".")
  return getattr(__import__(module), name)(content)


def encode(value, name=None) -> bytes:
  """Returns a value as bytes.

  Objects of other types are written as the string `name(object)`. Without
  `name` they raise TypeError.
  """
  pieces = []

  def put(value):
    if value is None or value is True or value is False:
      pieces.append({None: b"N", True: b"T", False: b"F"}[value])
      return
    for letter, kind, write, _ in SCALARS:
      if isinstance(value, kind):
        data = write(value)
        pieces.append(b"%c%d;%b" % (letter, len(data), data))
        return
    for letter, kind, write, _ in CONTAINERS:
      if isinstance(value, kind):
        items = write(value)
        pieces.append(b"%c%d;" % (letter, len(items)))
        for item in items:
          put(item)
        return
    path = f"{type(value).__module__}.{type(value).__qualname__}"
    if path in CLASSES:
      pieces.append(b"k2;")
      put(path)
      put(CLASSES[path](value))
      return
    if name is None:
      raise TypeError(f"a {type(value).__name__} cannot be serialised")
    data = name(value).encode()
    pieces.append(b"o%d;%b" % (len(data), data))

  put(value)
  return b"".join(pieces)


def decode(data: bytes, find=None):
  """Returns the value that `encode` wrote; `find(name)` returns an object.

  Any other bytes raise an exception, of any type, and have no other effect.
  """
  at = 0

  def take():
    nonlocal at
    letter = data[at : at + 1]
    at += 1
    if letter in CONSTANTS:
      return CONSTANTS[letter]
    end = data.index(b";", at)
    if not data[at:end].isdigit():
      raise ValueError(f"{data[at:end]!r} is not a length")
    length, at = int(data[at:end]), end + 1
    if letter in FLAT:
      content = data[at : at + length]
      at += length
      read = READERS.get(letter) or (lambda name: find(name.decode()))
      return read(content)
    return READERS[letter]([take() for _ in range(length)])

  return take()


def send(fd: int, value: bytes) -> None:
  """Writes a frame: the length in 8 bytes (big-endian), then the bytes."""
  rest = memoryview(len(value).to_bytes(8, "big") + value)
  while rest:
    rest = rest[os.write(fd, rest) :]


def receive(read) -> bytes:
  """Returns the content of the next frame, from a function `read(size)`.

  Raises EOFError at the end of the stream, and ValueError for a frame of more
  than MAX_FRAME bytes.
  """

  def exactly(size: int) -> bytes:
    pieces = []
    while size:
      pieces.append(read(min(size, 2**20)))
      if not pieces[-1]:
        raise EOFError("the stream ends within a frame")
      size -= len(pieces[-1])
    return b"".join(pieces)

  size = int.from_bytes(exactly(8), "big")
  if size > MAX_FRAME:
    raise ValueError(f"a frame of {size} bytes; at most {MAX_FRAME}")
  return exactly(size)
