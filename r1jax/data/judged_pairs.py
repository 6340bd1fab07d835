"""Pairs of responses that a judge has compared, from the samples of a run.

    dataset=dict(name="judged_pairs", path="WORKDIR", margin=1.0)

WORKDIR is that of a run of the loop `generate` whose rewards rank the samples
of a prompt, such as `preference`, which asks a judge several times in either
order (DeepSeek-R1, arXiv:2501.12948v2, sec. 3.1 and app. B.2). The best and the
worst sample of a prompt are a pair if the judge tells them apart.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from r1jax.data import preferences
from r1jax.data.shard_writer import DROPPED, KEPT
from r1jax.data.shards import Row, Shards
from r1jax.types import Example


class Judged(NamedTuple):
  """A sample, by its place."""

  value: float  # What it earned.
  folder: str
  index: int  # Of the row in the folder.


def load(
  *, path: str | Path, margin: float, reward: str = "preference"
) -> "JudgedPairs":
  """Returns a pair for every prompt whose samples differ enough.

  An example is as in `data.preferences`.

  Args:
    path: the workdir of the run.
    margin: by which the rewards of a pair differ more than that. Of two
      samples, `preference` gives 0.5 and -0.5 if one was always slightly
      better, 1 and -1 if it was always much better.
    reward: the name of the reward.

  Raises FileNotFoundError, or ValueError for samples without that reward, and
  if no pair is left.
  """
  if not str(path):
    raise ValueError(
      "dataset.path is not set; give the workdir of a run of the loop "
      "'generate', --config.dataset.path=WORKDIR"
    )
  root = Path(path)
  folders = [name for name in (KEPT, DROPPED) if (root / name).exists()]
  if not folders:
    raise FileNotFoundError(f"{root} holds no samples: no folder {KEPT!r}")
  shards = {name: Shards(root / name) for name in folders if _rows(root / name)}
  by_prompt: dict[str, list[Judged]] = {}
  for name, rows in shards.items():
    for index in range(len(rows)):
      row = rows[index]
      prompt, value = _judged(row, reward)
      if value is not None:
        judged = Judged(value, name, index)
        by_prompt.setdefault(prompt, []).append(judged)
  pairs = []
  for samples in by_prompt.values():
    best, worst = max(samples), min(samples)
    if best.value - worst.value > margin:
      pairs.append((best, worst))
  if not pairs:
    raise ValueError(
      f"{root}: of {len(by_prompt):,} prompts, none has samples whose "
      f"{reward!r} differs by more than {margin}"
    )
  return JudgedPairs(shards, pairs)


class JudgedPairs(Sequence[Example]):
  """The pairs, whose texts are read on access."""

  def __init__(
    self,
    shards: dict[str, Shards],
    pairs: Sequence[tuple[Judged, Judged]],
  ):
    self._shards, self._pairs = shards, pairs

  def __len__(self) -> int:
    return len(self._pairs)

  def __getitem__(self, index: int) -> Example:
    best, worst = (
      self._shards[sample.folder][sample.index] for sample in self._pairs[index]
    )
    chosen, rejected = (row.fields["messages"] for row in (best, worst))
    fields = dict(
      id=best.fields["id"],
      domain=best.fields.get("domain", ""),
      chosen=chosen,
      rejected=rejected,
    )
    return preferences.example_of(Row(fields, best.where))

  def checksum(self) -> str:
    """A checksum of the files."""
    return " ".join(shards.checksum() for shards in self._shards.values())


def _rows(folder: Path) -> bool:
  """Whether any file of a folder holds a row: a shard may have kept nothing."""
  return any(file.stat().st_size for file in folder.iterdir())


def _judged(row: Row, reward: str) -> tuple[str, float | None]:
  """Returns the prompt of a sample, and its reward; None if not graded."""
  try:
    made_by = row.fields["provenance"]
    return made_by["prompt"], made_by["rewards"][reward]
  except (KeyError, TypeError):
    raise ValueError(
      f"{row.where}: the sample has no reward {reward!r}; name it in the "
      "rewards of the run that makes the samples"
    ) from None
