"""Records of artefacts: what made a folder, from which inputs.

A record is the content of FOLDER/artefact.json; see `training.pipeline`.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from r1jax.runtime import workdir as workdirs

RECORD = "artefact.json"


def read(folder: pathlib.Path) -> dict[str, Any]:
  """The record of a stage; {} if it was never begun.

  Raises ValueError for a damaged record.
  """
  file = folder / RECORD
  if not file.exists():
    return {}
  try:
    return json.loads(file.read_bytes())
  except ValueError as error:
    raise ValueError(
      f"{file} is damaged ({error}); delete {folder} to run the stage again"
    ) from None


def checksum(
  path: pathlib.Path, known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """SHA-256, size and time of a file, or of all files below a folder.

  The SHA-256 covers contents, and names relative to the path.

  Args:
    path: of the file or folder.
    known: what this function returned earlier. Files of the same total size
      that have not been written since are not read again.
  """
  files = [path]
  if path.is_dir():
    files = sorted(file for file in path.rglob("*") if file.is_file())
  stats = [file.stat() for file in files]
  facts = {
    "files": len(files),
    "bytes": sum(stat.st_size for stat in stats),
    "modified_ns": max((stat.st_mtime_ns for stat in stats), default=0),
  }
  if known and facts == {key: known.get(key) for key in facts}:
    return dict(known)
  digest = hashlib.sha256()
  for file in files:
    with open(file, "rb") as stream:
      content = hashlib.file_digest(stream, "sha256").hexdigest()
    digest.update(f"{file.relative_to(path)} {content}\n".encode())
  return {"sha256": digest.hexdigest()} | facts


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """What has changed between two records, in words; [] if nothing has.

  Periods and limits of a stage, and the way in which it is computed, may
  change on a resume (see `workdir.claim`); here they make another artefact.
  """
  changes = [
    *workdirs.describe_changes(before["config"], now["config"]).values()
  ]
  was = {key: each["sha256"] for key, each in before["inputs"].items()}
  for key, each in now["inputs"].items():
    if was.get(key) != each["sha256"]:
      changes.append(f"its input {each['path']} ({key}) has changed")
  for key in before["inputs"].keys() - now["inputs"].keys():
    changes.append(f"it reads no {key} any more")
  return changes
