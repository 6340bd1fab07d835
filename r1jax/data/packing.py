"""Packs texts into rows of fixed length, and unpacks their values.

A row holds several pieces. A piece is a prompt with one or more completions:
the prompt is stored once, and each completion attends to the prompt and to
itself (`prefix_end`, `k_start`). The last token of the prompt is repeated at
the head of each completion, so that the value of every completion token has a
slot of its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r1jax.types import Packed, Rollout


class Piece(NamedTuple):
  """Completions of one prompt that are packed into one row."""

  prompt: Sequence[int]
  completions: Sequence[Sequence[int]]
  origins: Sequence[int]  # The index of each completion's first value.

  @property
  def size(self) -> int:
    """The number of slots that the piece takes in a row."""
    head = max(len(self.prompt) - 1, 0)
    return head + sum(map(len, self.completions))


def pack(pieces: Sequence[Piece], width: int, *, rows: int = 0) -> Packed:
  """Packs pieces into rows of `width` slots, by best fit, longest first.

  Args:
    pieces: a piece with several completions begins a row of its own; a piece
      with one completion goes wherever there is room.
    width: the number of slots of a row.
    rows: the number of rows, of which the last may be empty; 0 for as few as
      needed.

  Raises ValueError if a piece is longer than a row, or `rows` is too small.
  """
  bins: list[list[Piece]] = []
  room: list[int] = []
  for piece in sorted(pieces, key=lambda p: (-p.size, tuple(p.origins))):
    if piece.size > width:
      raise ValueError(
        f"a text of {piece.size} tokens does not fit rows of {width}"
      )
    shared = len(piece.completions) > 1
    fits = [] if shared else [i for i, r in enumerate(room) if r >= piece.size]
    if fits:
      best = min(fits, key=lambda i: room[i])
      bins[best].append(piece)
      room[best] -= piece.size
    else:
      bins.append([piece])
      room.append(width - piece.size)
  if rows and len(bins) > rows:
    raise ValueError(f"{len(bins)} rows of {width} are needed, not {rows}")
  return _lay_out(bins, width, rows or len(bins))


def _lay_out(bins: list[list[Piece]], width: int, rows: int) -> Packed:
  """Returns the packed rows, each with the pieces of its bin."""
  shape = (rows, width)
  slots = np.broadcast_to(np.arange(width, dtype=np.int32), shape)
  tokens, targets, prefix_end = (np.zeros(shape, np.int32) for _ in range(3))
  positions, origin = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
  k_start = slots.copy()
  for row, pieces in enumerate(bins):
    at = 0
    for prompt, completions, origins in pieces:
      start, head = at, max(len(prompt) - 1, 0)
      shared = len(completions) > 1
      tokens[row, at : at + head] = prompt[:-1]
      targets[row, at : at + head] = prompt[1:]
      positions[row, at : at + head] = np.arange(head)
      k_start[row, at : at + head] = start
      at += head
      for completion, first in zip(completions, origins, strict=True):
        skip = 0 if prompt else 1  # A text's first token is not predicted.
        inputs = [*prompt[-1:], *completion[:-1]]
        part = slice(at, at + len(inputs))
        tokens[row, part] = inputs
        targets[row, part] = completion[skip:]
        positions[row, part] = head + np.arange(len(inputs))
        k_start[row, part] = at if shared else start
        prefix_end[row, part] = start + head if shared else 0
        origin[row, part] = first + skip + np.arange(len(inputs))
        at += len(inputs)
  return Packed(
    tokens=tokens,
    positions=positions,
    k_start=k_start,
    prefix_end=prefix_end,
    targets=targets,
    origin=origin,
  )


def pack_rollout(
  rollout: Rollout,
  width: int,
  *,
  chosen: Sequence[int] | np.ndarray,
  rows: int,
) -> Packed:
  """Packs all completions of the prompts with the indices `chosen`.

  Completions share their prompt, as far as they fit into a row. The origin of a
  value is its index in [P, G, Tc], flattened.
  """
  _, group, size = rollout.completions.shape
  pieces = []
  for p in chosen:
    prompt = rollout.prompts[p, : rollout.prompt_lengths[p]].tolist()
    room = width - (len(prompt) - 1)
    part: list[int] = []
    used = 0
    order = sorted(range(group), key=lambda g: -rollout.lengths[p, g])
    for g in order:
      length = int(rollout.lengths[p, g])
      if part and used + length > room:
        pieces.append(_piece(rollout, prompt, p, part, group, size))
        part, used = [], 0
      part.append(g)
      used += length
    pieces.append(_piece(rollout, prompt, p, part, group, size))
  return pack(pieces, width, rows=rows)


def _piece(rollout, prompt, p, part, group, size) -> Piece:
  return Piece(
    prompt=prompt,
    completions=[
      rollout.completions[p, g, : rollout.lengths[p, g]].tolist() for g in part
    ],
    origins=[(p * group + g) * size for g in part],
  )


def unpack(values: np.ndarray, packed: Packed, shape: tuple) -> np.ndarray:
  """Returns packed values [..., T] in an array of `shape`; 0 elsewhere."""
  out = np.zeros(int(np.prod(shape)), np.asarray(values).dtype)
  origin = np.asarray(packed.origin).reshape(-1)
  out[origin[origin >= 0]] = np.asarray(values).reshape(-1)[origin >= 0]
  return out.reshape(shape)
