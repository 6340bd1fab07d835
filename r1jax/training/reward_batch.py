"""Microbatches of a reward model: a row for each response.

The score of a response is read at its last token. The rows of a pair are
neighbours, and a microbatch holds whole pairs.
"""

from collections.abc import Sequence

import chex
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from r1jax.data import chat, templates
from r1jax.models.transformer import pack_rows
from r1jax.parallel import sharding
from r1jax.parallel.mesh import row_shards
from r1jax.types import Example, Packed, Tokenizer


@chex.dataclass(frozen=True)
class Responses:
  """A microbatch of B responses, in rows of T slots, on the devices."""

  packed: Packed
  last: Int[Array, "B"]  # The slot of the last token.
  labels: Float[Array, "B"]  # 1 for a good response; of pairs, 1, 0, 1, 0 ...
  # In the loss, with the denominator of the update: of both rows of a pair, or
  # of a response. 0 for a row that is not used.
  weights: Float[Array, "B"]


def read(text: str, whole: bool) -> str:
  """What a reward model reads of a response: the whole text, or its summary.

  A text without </think> is its own summary.
  """
  return text if whole else text.rpartition("</think>")[2].strip()


def ids_of(
  messages: Sequence[templates.Message],
  text: str,
  template: templates.Template,
  tokenizer: Tokenizer,
) -> list[int]:
  """The token ids of a conversation and a response, with its EOS."""
  answer = {"role": "assistant", "content": text}
  (piece,) = chat.demonstrations([*messages, answer], template, tokenizer)
  return [*piece.prompt, *piece.completion]


def responses_of(
  example: Example,
  template: templates.Template,
  tokenizer: Tokenizer,
  *,
  pairs: bool,
  whole: bool,
) -> list[tuple[list[int], float]]:
  """(token ids, label) of each response of an example.

  Args:
    example: see `data.preferences`.
    template: renders the conversation.
    tokenizer: of the model.
    pairs: whether it is a pair, or one labelled response.
    whole: whether the model reads thoughts, too.

  Raises ValueError, which names the example, for one of the other kind, and for
  messages that the template cannot render.
  """
  facts, needed = example.metadata, "rejected" if pairs else "label"
  if needed not in facts:
    raise ValueError(
      f"example {example.id!r} has no {needed!r}, which this loss needs"
    )
  texts = (
    [(example.answer, 1.0), (facts["rejected"], 0.0)]
    if pairs
    else [(example.answer, facts["label"])]
  )
  messages = facts.get("messages") or templates.user_turn(example.prompt)
  try:
    return [
      (ids_of(messages, read(text, whole), template, tokenizer), label)
      for text, label in texts
    ]
  except ValueError as error:
    raise ValueError(f"example {example.id!r}: {error}") from None


def make_batches(
  mesh: Mesh,
  groups: Sequence[Sequence[tuple[Sequence[int], float]]],
  /,
  *,
  widths: Sequence[int],
  shard_rows: int,
) -> list[Responses]:
  """The microbatches of an update.

  Args:
    mesh: over which the rows are split.
    groups: the responses of each example; all have the same number, 1 or 2.
    widths: slots (tokens) of a row, descending. A group takes rows of the
      smallest width that holds its longest response.
    shard_rows: rows of a microbatch in each part of the mesh; even for pairs.

  Raises ValueError for a response that does not fit the widest row.
  """
  size = len(groups[0]) if groups else 1
  rows = row_shards(mesh) * shard_rows
  by_width = {width: [] for width in sorted(widths)}
  for group in groups:
    longest = max(len(ids) for ids, _ in group)
    fitting = [width for width in by_width if width >= longest]
    if not fitting:
      raise ValueError(
        f"a response takes {longest} slots, and the widest of rows.widths is "
        f"{max(widths)}"
      )
    by_width[fitting[0]].append(group)
  batches = []
  for width, members in by_width.items():
    per_batch = rows // size
    for first in range(0, len(members), per_batch):
      part = [item for g in members[first : first + per_batch] for item in g]
      tokens = np.zeros((rows, width), np.int32)
      last, labels, weights = np.zeros((3, rows), np.float32)
      for row, (ids, label) in enumerate(part):
        tokens[row, : len(ids)] = ids
        last[row], labels[row] = len(ids) - 1, label
        weights[row] = 1 / len(groups)
      batches.append(
        Responses(
          **sharding.rows_to_device(
            mesh,
            dict(
              packed=pack_rows(tokens),
              last=last.astype(np.int32),
              labels=labels,
              weights=weights,
            ),
          )
        )
      )
  return batches
