"""The workdir of a run: its lock, its config, and checks that it is writable.

    WORKDIR/config.json      the config of the run
    WORKDIR/contents.json    checksums of files that the config names by path
    WORKDIR/machine.json     the devices of the last start
    WORKDIR/checkpoints.at   the location of the checkpoints, if elsewhere

Problems are detected before the first step, and the errors say what to do.
"""

import errno
import fcntl
import json
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from r1jax.runtime import distributed

Path = str | os.PathLike

# What a resumed run may change, by dotted key or its first parts. It may have
# other periods and limits, which move none of its numbers, ...
PERIODS = (
  "num_steps",
  "checkpoint_every",
  "metrics_every",
  "max_skipped",
  "evaluation",
  "peak_flops",
)
# ... and it may be computed in another way. That moves its numbers by rounding,
# as another number of hosts or devices does.
EXECUTION = (
  "cpu_devices",
  "mesh",
  "rollout_mesh",
  "rows",
  "offload",
  "sampling.num_slots",
  "sampling.decode_steps",
  "sampling.prompt_tokens",
  "grader.num_workers",
  "model.how.scan",
  "model.how.remat",
  "model.how.moe_chunk",
)
# It may also find under another path what has the checksum in contents.json.
PATH = "path"

CHECKPOINTS = "checkpoints"  # The folder in a workdir or a bucket.
BUCKET_TIMEOUT = 60.0  # Seconds for writing a small file to a bucket.
_CONTENTS, _ACCEPTED = "contents.json", "contents.before.json"
_MACHINE = "machine.json"
_ELSEWHERE = "checkpoints.at"
_LOCKS: dict[str, int] = {}  # File descriptors, open until the process ends.
_REMEDIES = {
  errno.ENOSPC: "free some space, then run the same command again",
  errno.EDQUOT: "free some of your quota, then run the same command again",
  errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
  errno.EROFS: "choose a --workdir on a file system that is writable",
  errno.EACCES: "choose a --workdir that you may write to",
  errno.EPERM: "choose a --workdir that you may write to",
  errno.EEXIST: "a file is in its place; choose another --workdir",
  errno.ENOTDIR: "a file is in its place; choose another --workdir",
  errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def explain(error: OSError) -> str:
  """The file, the error and advice, in one line."""
  what = error.strerror or " ".join(str(error).split())
  where = "" if error.filename is None else f"{os.fspath(error.filename)}: "
  advice = _REMEDIES.get(error.errno)
  return f"{where}{what}" + (f"; {advice}" if advice else "")


def prepare(
  workdir: Path, bucket: str | None = None, *, accept_other_data: bool = False
) -> None:
  """Creates the workdir, and checks that it and the bucket are writable.

  Args:
    workdir: of the run.
    bucket: location of the checkpoints: "gs://bucket/run", "s3://...", or a
      folder. With it, the workdir may be local to the first host. None means
      the bucket of an earlier start, or the workdir.
    accept_other_data: makes `claim` warn about changed contents instead of
      raising.

  Raises ValueError, with advice, if one of them is not writable, or if the
  workdir is a URL. The bucket is stored for later starts only if it is
  writable.
  """
  _require_folder(os.fspath(workdir))
  path = pathlib.Path(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    _probe(path)
    if accept_other_data and (path / _CONTENTS).exists():
      os.replace(path / _CONTENTS, path / _ACCEPTED)
  except OSError as error:
    raise ValueError(f"cannot write to --workdir: {explain(error)}") from error
  note = path / _ELSEWHERE
  place = bucket or (note.read_text().strip() if note.exists() else None)
  if place is None:
    return
  try:
    _probe_place(place)
  except Exception as error:  # Each kind of bucket raises its own.
    text = " ".join(str(error).split())[:300]
    advice = "check the name, the network and your credentials"
    if not bucket:
      advice += f", or delete {note} to continue without it"
    raise ValueError(f"cannot write to {place}: {text}; {advice}") from error
  if bucket:
    note.write_text(bucket.rstrip("/") + "\n")


def checkpoints(workdir: Path) -> str:
  """The folder that holds the checkpoints, or its URL in a bucket."""
  path = pathlib.Path(workdir).absolute()
  if (path / _ELSEWHERE).exists():
    return (path / _ELSEWHERE).read_text().strip() + f"/{CHECKPOINTS}"
  return str(path / CHECKPOINTS)


def is_remote(folder: str) -> bool:
  """Whether `folder` is the URL of a bucket."""
  return "://" in folder


def _require_folder(workdir: str) -> None:
  """Raises ValueError for a URL, which would become a local folder "gs:"."""
  # pathlib makes one slash of two.
  if url := re.match(r"([a-z][a-z0-9+.-]+):/+(.*)", workdir, re.IGNORECASE):
    scheme, rest = url.groups()
    raise ValueError(
      f"--workdir={workdir} is a URL, and a workdir is a folder: it is locked "
      "and appended to; choose a folder that all hosts share, and keep the "
      f"checkpoints in the bucket by --bucket={scheme}://{rest}"
    )


def require_space(folder: str, size: int, present: int) -> None:
  """Raises ValueError unless the disk has space for two checkpoints.

  Existing checkpoints count towards the two. Buckets are not checked.

  Args:
    folder: of the checkpoints.
    size: bytes of one checkpoint.
    present: number of existing checkpoints.
  """
  if is_remote(folder):
    return
  existing = pathlib.Path(folder)
  while not existing.exists():
    existing = existing.parent
  free, need = shutil.disk_usage(existing).free, size * max(1, 2 - present)
  if free < need:
    raise ValueError(
      f"{folder} has {free / 1e9:,.3g} GB free and needs {need / 1e9:,.3g} GB "
      f"for checkpoints of {size / 1e9:,.3g} GB; free some space, or choose "
      "another --workdir or a --bucket"
    )


def claim(
  workdir: Path, config: Mapping[str, Any], contents: Mapping[str, str] = {}
) -> None:
  """Locks the workdir for this process, and checks that it has this config.

  The first start writes config.json, contents.json and machine.json; later
  starts compare with them. A resumed run may change what PERIODS, EXECUTION and
  PATH name. If its results may then differ in their last bits, that is logged.

  Args:
    workdir: of the run.
    config: of the run.
    contents: checksums of what the config names by path, by section. All hosts
      of a job must pass the same.

  Raises ValueError if any other key or a checksum has changed, or if another
  process uses the workdir.
  """
  distributed.require_equal(contents)
  if not distributed.is_first():
    return
  path = pathlib.Path(workdir)
  path.mkdir(parents=True, exist_ok=True)
  _lock(path)
  new, machine = json.loads(json.dumps(dict(config), default=str)), _machine()
  accepted = _read(path / _ACCEPTED, {})
  known = accepted | _read(path / _CONTENTS, {})
  changes = describe_changes(_read(path / "config.json", new), new)
  for key, change in changes.items():
    parts = key.split(".")
    moved = parts[-1] == PATH and parts[0] in known.keys() & contents.keys()
    if not moved and not _is_one_of(key, PERIODS + EXECUTION):
      raise ValueError(
        f"{workdir} belongs to another config: {change}; choose another "
        "--workdir, or delete it to start over"
      )
  _check_contents(workdir, contents, known, accepted)
  rounding = [c for key, c in changes.items() if _is_one_of(key, EXECUTION)]
  rounding += describe_changes(
    _read(path / _MACHINE, machine), machine
  ).values()
  if rounding:
    logging.warning(
      "%s goes on in another way, so that results may differ in their last "
      "bits: %s",
      workdir,
      "; ".join(rounding),
    )
  write_json(path / "config.json", new)
  write_json(path / _CONTENTS, dict(contents))
  write_json(path / _MACHINE, machine)
  (path / _ACCEPTED).unlink(missing_ok=True)


def describe_changes(
  before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, str]:
  """Descriptions of the leaves that differ, by dotted key."""
  was, value = flatten(before), flatten(now)
  return {
    key: f"{key} was {was.get(key, 'absent')!r}, is "
    f"{value.get(key, 'absent')!r}"
    for key in sorted(was.keys() | value.keys())
    if was.get(key, "absent") != value.get(key, "absent")
  }


def _is_one_of(key: str, prefixes: Sequence[str]) -> bool:
  """Whether a dotted key is one of `prefixes`, or below one of them."""
  return any(key == p or key.startswith(f"{p}.") for p in prefixes)


def _check_contents(
  workdir: Path,
  contents: Mapping[str, str],
  known: Mapping[str, str],
  accepted: Mapping[str, str],
) -> None:
  """Raises ValueError if a checksum has changed; only warns if it is accepted.

  Args:
    workdir: of the run.
    contents: the checksums, by name.
    known: those of earlier starts.
    accepted: those of earlier starts that may have changed.
  """
  for name in sorted(known.keys() & contents.keys()):
    if known[name] == contents[name]:
      continue
    text = f"the {name} has changed since the run in {workdir} began"
    if name not in accepted:
      raise ValueError(
        f"{text}: its checksum was {known[name]:.12}, is {contents[name]:.12}; "
        "restore the old one, choose another --workdir, or continue with the "
        "new one by --accept_other_data"
      )
    logging.warning("%s; continuing with the new one", text)


def _machine() -> dict[str, Any]:
  """What the bits of results depend on, beside the config."""
  import jax

  return {
    "hosts": jax.process_count(),
    "devices": jax.device_count(),
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
  }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """The leaves of nested mappings by dotted key."""
  leaves = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      leaves |= flatten(value, f"{prefix}{key}.")
    else:
      leaves[prefix + key] = value
  return leaves


def _read(file: pathlib.Path, default: Mapping[str, Any]) -> dict[str, Any]:
  if not file.exists():
    return dict(default)
  try:
    value = json.loads(file.read_bytes())
    if not isinstance(value, dict):
      raise ValueError(f"expected a JSON object, got {type(value).__name__}")
  except ValueError as error:
    raise ValueError(
      f"{file} is damaged ({error}): restore a copy of it, or delete it; it is "
      "then written from the config of this command"
    ) from None
  return value


def write_json(file: pathlib.Path, value: Any) -> None:
  """Replaces a JSON file atomically."""
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


def _probe_place(place: str) -> None:
  """Checks that a bucket or folder is writable, within `BUCKET_TIMEOUT`."""
  failed: list[Exception] = []

  def write():
    try:
      _probe(_remote(place) if is_remote(place) else _local(place))
    except Exception as error:
      failed.append(error)

  writing = threading.Thread(target=write, daemon=True)
  writing.start()
  writing.join(BUCKET_TIMEOUT)
  if writing.is_alive():
    raise TimeoutError(f"no answer for {BUCKET_TIMEOUT:.0f} s")
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
    package = "'r1jax[gcs]'" if place.startswith("gs") else "s3fs"
    raise ValueError(
      f"this kind of bucket needs a package: pip install {package}"
    ) from error
  return path


def _lock(path: pathlib.Path) -> None:
  """Locks the workdir until this process ends."""
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
  except OSError:  # The file system has no locks.
    pass
  _LOCKS[name] = lock
