"""Looks up a function by name and binds the settings of a config section."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from r1jax.config import unknown


def choose(
  what: str, table: Mapping[str, Callable], section: Mapping[str, Any]
) -> Callable:
  """`table[section["name"]]` with the rest of the section bound to it.

  `what` names the section in errors. Raises ValueError for a name that is not
  in the table, for keyword arguments that the function does not take, and for
  required ones that are missing.
  """
  settings = dict(section)
  if "name" not in settings:
    raise ValueError(f"{what} has no 'name'; there is {', '.join(table)}")
  name = settings.pop("name")
  if name not in table:
    raise ValueError(unknown(what, name, table))
  keywords = {
    key: parameter
    for key, parameter in inspect.signature(table[name]).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
  }
  for key in settings:
    if key not in keywords:
      raise ValueError(unknown(f"key of {what} {name!r}:", key, keywords))
  for key, parameter in keywords.items():
    if parameter.default is parameter.empty and key not in settings:
      raise ValueError(f"{what} {name!r} needs the key {key!r}")
  return functools.partial(table[name], **settings)


def positive(what: str, **values: float | int) -> None:
  """Raises ValueError unless every value is above 0."""
  for key, value in values.items():
    if not value > 0:
      raise ValueError(f"{what}: {key} is {value}, but must be above 0")
