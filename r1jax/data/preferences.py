"""Loads what a reward model learns from: pairs of responses, or labels.

A row is a pair of responses, of which the first is preferred, or one response
and whether it is good, such as safe:

    {"id": "17", "prompt": "...", "chosen": "...", "rejected": "..."}
    {"id": "18", "prompt": "...", "response": "...", "label": true}

`prompt` is a text, or the messages of a conversation. A response is a text, or
messages, the last of which is the response. Without `prompt`, the messages of
`chosen` before the last are the prompt. `domain` and other fields are kept in
the metadata.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1jax.data import templates
from r1jax.data.shards import Row, Shards
from r1jax.types import Example

LABELS = {"safe": 1.0, "unsafe": 0.0}  # Texts for labels.


def load(*, path: str | Path, domain: str = "") -> "Preferences":
  """Returns the rows of a file or a folder; see `data.shards`.

  The answer of an example is the response that is preferred or labelled. Its
  metadata hold the `messages` of the prompt, and `rejected` or `label`, a
  float.

  Args:
    path: of the file or the folder.
    domain: of rows that name none.

  Raises FileNotFoundError, or ValueError, for a path without rows. Access to an
  example raises ValueError, which begins with "path:line", for a row that is
  neither a pair nor a labelled response.
  """
  if not str(path):
    raise ValueError(
      "dataset.path is not set; give a file or a folder of preferences, "
      "--config.dataset.path=PATH"
    )
  return Preferences(Shards(path), domain)


class Preferences(Sequence[Example]):
  """The rows of files, which are read on access."""

  def __init__(self, rows: Shards, domain: str):
    self._rows, self._domain = rows, domain

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Example:
    row = self._rows[index]
    try:
      return example_of(row, self._domain)
    except ValueError as error:
      raise ValueError(f"{row.where}: {error}") from None

  def checksum(self) -> str:
    """A checksum of the files."""
    return self._rows.checksum()


def example_of(row: Row, domain: str = "") -> Example:
  """Returns a row as an example; raises ValueError if it is none."""
  # In Parquet, a field that a row lacks is null.
  fields = {k: v for k, v in row.fields.items() if v is not None}
  name = "chosen" if "chosen" in fields else "response"
  pair = name == "chosen"
  for needed in (name, "rejected" if pair else "label"):
    if needed not in fields:
      raise ValueError(
        f"no field {needed!r}; a row has 'chosen' and 'rejected', or "
        f"'response' and 'label', and this one has {[*fields]}"
      )
  before, answer = _response(fields.pop(name), name)
  messages = _prompt(fields.pop("prompt", before))
  metadata = fields | {"messages": messages}
  if pair:
    metadata["rejected"] = _response(fields["rejected"], "rejected")[1]
  else:
    metadata["label"] = _label(fields["label"])
  return Example(
    prompt=messages[-1]["content"],
    answer=answer,
    domain=str(metadata.pop("domain", domain)),
    id=str(metadata.pop("id", row.where)),
    metadata=metadata,
  )


def _response(value: Any, name: str) -> tuple[list, str]:
  """Returns the messages before a response, and its text."""
  if isinstance(value, str):
    return [], value
  messages = _messages(value, name)
  if messages[-1]["role"] != "assistant":
    raise ValueError(f"the last message of {name!r} is not an answer")
  return messages[:-1], messages[-1]["content"]


def _prompt(value: Any) -> list[dict[str, Any]]:
  if isinstance(value, str):
    return templates.user_turn(value)
  messages = _messages(value, "prompt")
  if messages[-1]["role"] != "user":
    raise ValueError("the prompt does not end with a user's message")
  return messages


def _messages(value: Any, name: str) -> list[dict[str, Any]]:
  if not isinstance(value, list) or not value:
    raise ValueError(f"{name!r} must be a text or messages, got {value!r:.80}")
  if not all(isinstance(message, Mapping) for message in value):
    raise ValueError(f"{name!r} holds a message that is no object")
  messages = [
    {k: v for k, v in message.items() if v is not None} for message in value
  ]
  templates.check_messages(messages)
  return messages


def _label(value: Any) -> float:
  """Returns 1.0 for a good response and 0.0 for a bad one."""
  if isinstance(value, str) and value in LABELS:
    return LABELS[value]
  if isinstance(value, bool | int | float) and value in (0, 1):
    return float(value)
  raise ValueError(
    f"'label' must be true or false, 1 or 0, 'safe' or 'unsafe', got {value!r}"
  )
