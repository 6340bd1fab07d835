"""Microbatches of supervised fine-tuning, from a dataset of examples.

The texts of a step are a function of the seed and the step, so a run resumes
from its step alone. Each host reads and encodes its share of the examples,
ahead of the updates; then all hosts have all texts.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from r1jax import data
from r1jax.data import packing, templates
from r1jax.data.demonstrations import Text, texts
from r1jax.losses.aggregation import token_weights
from r1jax.parallel import sharding
from r1jax.parallel.mesh import row_shards
from r1jax.runtime import distributed
from r1jax.types import Batch, Example, Tokenizer

Value = TypeVar("Value")
AHEAD = 2  # Steps whose texts are read before they are needed.


def read_texts(
  dataset: Sequence[Example],
  template: str,
  tokenizer: Tokenizer,
  *,
  count: int,
  seed: int,
  step: int,
) -> list[Text]:
  """The texts of this host's share of the `count` examples of a step.

  Raises ValueError, which names the example, for one that has no texts.
  """
  share = slice(jax.process_index(), None, jax.process_count())
  render, found = templates.find(template, tokenizer), []
  for example in data.draw(dataset, count, seed=seed, step=step, shard=share):
    try:
      found += texts(example, render, tokenizer)
    except ValueError as error:
      raise ValueError(f"example {example.id!r}: {error}") from None
  return found


@contextlib.contextmanager
def read_ahead(
  read: Callable[[int], Value], first: int, last: int
) -> Iterator[Iterator[Value]]:
  """An iterator over read(first), ..., read(last - 1), read by a thread.

  What `read` raises is raised where its value would be returned.
  """
  import grain  # The import takes a second.

  steps = grain.MapDataset.range(first, max(first, last)).map(read)
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
  values = iter(steps.to_iter_dataset(options))
  try:
    yield values
  finally:
    values.close()


def gather_fitting(own: Sequence[Text], longest: int) -> tuple[list[Text], int]:
  """The texts of all hosts that fit rows of `longest` slots.

  The second result is the number of the others, which are left out whole.
  Raises ValueError if no text fits.
  """
  everyone = gather(own)
  fitting = [text for text in everyone if text.slots <= longest]
  if everyone and not fitting:
    shortest = min(text.slots for text in everyone)
    raise ValueError(
      f"the shortest of {len(everyone)} texts takes {shortest} slots, and the "
      f"widest of rows.widths is {longest}; set it to the longest text"
    )
  return fitting, len(everyone) - len(fitting)


def gather(own: Sequence[Text]) -> list[Text]:
  """The texts of all hosts, host after host, on every host."""
  sizes = [len(text.tokens) for text in own]
  counts = distributed.all_gather(np.array([len(sizes), sum(sizes)]))
  # Few shapes, as a program that communicates is compiled for each.
  num_texts, num_tokens = (2 ** int(n - 1).bit_length() for n in counts.max(0))

  def of_all(parts, size, dtype):
    flat = np.zeros(size, dtype)
    flat[: sum(map(len, parts))] = np.concatenate([*parts, []])
    return distributed.all_gather(flat)

  lengths = of_all([sizes], num_texts, np.int32)
  tokens = of_all([text.tokens for text in own], num_tokens, np.int32)
  weights = of_all([text.weights for text in own], num_tokens, np.float64)
  found = []
  for host, (count, _) in enumerate(counts):
    ends = np.cumsum(lengths[host, :count])
    starts = ends - lengths[host, :count]
    found += [
      Text(tokens[host, start:end], weights[host, start:end])
      for start, end in zip(starts, ends)
    ]
  return found


def make_batches(
  mesh: Mesh,
  items: Sequence[Text],
  aggregation: Mapping[str, Any],
  /,
  *,
  widths: Sequence[int],
  shard_rows: int,
) -> list[Batch]:
  """The microbatches of an update on texts, on the devices.

  The loss of the update is a weighted mean of the negative log-likelihood of
  the tokens with a weight. With the aggregation "token_mean", the weights are
  those of the texts; with "completion_mean", each is divided by the number of
  tokens with a weight in its text.

  Args:
    mesh: over which the rows are split.
    items: the texts; see `gather_fitting` for those that are too long.
    aggregation: the config section; see `losses.aggregation`.
    widths: slots (tokens) of a row; see `batch.pack_prompts`.
    shard_rows: rows of a microbatch in each part of the mesh.

  Raises ValueError for a text that does not fit the widest row.
  """
  heads = [text.head for text in items]
  prompts = [text.tokens[:n] for text, n in zip(items, heads)]
  answers = [text.tokens[n:] for text, n in zip(items, heads)]
  placements = packing.pack(
    np.array(heads, int),
    np.array([[len(answer)] for answer in answers], int).reshape(-1, 1),
    widths=widths,
    rows=row_shards(mesh) * shard_rows,
  )
  weights = np.zeros((len(items), max(map(len, answers), default=0)))
  for row, text, head in zip(weights, items, heads):
    row[: len(text.weights) - head] = text.weights[head:]
  # The first token of a text has no slot that predicts it.
  weights[np.array(heads, int) == 0, :1] = 0
  learned = (weights > 0).sum(1, keepdims=True)
  weights *= token_weights(learned, learned > 0, **aggregation)
  weights /= weights.sum() or 1
  num_targets = np.int32(max(learned.sum(), 1))
  num_tokens = np.int32(max(sum(x.used.sum() for x in placements), 1))
  batches = []
  for placement in placements:
    packed = packing.lay_out(
      placement, prompts, answers, group_size=1, stride=max(widths)
    )
    per_slot = packing.per_slot(placement, weights, np.float32)
    packed, per_slot = sharding.rows_to_device(mesh, (packed, per_slot))
    batches.append(
      Batch(
        packed=packed,
        weights=per_slot,
        num_targets=num_targets,
        num_tokens=num_tokens,
      )
    )
  return batches
