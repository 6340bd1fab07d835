"""Datasets of users' own modules: `dataset=dict(name="my_module:load")`."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from r1jax.types import Example

TEXTS = ("prompt", "answer", "domain", "id")  # Fields of an Example.


def dataset(function: Callable) -> Callable[..., Sequence[Example]]:
  """The function that loads a dataset, with a check of what it returns.

  It may return any iterable of Examples. One with random access is taken as it
  is; others are read into a list. In lists, examples without an id get one.

  The result raises ValueError for what is no dataset.
  """
  name = f"{function.__module__}:{function.__qualname__}"

  @functools.wraps(function)
  def load(**arguments) -> Sequence[Example]:
    found = function(**arguments)
    is_sequence = hasattr(found, "__getitem__") and hasattr(found, "__len__")
    if isinstance(found, dict | str) or not (
      is_sequence or isinstance(found, Iterable)
    ):
      raise ValueError(f"{name} returned {found!r:.80}, and no Examples")
    if isinstance(found, list | tuple) or not is_sequence:
      found = [
        _checked(example, f"{name}:{i}") for i, example in enumerate(found)
      ]
    if not len(found):
      raise ValueError(f"{name} returned no examples")
    _checked(found[0], f"{name}:0")
    return found

  # A config is checked against its arguments, which are all given by name.
  load.__signature__ = inspect.Signature(
    [
      parameter
      if parameter.kind is parameter.VAR_KEYWORD
      else parameter.replace(kind=parameter.KEYWORD_ONLY)
      for parameter in inspect.signature(function).parameters.values()
    ]
  )
  return load


def _checked(example: Any, where: str) -> Example:
  """The example, with an id; raises ValueError for what is none."""
  if not isinstance(example, Example):
    raise ValueError(f"{where} is {example!r:.80}, and no r1jax.Example")
  for name in TEXTS:
    value = getattr(example, name)
    if not isinstance(value, str):
      raise ValueError(f"{where}: its {name} {value!r:.80} is no text")
  return example if example.id else example._replace(id=where)
