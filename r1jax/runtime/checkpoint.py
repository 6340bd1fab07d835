"""Saving and restoring checkpoints: one tree per step.

    WORKDIR/checkpoints/40/state    the tree, by dotted names
    WORKDIR/checkpoints/40/about    the step, checksums of the tree, and the
                                    sizes of the metrics files
    WORKDIR/checkpoints/scores.json {"40": 0.75, ...}: every evaluated step

A checkpoint is written in the background to a temporary folder, which is then
renamed; older checkpoints are deleted only after that. A process that is killed
at any moment therefore leaves a readable checkpoint. A restore takes the newest
checkpoint whose checksums match and skips damaged ones. Every host writes its
own part, and any other number of hosts can read the checkpoint. Orbax does the
work; it is imported on first use, because the import takes half a second.
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
from r1jax.runtime.workdir import explain, require_space
from r1jax.runtime.workdir import is_remote as _is_remote

Path = str | os.PathLike
Tree = TypeVar("Tree")

_ROWS = ("metrics.jsonl", "completions.jsonl")
_WRITERS: dict[str, list] = {}  # The managers that may be writing, by folder.


def save(
  workdir: Path,
  step: int,
  tree: Any,
  *,
  keep: int = 2,
  wait: bool = False,
) -> None:
  """Writes `tree` as the checkpoint of `step`, in the background.

  When this returns, the buffers of `tree` may be donated, and the previous
  checkpoint is durable; with `wait`, this one is durable too. The `keep` newest
  checkpoints and the one with the highest score are kept (see `write_score`);
  others are deleted. A step that is already saved is not written again.

  Raises OSError, with advice, if this checkpoint or the previous one could not
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
  """A block whose write errors are raised as one OSError of one line."""
  try:
    yield
  except (OSError, ValueError, RuntimeError) as error:  # From Orbax.
    _WRITERS.clear()  # Never wait again for a save that has failed.
    _manager.cache_clear()
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno:
      text = explain(error)
    raise OSError(
      f"a checkpoint could not be written to {_folder(workdir)}: {text[:500]}"
    ) from error


def write_score(workdir: Path, step: int, score: float) -> None:
  """Records the evaluation score of `step`; every host must call it.

  The step need not have a checkpoint: step 0, the base model, has none.
  """
  _update_scores(workdir, lambda known: {**known, step: score})


def drop_scores(workdir: Path, step: int | None) -> None:
  """Deletes the scores of steps after `step`; None deletes all of them.

  A run that resumes calls it, as it drops the later rows of its metrics.
  """
  keep = lambda at: step is not None and at <= step
  _update_scores(
    workdir, lambda known: {at: x for at, x in known.items() if keep(at)}
  )


def read_scores(workdir: Path) -> dict[int, float]:
  """The score of every evaluated step, read by the first host for all."""
  read = lambda: [*scores.read(_folder(workdir)).items()]
  return {step: score for step, score in distributed.from_first(read)}


def _update_scores(workdir: Path, function: Callable[[dict], dict]) -> None:
  distributed.from_first(lambda: scores.update(_folder(workdir), function))


def _wait_for_saves(workdir: Path) -> None:
  """Waits until all saves are durable."""
  with _writing(workdir):
    for manager in _WRITERS.get(_folder(workdir), ()):
      manager.wait_until_finished()


def restore(workdir: Path, like: Tree) -> Tree | None:
  """The newest readable checkpoint, or None if there are no checkpoints.

  The leaves get the devices and shardings of those of `like`, or are NumPy if
  those are. Newer checkpoints that cannot be read are renamed, with a warning,
  so that their steps can be saved again. All hosts restore the same checkpoint.

  Raises ValueError if the tree has other names, shapes or dtypes than `like`,
  if there are checkpoints but none is readable, or if the disk has no space for
  the checkpoints to come.
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
      about, saved = _metadata(workdir, step)
      if not (difference := leaves.difference(saved, names)):
        state = ocp.args.StandardRestore(jax.tree.map(leaves.abstract, names))
        args = ocp.args.Composite(state=state)
        read = _reader(workdir).restore(step, args=args).state
    except Exception as raised:  # Orbax passes on errors of any type.
      error = raised
    # Checksums are computed by all hosts together, so all or none must do so.
    if _all_hosts(error is None) and read is not None:
      error = _find_damage(about, read)
    if not _all_hosts(error is None):
      _warn(workdir, step, error)
      unreadable.append(step)
      continue
    if difference:
      raise ValueError(f"checkpoint of another model: {difference}")
    _set_aside(workdir, unreadable)
    _check_rows(workdir, about)
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf, read=read: leaves.restore_like(
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
  """The step of the existing checkpoint with the highest score, or None."""
  return scores.best(_folder(workdir), _steps(workdir))


def load_params(path: Path, prefix: str = "train.params") -> Any:
  """The parameters in the newest readable checkpoint, as nested dicts of NumPy.

  It is for programs that only read a run and do not build its optimizer.
  `prefix` is the dotted name of the parameters in the saved tree.

  Raises FileNotFoundError if there is no checkpoint, and ValueError if none is
  readable or the newest has no leaf below `prefix`.
  """
  steps = sorted(_steps(path), reverse=True)
  if not steps:
    raise FileNotFoundError(f"no checkpoint in {path}")
  for step in steps:
    try:
      params = _read_leaves(path, step, prefix)
    except Exception as error:  # Orbax passes on errors of any type.
      _warn(path, step, error)
      continue
    if not params:
      raise ValueError(f"the checkpoint in {path} holds no {prefix!r}")
    return leaves.nested(params)
  raise ValueError(f"no checkpoint in {_folder(path)} can be read")


def _read_leaves(path: Path, step: int, prefix: str) -> dict[str, np.ndarray]:
  """The leaves below a prefix, by the rest of their names; may be empty."""
  import orbax.checkpoint as ocp

  about, saved = _metadata(path, step)
  below = {k: v for k, v in saved.items() if k.startswith(prefix + ".")}
  if not below:
    return {}
  as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    read = checkpointer.restore(
      f"{_folder(path)}/{step}/state",
      args=ocp.args.PyTreeRestore(
        below,
        restore_args=dict.fromkeys(below, as_numpy),
        partial_restore=True,
      ),
    )
  if error := _find_damage(about, read):
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
  _wait_for_saves(workdir)
  folder = _folder(workdir)
  if _is_remote(folder):  # Buckets cannot rename; Orbax marks complete steps.
    import orbax.checkpoint as ocp

    return ocp.path.step.checkpoint_steps(folder)
  names = (p.name for p in pathlib.Path(folder).glob("[0-9]*") if p.is_dir())
  return [int(name) for name in names if name.isdigit()]


def _about(workdir: Path, step: int) -> dict[str, Any]:
  """The metadata of a checkpoint: its step, and the sizes of metrics files."""
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
  """Orbax preservation policy: the last `keep` checkpoints and the best one."""

  def __init__(self, folder: str, keep: int | None):
    self._folder, self._keep = folder, keep

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Whether to keep each checkpoint; they come in the order of steps."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = {*steps[-(self._keep or 0) :], scores.best(self._folder, steps)}
    return [step in kept for step in steps]


def _metadata(workdir: Path, step: int) -> tuple[dict, dict]:
  """The metadata of a checkpoint, and that of each leaf of its tree.

  Raises ValueError if the metadata does not match its checksum.
  """
  signed = _read_about(_folder(workdir), step)
  about = {k: v for k, v in signed.items() if k != "sha256"}
  if _signed(about) != signed or about["step"] != step:
    raise ValueError("its checksum is wrong")
  return about, dict(_reader(workdir).item_metadata(step).state.items())


def _find_damage(about: Mapping[str, Any], read: Mapping) -> ValueError | None:
  """An error if a leaf differs from its saved checksum, else None.

  Leaves without a saved checksum are accepted.
  """
  expected = about.get("checksums", {})
  for name, actual in checksums(read).items():
    if expected.get(name, actual) != actual:
      return ValueError(f"the checksum of {name} is wrong")
  return None


def _all_hosts(value: bool) -> bool:
  """Whether `value` is true on every host."""
  return bool(distributed.all_gather(np.bool_(value)).all())


def _check_rows(workdir: Path, about: Mapping[str, Any]) -> None:
  """Warns if metrics files are shorter than when the checkpoint was saved."""
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
  """The Orbax manager of a folder; it only reads if `keep` is None."""
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
  """Renames unreadable checkpoints, and drops the managers that list them."""
  if not steps:
    return

  def rename():
    from etils import epath

    for step in steps:
      aside = epath.Path(_folder(workdir)) / f"{step}.unreadable"
      if aside.exists():
        aside.rmtree()
      (aside.parent / str(step)).rename(aside)

  distributed.from_first(rename)  # All hosts wait for it.
  _manager.cache_clear()
  _WRITERS.clear()
