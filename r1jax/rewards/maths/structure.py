r"""Parses an answer into its parts: lists, tuples, intervals, sets, matrices.

The result is a tree whose leaves are clean LaTeX, so that each leaf can be
compared on its own: the elements of a set in any order, the ends of an interval
with their brackets.
"""

import re
from typing import NamedTuple

from r1jax.rewards.maths import latex

MAX_PARTS = 64  # Elements of a list; a longer list is a leaf.

MATRIX = re.compile(
  r"\\begin\{(?:[pbB]?matrix|smallmatrix|array)\}(?:\{[lcr| ]*\})?(.*)"
  r"\\end\{(?:[pbB]?matrix|smallmatrix|array)\}",
  re.DOTALL,
)
TRANSPOSED = re.compile(
  r"\s*\^\{?\s*(?:T|\\top|\\intercal|\\text\{T\}|\\mathsf\{T\}|')\s*\}?$"
)
FACTOR_BEHIND = re.compile(
  r"^(\\begin.*\\end\{[a-zA-Z]+\})\s*(?:\\cdot|\\times|\*)\s*([^\\&]+)$",
  re.DOTALL,
)
SEPARATOR = re.compile(
  r"\\text\{\s*,?\s*(?:or|and|或|和)\s*,?\s*\}"
  r"|(?<![a-zA-Z\\])(?:or|and)(?![a-zA-Z])|或|和|\\lor(?![a-zA-Z])|\\vee"
)
OR = re.compile(r"\bor\b|或|\\lor|\\vee")
VARIABLE = r"[a-zA-Z](?:_\w|_\{\w+\})?|\\[a-zA-Z]+"
# S = {1, 2} and (x, y) = (1, 2)
NAME = re.compile(
  rf"(?:{VARIABLE}|\((?:{VARIABLE})(?:\s*,\s*(?:{VARIABLE}))*\))\s*=\s*(?=[(\[\\])"
)
IN = re.compile(rf"\s*(?:{VARIABLE})\s*\\in(?![a-zA-Z])\s*(?=[(\[\\])")
CHAIN = re.compile(
  rf"(.+?)(<|\\le(?![a-zA-Z]))\s*({VARIABLE})\s*(<|\\le(?![a-zA-Z]))(.+)"
)
CHAIN_DOWN = re.compile(
  rf"(.+?)(>|\\ge(?![a-zA-Z]))\s*({VARIABLE})\s*(>|\\ge(?![a-zA-Z]))(.+)"
)
BOUND = re.compile(
  rf"\s*({VARIABLE})\s*(<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z]))(.+)"
)
BOUND_BACK = re.compile(
  rf"(.+?)(<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z]))\s*({VARIABLE})\s*"
)
BUILDER = re.compile(r"[^|:]*?(?:\||\\mid(?![a-zA-Z])|:)")  # {x | ...}
RELATION = re.compile(r"[<>=]|\\(?:le|ge|ne)(?![a-zA-Z])")
FLIP = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
INFINITY = r"\infty"


class Parts(NamedTuple):
  """A node of the tree.

  Its `kind` is "leaf" (with `text`), "list" (parts in any order), "tuple"
  (parts in order, with `brackets`), "rows" (a matrix; each row is a tuple) or
  "union".
  """

  kind: str
  text: str = ""
  parts: tuple = ()
  brackets: str = ""


def read(text: str) -> Parts:
  """Returns the tree of a clean text."""
  text = text.strip()
  if match := IN.match(text):
    text = text[match.end() :].strip()
  named = NAME.match(text)
  return (
    (named and _bracketed(text[named.end() :]))
    or _matrix(text)
    or _union(text)
    or _bracketed(text)
    or _separated(text)
    or _inequality(text)
    or _plus_minus(text)
    or Parts("leaf", text)
  )


def split(text: str, separator: str) -> list[str]:
  """Splits a text at each separator that is outside of all brackets."""
  parts, depth, start, i = [], 0, 0, 0
  while i < len(text):
    if text[i] in "([{":
      depth += 1
    elif text[i] in ")]}":
      depth -= 1
    elif depth == 0 and text.startswith(separator, i):
      parts.append(text[start:i])
      i += len(separator)
      start = i
      continue
    i += 1
  return [part.strip() for part in [*parts, text[start:]]]


def _matrix(text: str) -> Parts | None:
  """Returns a matrix or vector, with its factor and transposition applied."""
  text, transposed = TRANSPOSED.subn("", text)
  text = FACTOR_BEHIND.sub(r"\2\1", text)
  start = re.search(r"[(\[]?\s*\\begin|[(\[]", text)
  if not start:
    return None
  factor, bare = text[: start.start()].strip(), text[start.start() :]
  if bare[:1] in ("(", "[") and latex.closing(bare) == len(bare) - 1:
    inside = bare[1:-1].strip()
    if transposed and r"\begin" not in inside:
      rows = [Parts("tuple", parts=(_leaf(x),)) for x in split(inside, ",")]
      return _times(factor, tuple(rows)) if len(rows) > 1 else None
    bare = inside
  match = MATRIX.fullmatch(bare)
  if not match or r"\begin" in match[1]:
    return None
  lines = [line for line in split(match[1], r"\\") if line.strip()]
  if not lines or len(lines) > MAX_PARTS:
    return None
  cells = [[*map(_leaf, split(line, "&"))] for line in lines]
  if transposed and len({*map(len, cells)}) == 1:
    cells = [*zip(*cells, strict=True)]
  return _times(factor, tuple(Parts("tuple", parts=tuple(c)) for c in cells))


def _times(factor: str, rows: tuple[Parts, ...]) -> Parts | None:
  """Returns the rows of a matrix with each cell multiplied by a factor."""
  factor = re.sub(r"(?:\\cdot|\\times|\*)$", "", factor).strip()
  factor = {"-": "-1"}.get(factor, factor)
  if not factor:
    return Parts("rows", parts=rows)
  if re.search(r"=|\\begin|,", factor):
    return None
  return Parts(
    "rows",
    parts=tuple(
      row._replace(
        parts=tuple(_leaf(f"({factor})({cell.text})") for cell in row.parts)
      )
      for row in rows
    ),
  )


def _union(text: str) -> Parts | None:
  parts = split(text, r"\cup")
  if not 2 <= len(parts) <= MAX_PARTS:
    return None
  return Parts("union", parts=tuple(map(read, parts)))


def _bracketed(text: str) -> Parts | None:
  """Returns a set as a list, and a tuple or interval as a tuple."""
  if text.startswith(r"\{") and text.endswith(r"\}"):
    if latex.closing(text, 1) != len(text) - 1:
      return None
    inside = text[2:-2]
    if builder := BUILDER.match(inside):
      tree = read(inside[builder.end() :])
      return tree if tree.kind in ("tuple", "union") else None
    if not inside.strip() or r"\emptyset" in inside:
      return None
    return _separated(inside) or _list([inside])
  if text.startswith(r"\langle") and text.endswith(r"\rangle"):
    text = "(" + text[len(r"\langle") : -len(r"\rangle")] + ")"
  if text[:1] not in ("(", "[") or text[-1:] not in (")", "]"):
    return None
  if latex.closing(text) != len(text) - 1:
    return None
  parts = split(text[1:-1], ";")
  parts = parts if len(parts) > 1 else split(text[1:-1], ",")
  if not 2 <= len(parts) <= MAX_PARTS or not all(parts):
    return None
  return Parts(
    "tuple", parts=tuple(map(read, parts)), brackets=text[0] + text[-1]
  )


def _separated(text: str) -> Parts | None:
  """Returns "1, 2 or 3" as a list, and "5; 10" as a tuple.

  Semicolons separate the answers to several questions, in their order.
  """
  if len(parts := split(text, ";")) > 1:
    if len(parts) > MAX_PARTS or not all(parts):
      return None
    return Parts("tuple", parts=tuple(map(read, parts)), brackets=";")
  joined = SEPARATOR.sub(",", text)
  parts = [part for part in split(joined, ",") if part]
  if len(parts) < 2:
    return None
  bounds = [_inequality(part) for part in parts]
  if OR.search(text) and all(bounds):
    return Parts("union", parts=tuple(bounds))
  return _list(parts)


def _list(parts: list[str]) -> Parts | None:
  if len(parts) > MAX_PARTS or not all(parts):
    return None
  trees = [tree for part in parts for tree in _elements(part)]
  return Parts("list", parts=tuple(trees))


def _elements(text: str) -> tuple[Parts, ...]:
  tree = read(text)
  return tree.parts if tree.kind == "list" else (tree,)


def _inequality(text: str) -> Parts | None:
  """Returns x > 5 as the interval (5, infinity), and 1 <= x < 2 as [1, 2)."""
  if len(RELATION.findall(text)) > 2 or "=" in text:
    return None
  if match := CHAIN.fullmatch(text):
    low, first, _, second, high = match.groups()
  elif match := CHAIN_DOWN.fullmatch(text):
    high, second, _, first, low = match.groups()
    first, second = FLIP[first], FLIP[second]
  else:
    if match := BOUND.fullmatch(text):
      _, sign, bound = match.groups()
    elif match := BOUND_BACK.fullmatch(text):
      bound, sign, _ = match.groups()
      sign = FLIP[sign]
    else:
      return None
    if RELATION.search(bound):
      return None
    if sign in ("<", r"\le"):
      low, first, second, high = "-" + INFINITY, "<", sign, bound
    else:
      low, first, second, high = bound, FLIP[sign], "<", INFINITY
  brackets = ("(" if first == "<" else "[") + (")" if second == "<" else "]")
  return Parts("tuple", parts=(_leaf(low), _leaf(high)), brackets=brackets)


def _plus_minus(text: str) -> Parts | None:
  """Returns a +- b as the list of a + b and a - b."""
  if text.count(r"\pm") != 1:
    return None
  before, _, after = text.partition(r"\pm")
  plus = before + (
    "+" if before.strip() and before.strip()[-1] not in "({=" else ""
  )
  return Parts("list", parts=(_leaf(plus + after), _leaf(before + "-" + after)))


def _leaf(text: str) -> Parts:
  return Parts("leaf", text.strip())
