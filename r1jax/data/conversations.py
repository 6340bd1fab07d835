"""Loads conversations to imitate, from files that are larger than memory.

    dataset=dict(name="conversations", path="accepted/")

A row is one conversation:

    {"id": "gsm8k:17/3", "domain": "math", "weight": 1.0, "messages": [
      {"role": "user", "content": "What is 17 + 25?"},
      {"role": "assistant", "content": "<think>\\n...\\n</think>\\n\\n42"}]}

Only `messages` is required. `weight` is that of each learned token of the
conversation in the loss, 1 by default. An assistant's message may have a
`weight` of its own, by which that is multiplied; 0 means that the message is
read but not learned. All other fields are kept in the metadata.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1jax.data import templates
from r1jax.data.shards import Row, Shards
from r1jax.types import Example


def load(*, path: str | Path, domain: str = "") -> "Conversations":
  """Returns the conversations of a file or a folder; see `data.shards`.

  The prompt of an example is the last question, its answer the last answer, and
  `metadata["messages"]` the whole conversation.

  Args:
    path: of the file or the folder.
    domain: of conversations that name none.

  Raises FileNotFoundError, or ValueError, for a path without rows. Access to an
  example raises ValueError, which begins with "path:line", if its row is not a
  conversation that ends with an answer.
  """
  if not str(path):
    raise ValueError(
      "dataset.path is not set; give a file or a folder of conversations, "
      "--config.dataset.path=PATH"
    )
  return Conversations(Shards(path), domain)


class Conversations(Sequence[Example]):
  """The conversations in the rows of files, which are read on access."""

  def __init__(self, rows: Shards, domain: str):
    self.rows, self._domain = rows, domain

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Example:
    row = self.rows[index]
    try:
      return _example(row, self._domain)
    except ValueError as error:
      raise ValueError(f"{row.where}: {error}") from None

  def checksum(self) -> str:
    """A checksum of the files."""
    return self.rows.checksum()


def _example(row: Row, domain: str) -> Example:
  """Returns a row as an example; raises ValueError if it is none."""
  # In Parquet, a field that a row or a message lacks is null.
  fields = {k: v for k, v in row.fields.items() if v is not None}
  messages = fields.get("messages")
  if not isinstance(messages, list) or not all(
    isinstance(message, Mapping) for message in messages
  ):
    raise ValueError(
      f"'messages' must be a list of objects, got {messages!r:.80}; the row "
      f"has {[*fields]}"
    )
  messages = [
    {k: v for k, v in message.items() if v is not None} for message in messages
  ]
  templates.check_messages(messages)
  roles = [message["role"] for message in messages]
  if not roles or roles[-1] != "assistant":
    raise ValueError("the conversation does not end with an answer")
  for i, message in enumerate(messages):
    if message.get("tool_calls"):
      raise ValueError(f"message {i} calls a tool, which is not supported")
    if "weight" in message:
      _check_weight(message["weight"], f"weight of message {i}")
      if message["role"] != "assistant":
        raise ValueError(f"message {i} has a weight, but is not an answer")
  _check_weight(fields.get("weight", 1.0), "weight")
  last = max((i for i, role in enumerate(roles) if role == "user"), default=-1)
  return Example(
    prompt="" if last < 0 else messages[last]["content"],
    answer=messages[-1]["content"],
    domain=str(fields.get("domain", domain)),
    id=str(fields.get("id", row.where)),
    metadata=fields | {"messages": messages},
  )


def _check_weight(weight: Any, name: str) -> None:
  is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
  if not is_number or not 0 <= weight < math.inf:
    raise ValueError(f"{name} must be a number of at least 0, got {weight!r}")
