"""The keys of a request, each read with its type and its range."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.tools.serve.errors import ApiError

SHOWN = 40  # Characters of an offending value that an error repeats.


def parse(body: bytes) -> dict[str, Any]:
  """The JSON object in the body of a request.

  Raises ApiError for anything else, also for what only Python's parser takes
  for JSON: NaN, Infinity, and halves of surrogate pairs, which are no text.
  """

  def refuse(constant: str):
    raise ValueError(f"{constant} is no JSON")

  try:
    value = json.loads(body, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False).encode()
  except (ValueError, RecursionError) as error:
    problem = type(error).__name__
    if isinstance(error, json.JSONDecodeError):
      problem = f"{error.msg} at character {error.pos}"
    raise ApiError(f"the body is not valid JSON: {problem}") from error
  if not isinstance(value, dict):
    raise ApiError("the body must be a JSON object")
  return value


def shown(value: Any) -> str:
  """A value as an error message repeats it: on one line, and short."""
  text = json.dumps(value)
  return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def is_integer(value: Any) -> bool:
  """Whether it is an integer, which true and false are not."""
  return isinstance(value, int) and not isinstance(value, bool)


def refusal(name: str, value: Any, expected: str) -> ApiError:
  """The error for a key whose value is another than expected."""
  return ApiError(
    f"{name} must be {expected}, got {shown(value)}",
    param=name.partition("[")[0],
  )


class Fields:
  """A request's keys; null is the same as none.

  Every method returns the value of a key, or the default without one, and
  raises ApiError for a value of another type or out of range.
  """

  def __init__(self, values: Mapping[str, Any]):
    """Nothing is read yet."""
    self._values = {k: v for k, v in values.items() if v is not None}
    self._read: set[str] = set()

  @property
  def ignored(self) -> list[str]:
    """The keys that nobody has read."""
    return sorted(self._values.keys() - self._read)

  def get(self, name: str, default: Any = None) -> Any:
    """The value, of any type."""
    self._read.add(name)
    return self._values.get(name, default)

  def integer(
    self, name: str, default: int | None, low: int, high: int
  ) -> int | None:
    """An integer from `low` to `high`."""
    value = self.get(name)
    if value is None:
      return default
    if not is_integer(value) or not low <= value <= high:
      raise refusal(name, value, f"an integer from {low} to {high}")
    return value

  def number(self, name: str, default: float, low: float, high: float) -> float:
    """A number from `low` to `high`."""
    value = self.get(name)
    if value is None:
      return default
    is_number = is_integer(value) or isinstance(value, float)
    if not is_number or not low <= value <= high or not math.isfinite(value):
      raise refusal(name, value, f"a number from {low:g} to {high:g}")
    return float(value)

  def boolean(self, name: str, default: bool = False) -> bool:
    """Either true or false."""
    value = self.get(name, default)
    if not isinstance(value, bool):
      raise refusal(name, value, "true or false")
    return value

  def object(self, name: str) -> "Fields":
    """The keys of an object; an empty one without it."""
    value = self.get(name, {})
    if not isinstance(value, dict):
      raise refusal(name, value, "an object")
    return Fields(value)

  def list(self, name: str, most: int) -> Sequence[Any]:
    """A list of at most `most` values; empty without it."""
    value = self.get(name, [])
    if not isinstance(value, list) or len(value) > most:
      raise refusal(name, value, f"a list of at most {most} values")
    return value

  def only(self, name: str, *values: Any) -> None:
    """Raises ApiError for any value but `values`: others are not supported.

    So a request that asks for what would change its answer never gets another
    answer than it asked for.
    """
    value = self.get(name)
    if value is None:
      return
    if not any(type(value) is type(v) and value == v for v in values):
      listed = " or ".join(map(json.dumps, values)) or "absent"
      raise ApiError(
        f"{name} {shown(value)} is not supported; it must be {listed}",
        param=name,
        code="unsupported_parameter",
      )
