"""Packed rows for tests: one microbatch that holds everything."""

import numpy as np

from r1jax.data import packing


def of_rollout(rollout, width, *, rows, chosen=None):
  """The completions of a rollout, or of chosen prompts, in rows [B, T]."""
  if chosen is None:
    chosen = range(len(rollout.lengths))
  (placement,) = packing.pack_rollout(
    rollout, chosen, widths=[width], rows=rows
  )
  return packing.lay_out_rollout(rollout, placement)


def of_texts(texts, width, *, rows):
  """Pairs of a prompt and an answer in rows [B, T]; origins are by `width`."""
  prompts, answers = zip(*texts)
  (placement,) = packing.pack(
    np.array([*map(len, prompts)]),
    np.array([[len(answer)] for answer in answers]),
    widths=[width],
    rows=rows,
  )
  return packing.lay_out(
    placement, prompts, answers, group_size=1, stride=width
  )
