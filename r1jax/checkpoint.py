"""Saving and resuming a run: one tree per step, the newest readable one wins.

A checkpoint is written beside its place and renamed into it, and older ones go
only after that, so a process killed at any moment leaves one that can be read.
Orbax writes them; it is imported on first use, since that takes half a second.
"""

import fcntl
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging

Path = str | os.PathLike
Tree = TypeVar("Tree")

FOLDER = "checkpoints"  # Of a workdir.
_LOCKS: dict[str, int] = {}  # File descriptors, held until the process ends.


def save(workdir: Path, step: int, tree: Any, *, keep: int = 2) -> None:
  """Writes `tree` as the checkpoint of `step`, and drops all but `keep`.

  It is durable when this returns, and the buffers of `tree` may be donated.
  A step that is there already is left as it is.
  """
  import orbax.checkpoint as ocp

  manager = _manager(str(_folder(workdir)), keep)
  if step not in manager.all_steps():
    manager.save(step, args=ocp.args.StandardSave(_named(tree)), force=True)
    manager.wait_until_finished()


def restore(workdir: Path, like: Tree) -> Tree | None:
  """The newest checkpoint that can be read, or None if there is none at all.

  Leaves come back as those of `like` are: on its devices and shardings, or as
  NumPy. Newer ones that cannot be read are renamed, with a warning, so that
  their steps can be saved again.

  Raises ValueError when the checkpoint is a tree of other names, shapes or
  dtypes, and when there are checkpoints but none can be read.
  """
  import orbax.checkpoint as ocp

  names = _named(like)
  unreadable: list[int] = []
  for step in sorted(_steps(workdir), reverse=True):
    try:
      found = dict(_reader(workdir).item_metadata(step).items())
      if not (difference := _compare(found, names)):
        read = _reader(workdir).restore(
          step,
          args=ocp.args.StandardRestore(jax.tree.map(_abstract, names)),
        )
    except Exception as error:  # Orbax raises what its layers raise.
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
    for name, leaf in _reader(path).item_metadata(step).items()
    if name.startswith(prefix + ".")
  }
  if not wanted:
    raise ValueError(f"the checkpoint in {path} holds no {prefix!r}")
  as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    read = checkpointer.restore(
      _folder(path) / str(step) / "default",  # Orbax's name for one item.
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


def claim(
  workdir: Path, config: Mapping[str, Any], *, ignore: tuple[str, ...] = ()
) -> None:
  """Makes `workdir` the place of this config, or finds that it is another's.

  The first start writes `config.json`; later ones compare. Keys under a dotted
  prefix in `ignore` (the length of the run, what is logged) may change.

  Raises ValueError when another key did, or when another process runs here.
  """
  path = pathlib.Path(workdir)
  path.mkdir(parents=True, exist_ok=True)
  if jax.process_index():
    return
  _lock(path)
  new = json.loads(json.dumps(dict(config), default=str))
  file = path / "config.json"
  if file.exists():
    was, now = _flat(json.loads(file.read_text())), _flat(new)
    for key in sorted(was.keys() | now.keys()):
      if any(key == p or key.startswith(p + ".") for p in ignore):
        continue
      if was.get(key, "absent") != now.get(key, "absent"):
        raise ValueError(
          f"{workdir} belongs to another config: {key} was "
          f"{was.get(key, 'absent')!r}, is {now.get(key, 'absent')!r}; choose "
          "another --workdir, or delete it to start over"
        )
  draft = path / "config.json.tmp"
  draft.write_text(json.dumps(new, indent=2) + "\n")
  os.replace(draft, file)


def _folder(workdir: Path) -> pathlib.Path:
  return pathlib.Path(workdir).absolute() / FOLDER


def _steps(workdir: Path) -> list[int]:
  names = (p.name for p in _folder(workdir).glob("[0-9]*") if p.is_dir())
  return [int(name) for name in names if name.isdigit()]


@functools.lru_cache(maxsize=8)
def _manager(folder: str, keep: int | None):
  """Orbax's manager of a folder; None keeps all, and only reads."""
  import orbax.checkpoint as ocp

  return ocp.CheckpointManager(
    folder,
    item_handlers=ocp.StandardCheckpointHandler(),
    options=ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      enable_async_checkpointing=False,
      create=keep is not None,
      cleanup_tmp_directories=keep is not None,
    ),
  )


def _reader(workdir: Path):
  return _manager(str(_folder(workdir)), None)


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
  if steps and jax.process_index() == 0:
    for step in steps:
      aside = _folder(workdir) / f"{step}.unreadable"
      shutil.rmtree(aside, ignore_errors=True)
      os.replace(_folder(workdir) / str(step), aside)
  if steps:
    _manager.cache_clear()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat


def _lock(path: pathlib.Path) -> None:
  """Keeps a second process out of the workdir for as long as this one lives."""
  name = str(path.absolute())
  if name in _LOCKS:
    return
  lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
  try:
    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(lock)
    raise ValueError(
      f"{path} is in use by another process; wait for it, or choose another "
      "--workdir"
    ) from None
  except OSError:  # A file system without locks.
    pass
  _LOCKS[name] = lock
