"""The messages of a conversation, as clients write them."""

from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.data.templates import ROLES, Message
from r1jax.tools.serve.errors import ApiError
from r1jax.tools.serve.fields import shown

REASONING = ("reasoning_content", "reasoning")  # Clients read one or the other.
OTHER_NAMES = {"developer": "system"}  # OpenAI's newer name of a role.


def read_messages(values: Sequence[Any]) -> list[Message]:
  """Messages whose content is text; raises ApiError for what is no message.

  A thought that an answer is sent back with is kept under both of its names,
  for templates that read one. Keys that no template knows are left out.
  """
  if not values:
    raise _error("messages", values, "a list of at least one message")
  return [_message(f"messages[{i}]", value) for i, value in enumerate(values)]


def _message(name: str, value: Any) -> Message:
  if not isinstance(value, dict):
    raise _error(name, value, "an object")
  role = value.get("role")
  role = OTHER_NAMES.get(role, role) if isinstance(role, str) else role
  if role not in ROLES:
    raise _error(f"{name}.role", role, f"one of {', '.join(ROLES)}")
  calls = value.get("tool_calls") if role == "assistant" else None
  message = {"role": role, "content": value.get("content")}
  if calls:
    message["tool_calls"] = _calls(f"{name}.tool_calls", calls)
  if message["content"] is not None or not calls:
    message["content"] = _text(f"{name}.content", message["content"])
  for key in ("name", "tool_call_id"):
    if value.get(key) is not None:
      message[key] = _string(f"{name}.{key}", value[key])
  thoughts = [value[key] for key in REASONING if value.get(key) is not None]
  if role == "assistant" and thoughts:
    thought = _string(f"{name}.{REASONING[0]}", thoughts[0])
    message |= dict.fromkeys(REASONING, thought)
  return message


def _text(name: str, content: Any) -> str:
  """A content: a text, or a list of parts that are texts."""
  if isinstance(content, str):
    return content
  if not isinstance(content, list):
    raise _error(name, content, "a text or a list of texts")
  texts = []
  for i, part in enumerate(content):
    if not isinstance(part, dict) or part.get("type") != "text":
      kind = part.get("type") if isinstance(part, dict) else part
      raise _error(f"{name}[{i}].type", kind, '"text"')
    texts.append(_string(f"{name}[{i}].text", part.get("text")))
  return "".join(texts)


def _calls(name: str, calls: Any) -> list[Mapping[str, Any]]:
  """Tool calls of an earlier answer."""
  if not isinstance(calls, list):
    raise _error(name, calls, "a list")
  for i, call in enumerate(calls):
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
      raise _error(f"{name}[{i}]", call, 'an object with a "function"')
    _string(f"{name}[{i}].type", call.get("type"))
    for key in ("name", "arguments"):
      _string(f"{name}[{i}].function.{key}", function.get(key))
  return calls


def _string(name: str, value: Any) -> str:
  if not isinstance(value, str):
    raise _error(name, value, "a text")
  return value


def _error(name: str, value: Any, expected: str) -> ApiError:
  return ApiError(
    f"{name} must be {expected}, got {shown(value)}", param="messages"
  )
