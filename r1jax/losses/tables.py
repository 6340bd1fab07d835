"""From a config's name and keyword arguments to the function they stand for."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def choose(
  what: str, table: Mapping[str, Callable], section: Mapping[str, Any]
) -> Callable:
  """The function that `section["name"]` names in `table`, the rest bound to it.

  Raises ValueError for a name that the table does not hold, and for keyword
  arguments that its function does not take or cannot do without. `what` is what
  the error calls the section.
  """
  settings = dict(section)
  if "name" not in settings:
    raise ValueError(f"{what} has no 'name'; there is {', '.join(table)}")
  name = settings.pop("name")
  if name not in table:
    raise ValueError(_unknown(what, name, table))
  keywords = {
    key: parameter
    for key, parameter in inspect.signature(table[name]).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
  }
  for key in settings:
    if key not in keywords:
      raise ValueError(_unknown(f"key of {what} {name!r}:", key, keywords))
  for key, parameter in keywords.items():
    if parameter.default is parameter.empty and key not in settings:
      raise ValueError(f"{what} {name!r} needs the key {key!r}")
  return functools.partial(table[name], **settings)


def positive(what: str, **values: float | int) -> None:
  """Raises ValueError unless every value is above 0."""
  for key, value in values.items():
    if not value > 0:
      raise ValueError(f"{what}: {key} is {value}, but must be above 0")


def _unknown(what: str, name: Any, known: Iterable[str]) -> str:
  known = list(known)
  close = difflib.get_close_matches(str(name), known, 1)
  hint = (
    f"did you mean {close[0]!r}?"
    if close
    else (f"there is {', '.join(known) or 'none'}")
  )
  return f"unknown {what} {name!r}; {hint}"
