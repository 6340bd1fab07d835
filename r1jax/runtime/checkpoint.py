"""Saving and resuming a run: one tree per step, the newest readable one wins.

    WORKDIR/checkpoints/40/state    the tree, by dotted names
    WORKDIR/checkpoints/40/about    its step, checksums of the tree, and how
                                    long the metrics were
    WORKDIR/checkpoints/scores.json {"40": 0.75, ...}: every step evaluated

A checkpoint is written in the background, beside its place, and renamed into
it, and older ones go only after that: a process killed at any moment leaves one
that can be read. Signals wait until a save has begun. A checkpoint whose
numbers are not those that were saved is passed over. Any number of hosts can
write one, each its part, and any other number can read it. Orbax does that; it
is imported on first use, since that takes half a second.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging

from r1jax.runtime import distributed, interrupt, leaves, scores
from r1jax.runtime.checksums import checksums
from r1jax.runtime.workdir import checkpoints as _folder
from r1jax.runtime.workdir import is_remote as _is_remote
from r1jax.runtime.workdir import remedy, require_space

Path = str | os.PathLike
Tree = TypeVar("Tree")

_ROWS = ("metrics.jsonl", "completions.jsonl")
_WRITERS: dict[str, list] = {}  # Managers that may be writing, by folder.


def save(
  workdir: Path,
  step: int,
  tree: Any,
  *,
  keep: int = 2,
  wait: bool = False,
) -> None:
  """Writes `tree` as the checkpoint of `step`, in the background.

  When this returns, the buffers of `tree` may be donated and the checkpoint
  before is durable; with `wait` this one is. Then all go but the `keep` last
  and the one with the highest score, which `write_score` may add at any time. A
  step that is there already is left as it is.

  Raises OSError that says what to do when this one, or the one before, cannot
  be written.
  """
  with interrupt.deferred(), _writing(workdir):
    import orbax.checkpoint as ocp

    manager = _manager(_folder(workdir), keep)
    manager.wait_until_finished()
    if step not in manager.all_steps():
      named = leaves.named(tree)
      about = _about(workdir, step) | {"checksums": checksums(named)}
      manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(named),
          about=ocp.args.JsonSave(_signed(about)),
        ),
        force=True,
      )
    if wait:
      manager.wait_until_finished()


@contextlib.contextmanager
def _writing(workdir: Path) -> Iterator[None]:
  """Says in one line what went wrong with writing a checkpoint."""
  try:
    yield
  except (OSError, ValueError, RuntimeError) as error:  # Of Orbax's layers.
    _WRITERS.clear()  # What failed once must not be waited for again.
    _manager.cache_clear()
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno:
      text = remedy(error)
    raise OSError(
      f"a checkpoint could not be written to {_folder(workdir)}: {text[:500]}"
    ) from error


def write_score(workdir: Path, step: int, score: float) -> None:
  """Writes that `step` was evaluated, and how well it did; all hosts call it.

  The step need not have a checkpoint: that of the base has none.
  """
  _change_scores(workdir, lambda known: {**known, step: score})


def drop_scores(workdir: Path, step: int | None) -> None:
  """Drops the scores beyond `step`, None all, as metrics do their rows."""
  within = lambda at: step is not None and at <= step
  kept = lambda known: {at: x for at, x in known.items() if within(at)}
  _change_scores(workdir, kept)


def read_scores(workdir: Path) -> dict[int, float]:
  """The score of every step that was evaluated, as the first host reads it."""
  read = lambda: [*scores.read(_folder(workdir)).items()]
  return {step: score for step, score in distributed.from_first(read)}


def _change_scores(workdir: Path, how: Callable[[dict], dict]) -> None:
  distributed.from_first(lambda: scores.change(_folder(workdir), how))


def _settle(workdir: Path) -> None:
  """Waits until what was saved is durable."""
  with _writing(workdir):
    for manager in _WRITERS.get(_folder(workdir), ()):
      manager.wait_until_finished()


def restore(workdir: Path, like: Tree) -> Tree | None:
  """The newest checkpoint that can be read, or None if there is none at all.

  Leaves come back as those of `like` are: on its devices and shardings, or as
  NumPy. Newer ones that cannot be read are renamed, with a warning, so that
  their steps can be saved again. All hosts restore the same one.

  Raises ValueError when the checkpoint is a tree of other names, shapes or
  dtypes, when there are checkpoints but none can be read, and when there is no
  space for those to come.
  """
  import orbax.checkpoint as ocp

  if distributed.is_first():
    present = len(_steps(workdir))
    require_space(_folder(workdir), leaves.size(like), present)
  names = leaves.named(like)
  unreadable: list[int] = []
  for step in distributed.from_first(
    lambda: sorted(_steps(workdir), reverse=True)
  ):
    error = difference = read = None
    try:
      about, found = _metadata(workdir, step)
      if not (difference := leaves.difference(found, names)):
        wanted = ocp.args.StandardRestore(jax.tree.map(leaves.abstract, names))
        args = ocp.args.Composite(state=wanted)
        read = _reader(workdir).restore(step, args=args).state
    except Exception as raised:  # Orbax raises what its layers raise.
      error = raised
    if _all_hosts(error is None) and read is not None:  # They sum together.
      error = _damage(about, read)
    if not _all_hosts(error is None):
      _warn(workdir, step, error)
      unreadable.append(step)
      continue
    if difference:
      raise ValueError(f"checkpoint of another model: {difference}")
    _set_aside(workdir, unreadable)
    _check_rows(workdir, about)
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf, read=read: leaves.place(
        read.get(leaves.name(path)), leaf
      ),
      like,
    )
  if unreadable:
    raise ValueError(
      f"no checkpoint in {_folder(workdir)} can be read; delete that folder to "
      "start over"
    )
  return None


def latest_step(workdir: Path) -> int | None:
  """The step of the newest checkpoint, or None."""
  return max(_steps(workdir), default=None)


def best_step(workdir: Path) -> int | None:
  """The step of the kept checkpoint with the highest score, or None."""
  return scores.best(_folder(workdir), _steps(workdir))


def load_params(path: Path, prefix: str = "train.params") -> Any:
  """The parameters in the newest whole checkpoint of a workdir, nested dicts.

  For programs that only read a run: they need not build its optimizer. The
  arrays are NumPy's. Raises FileNotFoundError when there is no checkpoint, and
  ValueError when none can be read, or none has the prefix.
  """
  steps = sorted(_steps(path), reverse=True)
  if not steps:
    raise FileNotFoundError(f"no checkpoint in {path}")
  for step in steps:
    try:
      found = _read_leaves(path, step, prefix)
    except Exception as error:  # Orbax raises what its layers raise.
      _warn(path, step, error)
      continue
    if not found:
      raise ValueError(f"the checkpoint in {path} holds no {prefix!r}")
    return leaves.nested(found)
  raise ValueError(f"no checkpoint in {_folder(path)} can be read")


def _read_leaves(path: Path, step: int, prefix: str) -> dict[str, np.ndarray]:
  """The leaves below a prefix by the rest of their names, if any."""
  import orbax.checkpoint as ocp

  about, found = _metadata(path, step)
  wanted = {k: v for k, v in found.items() if k.startswith(prefix + ".")}
  if not wanted:
    return {}
  as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    read = checkpointer.restore(
      f"{_folder(path)}/{step}/state",
      args=ocp.args.PyTreeRestore(
        wanted,
        restore_args=dict.fromkeys(wanted, as_numpy),
        partial_restore=True,
      ),
    )
  if error := _damage(about, read):
    raise error
  return {k.removeprefix(prefix + "."): np.asarray(v) for k, v in read.items()}


def _warn(workdir: Path, step: int, error: Exception | None) -> None:
  logging.warning(
    "the checkpoint of step %d in %s cannot be read (%s)",
    step,
    workdir,
    " ".join(str(error).split())[:100],
  )


def _steps(workdir: Path) -> list[int]:
  _settle(workdir)
  folder = _folder(workdir)
  if _is_remote(folder):  # A bucket cannot rename: Orbax marks what is whole.
    import orbax.checkpoint as ocp

    return ocp.path.step.checkpoint_steps(folder)
  names = (p.name for p in pathlib.Path(folder).glob("[0-9]*") if p.is_dir())
  return [int(name) for name in names if name.isdigit()]


def _about(workdir: Path, step: int) -> dict[str, Any]:
  """What a checkpoint says of its run: also how long its files are."""
  files = {name: pathlib.Path(workdir) / name for name in _ROWS}
  sizes = {k: file.stat().st_size for k, file in files.items() if file.exists()}
  return {"step": int(step), "rows": sizes}


def _signed(about: dict[str, Any]) -> dict[str, Any]:
  text = json.dumps(about, sort_keys=True)
  return about | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def _read_about(folder: str, step: int) -> dict[str, Any]:
  from etils import epath

  file = epath.Path(folder) / str(step) / "about" / "metadata"
  return json.loads(file.read_text())


class _LastAndBest:
  """Orbax's question which checkpoints stay, answered."""

  def __init__(self, folder: str, keep: int | None):
    self._folder, self._keep = folder, keep

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Of checkpoints in the order of their steps."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = {*steps[-(self._keep or 0) :], scores.best(self._folder, steps)}
    return [step in kept for step in steps]


def _metadata(workdir: Path, step: int) -> tuple[dict, dict]:
  """What a checkpoint says of its run, and of the leaves of its tree.

  Raises ValueError if that is not what was written.
  """
  signed = _read_about(_folder(workdir), step)
  about = {k: v for k, v in signed.items() if k != "sha256"}
  if _signed(about) != signed or about["step"] != step:
    raise ValueError("its checksum is wrong")
  return about, dict(_reader(workdir).item_metadata(step).state.items())


def _damage(about: Mapping[str, Any], read: Mapping) -> ValueError | None:
  """What is wrong if a leaf is not what was saved.

  Runs from before there were checksums are believed.
  """
  expected = about.get("checksums", {})
  for name, found in checksums(read).items():
    if expected.get(name, found) != found:
      return ValueError(f"the checksum of {name} is wrong")
  return None


def _all_hosts(well: bool) -> bool:
  return bool(distributed.all_gather(np.bool_(well)).all())


def _check_rows(workdir: Path, about: Mapping[str, Any]) -> None:
  """Says what is missing of the metrics that were there already."""
  now = _about(workdir, about["step"])["rows"]
  for name, size in about["rows"].items():
    if distributed.is_first() and now.get(name, 0) < size:
      logging.warning(
        "%s in %s is shorter than it was at step %d: some of its rows are lost",
        name,
        workdir,
        about["step"],
      )


@functools.lru_cache(maxsize=8)
def _manager(folder: str, keep: int | None):
  """Orbax's manager of a folder; None keeps all, and only reads."""
  import orbax.checkpoint as ocp

  manager = ocp.CheckpointManager(
    folder,
    item_handlers={
      "state": ocp.StandardCheckpointHandler(),
      "about": ocp.JsonCheckpointHandler(),
    },
    options=ocp.CheckpointManagerOptions(
      preservation_policy=_LastAndBest(folder, keep),
      enable_async_checkpointing=keep is not None,
      create=keep is not None,
      cleanup_tmp_directories=keep is not None,
    ),
  )
  if keep is not None:
    _WRITERS.setdefault(folder, []).append(manager)
  return manager


def _reader(workdir: Path):
  return _manager(_folder(workdir), None)


def _set_aside(workdir: Path, steps: list[int]) -> None:
  """Renames checkpoints, and forgets the managers that knew them."""
  if not steps:
    return

  def rename():
    from etils import epath

    for step in steps:
      aside = epath.Path(_folder(workdir)) / f"{step}.unreadable"
      if aside.exists():
        aside.rmtree()
      (aside.parent / str(step)).rename(aside)

  distributed.from_first(rename)  # All wait for it.
  _manager.cache_clear()
  _WRITERS.clear()
