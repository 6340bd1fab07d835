"""Packs completions into the rows of microbatches, and unpacks their values.

`pack` decides from lengths alone where every completion goes; `lay_out` writes
the tokens. A row begins with completions that share one prompt, if there are
any: the prompt is stored once, and each completion attends to the prompt and to
itself (`prefix_end`, `k_start`). All others of the row follow with a copy of
their own prompt. The last token of a prompt is repeated at the head of each
completion, so that the value of every completion token has a slot of its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

from r1jax.types import Packed, Rollout

# Token ids, maybe padded.
Texts = Sequence[Sequence[int] | np.ndarray] | np.ndarray


class Placement(NamedTuple):
  """Where N completions are in the rows of one microbatch."""

  rows: int
  width: int  # The slots of a row.
  completion: Int[np.ndarray, "N"]  # The index p * G + g.
  row: Int[np.ndarray, "N"]
  start: Int[np.ndarray, "N"]  # The slot of the first value.
  head: Int[np.ndarray, "N"]  # Slots of the prompt, without its last token.
  count: Int[np.ndarray, "N"]  # The number of values.
  skip: Int[np.ndarray, "N"]  # The index of the first token that has a value.
  shared: Bool[np.ndarray, "N"]  # Whether it uses the prompt that begins a row.

  @property
  def used(self) -> Int[np.ndarray, "B"]:
    """The number of used slots of each row; they come first."""
    ends = np.zeros(self.rows, np.int64)
    np.maximum.at(ends, self.row, self.start + self.count)
    return ends

  @property
  def num_pairs(self) -> int:
    """The number of pairs of a slot and a slot that it attends to."""
    triangle = lambda n: n * (n + 1) // 2
    pairs = self.count * self.head + triangle(self.count)
    pairs += np.where(self.writes_prompt, triangle(self.head), 0)
    return int(pairs.sum())

  @property
  def writes_prompt(self) -> Bool[np.ndarray, "N"]:
    """Whether the completion's prompt is right before it."""
    return ~self.shared | (self.start == self.head)


def pack(
  prompt_lengths: Int[np.ndarray, "P"],
  lengths: Int[np.ndarray, "P G"],
  *,
  widths: Sequence[int],
  rows: int,
) -> list[Placement]:
  """Places G completions of each of P prompts in as few slots as suffice.

  All microbatches have `rows` rows, each microbatch of one of the `widths`. In
  units of the smallest width, the capacity of a row's place in all microbatches
  grows until everything fits; it is made up of the largest widths possible.
  Every row belongs to one prompt, which its completions share; prompts have
  rows in proportion to their tokens. Completions go, the longest first, to the
  row of their prompt with most room, or else to the row with most room, so that
  rows are about equally full. If G is 1, no prompt is shared, and they go to
  the row with the least room that suffices (best-fit decreasing).

  The result depends on the arguments alone. There is at least one microbatch.

  Args:
    prompt_lengths: in tokens; 0 for texts whose first token is not predicted.
    lengths: of the completions, in tokens.
    widths: the slots of a row; one that is as long as the longest text.
    rows: of every microbatch.

  Raises ValueError if a text is longer than the widest row.
  """
  prompt_lengths = np.asarray(prompt_lengths, np.int64)[:, None]
  head = np.maximum(prompt_lengths - 1, 0)
  skip = np.broadcast_to(prompt_lengths == 0, lengths.shape).astype(np.int64)
  count = lengths - skip
  widths, longest = sorted(widths), int(np.max(count + head, initial=0))
  if longest > widths[-1]:
    raise ValueError(
      f"a text of {longest} tokens does not fit rows of {widths[-1]}"
    )
  unit = widths[0]
  least = next(width for width in widths if width >= longest)
  tokens = int(head.sum() + count.sum())

  def assign(capacity):
    of_row = np.repeat(_widths(widths, capacity * unit), rows)
    return _assign(head[:, 0], count, of_row)

  # The least capacity that suffices: by ever larger steps, then by bisection.
  enough = max(-(-tokens // (rows * unit)), -(-least // unit))
  too_little = enough - 1
  while (found := assign(enough)) is None:
    enough, too_little = 3 * enough - 2 * too_little, enough
  while enough - too_little > 1:
    middle = (enough + too_little) // 2
    if (better := assign(middle)) is None:
      too_little = middle
    else:
      enough, found = middle, better
  chosen = _widths(widths, enough * unit)
  return _placements(head[:, 0], count, skip, *found, chosen, rows)


def _widths(widths: Sequence[int], capacity: int) -> list[int]:
  """The widths of microbatches that hold `capacity` slots per row in all."""
  chosen = []
  for width in reversed(widths):
    chosen += [width] * (capacity // width)
    capacity %= width
  return chosen


def _assign(head, count, widths):
  """The row [P, G] of each completion, and the prompt of each row or -1.

  None if the completions do not fit rows of these `widths`.
  """
  num_prompts, size = count.shape
  owner = np.full(len(widths), -1)
  if size > 1:  # A row belongs to the prompt at its middle in a line of all.
    ends = np.cumsum(count.sum(axis=1) + head, dtype=float)
    middles = (np.cumsum(widths) - widths / 2) / widths.sum() * ends[-1]
    owner = np.minimum(np.searchsorted(ends, middles), num_prompts - 1)
  room, shares = widths.astype(np.int64), np.zeros(len(widths), bool)
  result = np.empty(count.size, np.int64)
  whole = (count + head[:, None]).reshape(-1)
  for i in np.argsort(-whole, kind="stable"):
    own = owner == i // size
    left = room - whole[i] + head[i // size] * (own & shares)
    fits = left >= 0
    better = left + own * widths.max() if size > 1 else widths.max() - left
    row = np.argmax(np.where(fits, better, -1))
    if not fits[row]:
      return None
    result[i], room[row] = row, left[row]
    shares[row] |= own[row]
  return result.reshape(count.shape), owner


def _placements(head, count, skip, row, owner, widths, rows) -> list[Placement]:
  """The places of all completions, in the order of their rows."""
  num_prompts, size = count.shape
  prompt = np.repeat(np.arange(num_prompts), size)
  row, count, head = row.reshape(-1), count.reshape(-1), head[prompt]
  shared = owner[row] == prompt
  # A prompt that a single completion of the row has is not shared.
  number = np.bincount(row[shared], minlength=len(owner))
  shared &= number[row] > 1
  order = np.lexsort((np.arange(len(row)), ~shared, row))
  columns = row, count, head, skip.reshape(-1), shared
  row, count, head, skip, shared = (x[order] for x in columns)
  begins = np.r_[True, row[1:] != row[:-1]][: len(row)]
  taken = count + np.where(shared & ~begins, 0, head)
  ends = np.cumsum(taken)
  before = np.maximum.accumulate(np.where(begins, ends - taken, 0))
  start = ends - before - count
  microbatch = row // rows
  result = []
  for i, width in enumerate(widths):
    at = microbatch == i
    result.append(
      Placement(
        rows=rows,
        width=width,
        completion=order[at],
        row=row[at] % rows,
        start=start[at],
        head=head[at],
        count=count[at],
        skip=skip[at],
        shared=shared[at],
      )
    )
  return result


def lay_out(
  placement: Placement,
  prompts: Texts,
  completions: Texts,
  *,
  group_size: int,
  stride: int,
) -> Packed:
  """The packed rows [B, T] of a microbatch.

  Args:
    placement: from `pack`.
    prompts: the tokens of each of P prompts, maybe with padding after them.
    completions: the tokens of each of P * G completions, likewise.
    group_size: G
    stride: between the origins of the first tokens of two completions.
  """
  rows, width = shape = placement.rows, placement.width
  tokens, targets, prefix_end, positions, k_start, origin = (
    np.empty(shape, np.int32) for _ in range(6)
  )
  numbers = np.arange(width, dtype=np.int32)
  for row, end in enumerate(placement.used):
    for array in (tokens, targets, prefix_end):
      array[row, end:] = 0
    positions[row, end:] = origin[row, end:] = -1
    k_start[row, end:] = numbers[end:]
  columns = (*placement[2:], placement.writes_prompt)
  for i, row, start, head, count, skip, shared, writes in zip(
    *(x.tolist() for x in columns), strict=True
  ):
    prompt, completion = prompts[i // group_size], completions[i]
    first = 0 if shared else start - head
    if writes:
      part = slice(start - head, start)
      tokens[row, part] = prompt[:head]
      targets[row, part] = prompt[1 : head + 1]
      positions[row, part] = numbers[:head]
      k_start[row, part] = first
      prefix_end[row, part] = 0
      origin[row, part] = -1
    part = slice(start, start + count)
    later = slice(start + 1 - skip, start + count)
    tokens[row, later] = completion[: count + skip - 1]
    if not skip:
      tokens[row, start] = prompt[head]
    targets[row, part] = completion[skip : skip + count]
    positions[row, part] = numbers[head : head + count]
    k_start[row, part] = start if shared else first
    prefix_end[row, part] = head if shared else 0
    np.add(numbers[:count], i * stride + skip, out=origin[row, part])
  return Packed(
    tokens=tokens,
    positions=positions,
    k_start=k_start,
    prefix_end=prefix_end,
    targets=targets,
    origin=origin,
  )


def per_slot(
  placement: Placement, values: Shaped[np.ndarray, "N ..."], dtype
) -> Shaped[np.ndarray, "B T"]:
  """The value of the target of each slot; 0 for slots without a target.

  `values` are those of the tokens of each completion [N, T], or one per
  completion [N].
  """
  result = np.zeros((placement.rows, placement.width), dtype)
  at = placement
  columns = at.completion, at.row, at.start, at.count, at.skip
  for i, row, start, count, skip in zip(*(x.tolist() for x in columns)):
    value = values[i] if values.ndim == 1 else values[i, skip : skip + count]
    result[row, start : start + count] = value
  return result


def pack_rollout(
  rollout: Rollout,
  chosen: Sequence[int] | np.ndarray,
  *,
  widths: Sequence[int],
  rows: int,
) -> list[Placement]:
  """Places all completions of the prompts with the indices `chosen`."""
  chosen, size = np.asarray(chosen, int), rollout.lengths.shape[1]
  placements = pack(
    rollout.prompt_lengths[chosen],
    rollout.lengths[chosen],
    widths=widths,
    rows=rows,
  )
  of_round = lambda i: chosen[i // size] * size + i % size
  return [x._replace(completion=of_round(x.completion)) for x in placements]


def lay_out_rollout(rollout: Rollout, placement: Placement) -> Packed:
  """The packed rows [B, T] of a microbatch of a rollout.

  The origin of a value is its index in [P, G, Tc], flattened.
  """
  _, group_size, size = rollout.completions.shape
  return lay_out(
    placement,
    rollout.prompts,
    rollout.completions.reshape(-1, size),
    group_size=group_size,
    stride=size,
  )


def unpack(values: np.ndarray, packed: Packed, shape: tuple) -> np.ndarray:
  """Returns packed values [..., T] in an array of `shape`; 0 elsewhere."""
  out = np.zeros(int(np.prod(shape)), np.asarray(values).dtype)
  origin = np.asarray(packed.origin).reshape(-1)
  out[origin[origin >= 0]] = np.asarray(values).reshape(-1)[origin >= 0]
  return out.reshape(shape)
