"""The folder of a run: whose it is, and that all can be written that must be.

    WORKDIR/config.json      the run's config
    WORKDIR/contents.json    checksums of what the config names by its path
    WORKDIR/checkpoints.at   where the checkpoints are, if not here

What is wrong with a folder is found before the first step, and says what to do.
"""

import errno
import fcntl
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Mapping
from typing import Any

from absl import logging

from r1jax.runtime import distributed

Path = str | os.PathLike

CHECKPOINTS = "checkpoints"  # Of a workdir, or of a bucket.
PATIENCE = 60.0  # Seconds that a bucket may take for a small file.
_CONTENTS, _ACCEPTED = "contents.json", "contents.before.json"
_ELSEWHERE = "checkpoints.at"
_LOCKS: dict[str, int] = {}  # File descriptors, held until the process ends.
_REMEDIES = {
  errno.ENOSPC: "free some space, then run the same command again",
  errno.EDQUOT: "free some of your quota, then run the same command again",
  errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
  errno.EROFS: "choose a --workdir that can be written",
  errno.EACCES: "choose a --workdir that you may write to",
  errno.EPERM: "choose a --workdir that you may write to",
  errno.EEXIST: "a file is in its place; choose another --workdir",
  errno.ENOTDIR: "a file is in its place; choose another --workdir",
  errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def remedy(error: OSError) -> str:
  """What failed, on which file, and what to do about it, in one line."""
  what = error.strerror or " ".join(str(error).split())
  where = "" if error.filename is None else f"{os.fspath(error.filename)}: "
  advice = _REMEDIES.get(error.errno)
  return f"{where}{what}" + (f"; {advice}" if advice else "")


def prepare(
  workdir: Path, bucket: str | None = None, *, accept_other_data: bool = False
) -> None:
  """Makes the folder, and proves that it and the bucket can be written.

  Args:
    workdir: of the run.
    bucket: where the checkpoints go instead: "gs://bucket/run", "s3://...", or
      a folder. Then the workdir, with the reports, may be a folder of the first
      host's own. None keeps what an earlier start said.
    accept_other_data: has `claim` warn of other contents instead of raising.

  Raises ValueError that says what to do; then nothing is remembered of the
  bucket.
  """
  path = pathlib.Path(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    _probe(path)
    if accept_other_data and (path / _CONTENTS).exists():
      os.replace(path / _CONTENTS, path / _ACCEPTED)
  except OSError as error:
    raise ValueError(f"cannot write to --workdir: {remedy(error)}") from error
  note = path / _ELSEWHERE
  place = bucket or (note.read_text().strip() if note.exists() else None)
  if place is None:
    return
  try:
    _answered(place)
  except Exception as error:  # Each kind of bucket raises its own.
    text = " ".join(str(error).split())[:300]
    advice = "check the name, the network and your credentials"
    if not bucket:
      advice += f", or delete {note} to go on without it"
    raise ValueError(f"cannot write to {place}: {text}; {advice}") from error
  if bucket:
    note.write_text(bucket.rstrip("/") + "\n")


def checkpoints(workdir: Path) -> str:
  """The folder, or the place in a bucket, that holds the checkpoints."""
  path = pathlib.Path(workdir).absolute()
  if (path / _ELSEWHERE).exists():
    return (path / _ELSEWHERE).read_text().strip() + f"/{CHECKPOINTS}"
  return str(path / CHECKPOINTS)


def is_remote(folder: str) -> bool:
  """Whether it is a place in a bucket."""
  return "://" in folder


def require_space(folder: str, size: int, present: int) -> None:
  """Raises ValueError unless two checkpoints fit, with those that are there.

  Of a bucket it knows nothing.

  Args:
    folder: of the checkpoints.
    size: bytes of one.
    present: checkpoints that are there.
  """
  if is_remote(folder):
    return
  os.makedirs(folder, exist_ok=True)
  free, need = shutil.disk_usage(folder).free, size * max(1, 2 - present)
  if free < need:
    raise ValueError(
      f"{folder} has {free / 1e9:,.3g} GB free and needs {need / 1e9:,.3g} GB "
      f"for checkpoints of {size / 1e9:,.3g} GB; free some space, or choose "
      "another --workdir or a --bucket"
    )


def claim(
  workdir: Path,
  config: Mapping[str, Any],
  contents: Mapping[str, str] = {},
  *,
  ignore: tuple[str, ...] = (),
) -> None:
  """Makes `workdir` the place of this config, or finds that it is another's.

  The first start writes config.json and contents.json; later ones compare. All
  hosts of a job must bring the same contents.

  Args:
    workdir: of the run.
    config: of the run.
    contents: a checksum for each thing that the config names by its path only.
    ignore: dotted keys, and prefixes of them, that may change (the length of
      the run, what is logged).

  Raises ValueError when another key or content changed, or when another process
  runs here.
  """
  distributed.compare(contents)
  if not distributed.is_first():
    return
  path = pathlib.Path(workdir)
  path.mkdir(parents=True, exist_ok=True)
  _lock(path)
  new = json.loads(json.dumps(dict(config), default=str))
  was, now = flat(_read(path / "config.json", new)), flat(new)
  for key in sorted(was.keys() | now.keys()):
    if any(key == p or key.startswith(p + ".") for p in ignore):
      continue
    if was.get(key, "absent") != now.get(key, "absent"):
      raise ValueError(
        f"{workdir} belongs to another config: {key} was "
        f"{was.get(key, 'absent')!r}, is {now.get(key, 'absent')!r}; choose "
        "another --workdir, or delete it to start over"
      )
  accepted = _read(path / _ACCEPTED, {})
  known = accepted | _read(path / _CONTENTS, {})
  for name in sorted(known.keys() & contents.keys()):
    if known[name] == contents[name]:
      continue
    text = f"the {name} has other content than when the run in {workdir} began"
    if name not in accepted:
      raise ValueError(
        f"{text}: its checksum was {known[name]:.12}, is {contents[name]:.12}; "
        "put the old one back, choose another --workdir, or go on with this "
        "one by --accept_other_data"
      )
    logging.warning("%s; going on with what it is now", text)
  _write(path / "config.json", new)
  _write(path / _CONTENTS, dict(contents))
  (path / _ACCEPTED).unlink(missing_ok=True)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """The leaves of nested mappings, by dotted key."""
  leaves = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      leaves |= flat(value, f"{prefix}{key}.")
    else:
      leaves[prefix + key] = value
  return leaves


def _read(file: pathlib.Path, default: Mapping[str, Any]) -> dict[str, Any]:
  if not file.exists():
    return dict(default)
  try:
    value = json.loads(file.read_bytes())
    if not isinstance(value, dict):
      raise ValueError(f"want a JSON object, got {type(value).__name__}")
  except ValueError as error:
    raise ValueError(
      f"{file} is damaged ({error}): put a copy of it back, or delete it, and "
      "what this command says is taken for what the run began with"
    ) from None
  return value


def _write(file: pathlib.Path, value: Any) -> None:
  """Replaces a file of JSON, whole or not at all."""
  draft = file.with_name(file.name + ".tmp")
  draft.write_text(json.dumps(value, indent=2) + "\n")
  os.replace(draft, file)


def _probe(folder: Any) -> None:
  """Writes a small file and deletes it."""
  file = folder / f".probe.{os.getpid()}"
  try:
    file.write_text("r1jax\n")
  finally:
    file.unlink(missing_ok=True)


def _answered(place: str) -> None:
  """Writes to a bucket, for as long as anyone should wait for that."""
  failed: list[Exception] = []

  def write():
    try:
      _probe(_remote(place) if is_remote(place) else _local(place))
    except Exception as error:
      failed.append(error)

  writing = threading.Thread(target=write, daemon=True)
  writing.start()
  writing.join(PATIENCE)
  if writing.is_alive():
    raise TimeoutError(f"no answer for {PATIENCE:.0f} s")
  if failed:
    raise failed[0]


def _local(place: str) -> pathlib.Path:
  pathlib.Path(place).mkdir(parents=True, exist_ok=True)
  return pathlib.Path(place)


def _remote(place: str) -> Any:
  from etils import epath

  try:
    path = epath.Path(place)
    path.exists()
  except ImportError as error:
    package = "gcsfs" if place.startswith("gs") else "s3fs"
    raise ValueError(
      f"it needs a package for its kind of bucket: pip install {package}"
    ) from error
  return path


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
