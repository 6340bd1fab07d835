"""Evaluation scores by step: a small JSON file beside the checkpoints.

    {"0": 0.125, "40": 0.75, "80": null}

It lists every evaluated step, including steps without a checkpoint such as step
0, the base model. A score can be written long after the checkpoint. null stands
for a score that is not finite.
"""

import json
import math
from collections.abc import Callable, Sequence

NAME = "scores.json"

Scores = dict[int, float]


def read(folder: str) -> Scores:
  """The scores in a folder of checkpoints, by step; null is read as NaN.

  Raises ValueError if the file is damaged.
  """
  from etils import epath

  file = epath.Path(folder) / NAME
  if not file.exists():
    return {}
  try:
    return {
      int(step): math.nan if score is None else float(score)
      for step, score in json.loads(file.read_text()).items()
    }
  except (ValueError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{file} is damaged ({error}); delete it, and the steps will be "
      "evaluated again"
    ) from error


def update(folder: str, function: Callable[[Scores], Scores]) -> None:
  """Replaces the scores by function(scores), atomically."""
  from etils import epath

  before = read(folder)
  after = function(before)
  if after == before:
    return
  null = lambda score: float(score) if math.isfinite(score) else None
  text = json.dumps({str(at): null(x) for at, x in sorted(after.items())})
  file = epath.Path(folder) / NAME
  file.parent.mkdir(parents=True, exist_ok=True)
  # Files are replaced by renaming; objects in buckets are written atomically.
  draft = file if "://" in folder else file.with_suffix(".tmp")
  draft.write_text(text + "\n")
  if draft != file:
    draft.replace(file)


def best(folder: str, steps: Sequence[int]) -> int | None:
  """The step with the highest score among `steps`; None if none has a score."""
  scores = {
    step: score
    for step, score in read(folder).items()
    if step in steps and math.isfinite(score)
  }
  return max(scores, key=lambda step: scores[step], default=None)
