"""Datasets from users' modules: `dataset=dict(name="my_module:load")`."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from r1jax.types import Example

TEXTS = ("prompt", "answer", "domain", "id")  # Fields of an Example.


def dataset(function: Callable) -> Callable[..., Sequence[Example]]:
  """Returns a user's loader with a check of its result.

  The loader may return any iterable of Examples. A sequence with random access
  is used as it is. Other iterables are read into a list. In lists, examples
  without an id get one.

  The returned loader raises ValueError if the result is not a dataset.
  """
  name = f"{function.__module__}:{function.__qualname__}"

  @functools.wraps(function)
  def load(**arguments) -> Sequence[Example]:
    examples = function(**arguments)
    is_sequence = hasattr(examples, "__getitem__") and hasattr(
      examples, "__len__"
    )
    if isinstance(examples, dict | str) or not (
      is_sequence or isinstance(examples, Iterable)
    ):
      raise ValueError(f"{name} must return Examples, got {examples!r:.80}")
    if isinstance(examples, list | tuple) or not is_sequence:
      examples = [
        _checked(example, f"{name}:{i}") for i, example in enumerate(examples)
      ]
    if not len(examples):
      raise ValueError(f"{name} returned no examples")
    _checked(examples[0], f"{name}:0")
    return examples

  # Configs are checked against the signature, and pass all arguments by name.
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
  """Returns an example with an id; raises ValueError if it is not valid."""
  if not isinstance(example, Example):
    raise ValueError(f"{where} must be an r1jax.Example, got {example!r:.80}")
  for name in TEXTS:
    value = getattr(example, name)
    if not isinstance(value, str):
      raise ValueError(f"{where}: {name} must be text, got {value!r:.80}")
  return example if example.id else example._replace(id=where)
