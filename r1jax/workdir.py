"""The folder of a run: whose it is, and that nobody else writes to it."""

import fcntl
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from r1jax import hosts

Path = str | os.PathLike

_LOCKS: dict[str, int] = {}  # File descriptors, held until the process ends.


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
  if not hosts.is_first():
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
