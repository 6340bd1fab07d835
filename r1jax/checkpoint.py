"""Saving and resuming a run: one tree per step, the newest readable one wins.

    WORKDIR/checkpoints/40/state    the tree, by dotted names
    WORKDIR/checkpoints/40/about    its step, and how long the metrics were
    WORKDIR/checkpoints/scores.json {"40": 0.75, ...}: every step evaluated
    WORKDIR/checkpoints.at          where they are instead, if not there

A checkpoint is written in the background, beside its place, and renamed into
it, and older ones go only after that: a process killed at any moment leaves one
that can be read. Any number of hosts can write one, each its part, and any
other number can read it. Orbax does that; it is imported on first use, since
that takes half a second.
"""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging

from r1jax import hosts, scores

Path = str | os.PathLike
Tree = TypeVar("Tree")

FOLDER = "checkpoints"  # Of a workdir.
_ELSEWHERE = "checkpoints.at"
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
  """
  import orbax.checkpoint as ocp

  manager = _manager(_folder(workdir), keep)
  manager.wait_until_finished()
  if step not in manager.all_steps():
    manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_named(tree)),
        about=ocp.args.JsonSave(_signed(_about(workdir, step))),
      ),
      force=True,
    )
  if wait:
    manager.wait_until_finished()


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
  return {step: score for step, score in hosts.from_first(read)}


def _change_scores(workdir: Path, how: Callable[[dict], dict]) -> None:
  hosts.from_first(lambda: scores.change(_folder(workdir), how))


def _settle(workdir: Path) -> None:
  """Waits until what was saved is durable."""
  for manager in _WRITERS.get(_folder(workdir), ()):
    manager.wait_until_finished()


def restore(workdir: Path, like: Tree) -> Tree | None:
  """The newest checkpoint that can be read, or None if there is none at all.

  Leaves come back as those of `like` are: on its devices and shardings, or as
  NumPy. Newer ones that cannot be read are renamed, with a warning, so that
  their steps can be saved again. All hosts restore the same one.

  Raises ValueError when the checkpoint is a tree of other names, shapes or
  dtypes, and when there are checkpoints but none can be read.
  """
  import orbax.checkpoint as ocp

  names = _named(like)
  unreadable: list[int] = []
  for step in hosts.from_first(lambda: sorted(_steps(workdir), reverse=True)):
    error = difference = read = None
    try:
      about, found = _metadata(workdir, step)
      if not (difference := _compare(found, names)):
        wanted = ocp.args.StandardRestore(jax.tree.map(_abstract, names))
        args = ocp.args.Composite(state=wanted)
        read = _reader(workdir).restore(step, args=args).state
    except Exception as raised:  # Orbax raises what its layers raise.
      error = raised
    if not hosts.all_gather(np.bool_(error is None)).all():
      logging.warning(
        "the checkpoint of step %d in %s cannot be read (%s)",
        step,
        workdir,
        str(error)[:100],
      )
      unreadable.append(step)
      continue
    if difference:
      raise ValueError(f"checkpoint of another model: {difference}")
    _set_aside(workdir, unreadable)
    _check_rows(workdir, about)
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf, read=read: _place(read.get(_name(path)), leaf), like
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
  """The parameters in the newest checkpoint of a workdir, as nested dicts.

  For programs that only read a run: they need not build its optimizer. The
  arrays are NumPy's. Raises FileNotFoundError when there is no checkpoint.
  """
  import orbax.checkpoint as ocp

  step = latest_step(path)
  if step is None:
    raise FileNotFoundError(f"no checkpoint in {path}")
  wanted = {
    name: leaf
    for name, leaf in _metadata(path, step)[1].items()
    if name.startswith(prefix + ".")
  }
  if not wanted:
    raise ValueError(f"the checkpoint in {path} holds no {prefix!r}")
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
  tree: dict = {}
  for name, leaf in read.items():
    *parents, last = name.removeprefix(prefix + ".").split(".")
    functools.reduce(lambda d, k: d.setdefault(k, {}), parents, tree)[last] = (
      np.asarray(leaf)
    )
  return tree


def keep_at(workdir: Path, place: str) -> None:
  """Keeps the checkpoints of `workdir` elsewhere: gs://bucket/run, s3://...

  Then the workdir, with the reports, may be a folder of the first host's own.
  """
  path = pathlib.Path(workdir)
  path.mkdir(parents=True, exist_ok=True)
  if _is_remote(place):
    from etils import epath

    try:
      epath.Path(place).exists()
    except ImportError as error:
      raise ValueError(
        f"{place} needs a package for its kind of bucket: pip install "
        f"{'gcsfs' if place.startswith('gs') else 's3fs'}"
      ) from error
  (path / _ELSEWHERE).write_text(place.rstrip("/") + "\n")


def _folder(workdir: Path) -> str:
  path = pathlib.Path(workdir).absolute()
  if (path / _ELSEWHERE).exists():
    return (path / _ELSEWHERE).read_text().strip() + f"/{FOLDER}"
  return str(path / FOLDER)


def _is_remote(folder: str) -> bool:
  return "://" in folder


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


def _check_rows(workdir: Path, about: Mapping[str, Any]) -> None:
  """Says what is missing of the metrics that were there already."""
  now = _about(workdir, about["step"])["rows"]
  for name, size in about["rows"].items():
    if hosts.is_first() and now.get(name, 0) < size:
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


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".")


def _named(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by dotted path.

  None and empty states vanish; so do arrays of no elements, which Orbax
  refuses. The tree that they are restored into brings them back.
  """
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {_name(path): leaf for path, leaf in leaves if np.size(leaf)}


def _abstract(leaf):
  if isinstance(leaf, jax.Array):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return leaf
  return np.asarray(leaf)


def _place(value, leaf):
  """A restored value as `leaf` is: on its devices, or as NumPy."""
  on_device = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
  if value is None:
    value = np.zeros(leaf.shape, leaf.dtype)
    return jax.device_put(value, leaf.sharding) if on_device else value
  return value if on_device else np.asarray(value)


def _compare(found: Mapping[str, Any], names: Mapping[str, Any]) -> str | None:
  """The first difference in words, or None."""
  for name in sorted(found.keys() | names.keys()):
    was = _describe(found[name]) if name in found else "nothing"
    now = _describe(names[name]) if name in names else "nothing"
    if was != now:
      return (
        f"{name}: checkpoint has {was}, this config wants {now}; use another "
        "--workdir"
      )
  return None


def _describe(leaf) -> str:
  if not hasattr(leaf, "dtype"):
    leaf = np.asarray(leaf)
  return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


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

  hosts.from_first(rename)  # All wait for it.
  _manager.cache_clear()
  _WRITERS.clear()
