"""The scores of a run's steps: one small file beside its checkpoints.

    {"0": 0.125, "40": 0.75, "80": null}

It says which steps were evaluated, also those without a checkpoint, as the
base, and can be written long after the checkpoint. null is a score that is no
number.
"""

import json
import math
from collections.abc import Callable, Sequence

NAME = "scores.json"

Scores = dict[int, float]


def read(folder: str) -> Scores:
  """The scores in a folder of checkpoints, by step; NaN for null.

  Raises ValueError if the file is not what `change` writes.
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


def change(folder: str, how: Callable[[Scores], Scores]) -> None:
  """Replaces the scores, as a whole, by what `how` makes of them."""
  from etils import epath

  before = read(folder)
  after = how(before)
  if after == before:
    return
  null = lambda score: float(score) if math.isfinite(score) else None
  text = json.dumps({str(at): null(x) for at, x in sorted(after.items())})
  file = epath.Path(folder) / NAME
  file.parent.mkdir(parents=True, exist_ok=True)
  # A file is renamed into its place; an object appears when it is whole.
  draft = file if "://" in folder else file.with_suffix(".tmp")
  draft.write_text(text + "\n")
  if draft != file:
    draft.replace(file)


def best(folder: str, steps: Sequence[int]) -> int | None:
  """Which of the steps has the highest score; None if none has any."""
  scores = {
    step: score
    for step, score in read(folder).items()
    if step in steps and math.isfinite(score)
  }
  return max(scores, key=lambda step: scores[step], default=None)
