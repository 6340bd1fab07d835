"""From a file of experiments/ to a config that is known to fit its loop.

A section of a config is the keyword arguments of one function, and a loop's
module says of which one in its SECTIONS:

    SECTIONS = {"loss": grpo_loss, "dataset": data.DATASETS, ...}

A table stands for the entry that the section's `name` picks, of a `Table` also
a function of the user's own module, "my_module:function"; without a `name`, the
section's keys are themselves names in it, or labels of sections that have a
`name` of their own. FIELDS, beside it, are the plain
values that the loop reads, and `check(config)` its rules across sections.
"""

import dataclasses
import difflib
import errno
import importlib
import importlib.util
import inspect
import os
import pathlib
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

import ml_collections

LOOPS = {  # Imported on use: one loop must not wait for another's imports.
  "grpo": "r1jax.training.grpo",
  "sft": "r1jax.training.sft",
}


def loop(name: str) -> ModuleType:
  """The module of a loop: `train(config, workdir)`, SECTIONS, FIELDS."""
  if name not in LOOPS:
    raise ValueError(unknown("loop", name, LOOPS))
  return importlib.import_module(LOOPS[name])


def load(path: str, overrides: Mapping[str, Any] = {}):
  """The locked config of "experiments/demo.py" or "...demo.py:variant".

  `overrides` replaces values by dotted key, as `--config.key=` does.
  """
  file, _, variant = path.partition(":")
  module = _execute(file)
  config = _guarded(file, module.get_config, *([variant] if variant else []))
  config.lock()
  override(config, overrides)
  return config


def sweep(path: str) -> list[dict[str, Any]]:
  """The overrides that the `sweep()` of a config file yields, if it has one."""
  file = path.partition(":")[0]
  function = getattr(_execute(file), "sweep", tuple)
  return [dict(setting) for setting in _guarded(file, function)]


def resolve(path: str) -> Callable:
  """The function that "module:function" names; its module is imported.

  Raises ValueError, in one line, if there is none.
  """
  try:
    function = pkgutil.resolve_name(path)
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(
      f"{path!r} is no function of a module that can be imported: {error}"
    ) from None
  if not callable(function):
    raise ValueError(f"{path!r} is {function!r:.80}, and no function")
  return function


class Table(dict):
  """Functions by name; users' own are there too, by "module:function"."""

  def __init__(
    self, entries: Mapping, adapt: Callable[[Callable], Any] = lambda f: f
  ):
    """`adapt` makes an entry of a user's function."""
    super().__init__(entries)
    self._adapt = adapt

  def __contains__(self, name: Any) -> bool:
    return super().__contains__(name) or ":" in str(name)

  def __missing__(self, name: Any) -> Any:
    if ":" not in str(name):
      raise KeyError(name)
    return self._adapt(resolve(name))


def override(
  config: ml_collections.ConfigDict, overrides: Mapping[str, Any]
) -> None:
  """Replaces values by dotted key; unknown keys are refused."""
  for key in overrides:
    find(config, key)
  config.update_from_flattened_dict(dict(overrides))


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError unless every section fits the function that reads it."""
  if "loop" not in config:
    raise ValueError("the config does not say its 'loop'")
  module = loop(config.loop)
  sections = module.SECTIONS
  fields = getattr(module, "FIELDS", None)
  plain = config.to_dict()
  known = {"loop", *sections, *(fields or ())}
  for key, value in plain.items():
    is_section = isinstance(value, dict)
    if key not in known and (is_section or fields is not None):
      raise ValueError(unknown("config key", key, known))
    if is_section and key not in sections:
      raise ValueError(
        f"config key {key!r} is a section, but should be a value"
      )
  for key in known - plain.keys():
    raise ValueError(f"config key {key!r} is missing")
  for key, reader in sections.items():
    if not isinstance(plain[key], dict):
      raise ValueError(f"config key {key!r} should be a section (a dict)")
    bind(key, plain[key], reader)
  if hasattr(module, "check"):
    module.check(config)


def bind(
  path: str, section: Mapping[str, Any], reader: Callable | Mapping[str, Any]
) -> None:
  """Raises ValueError unless `reader(**section)` has no wrong or missing key.

  Keyword-only parameters without a default must be there; positional ones may
  be what the loop passes itself. A reader that makes a dataclass is called, so
  that values are checked too.
  """
  if isinstance(reader, Mapping):
    if "name" in section:
      rest = dict(section)
      name = rest.pop("name")
      if name not in reader:
        raise ValueError(unknown(f"{path}.name", name, reader))
      bind(path, rest, reader[name])
      return
    for key, value in section.items():
      if isinstance(value, Mapping) and "name" in value:
        bind(f"{path}.{key}", value, reader)
        continue
      if key not in reader:
        raise ValueError(unknown("config key", key, reader, path))
      if isinstance(value, Mapping):
        bind(f"{path}.{key}", value, reader[key])
    return
  signature = inspect.signature(reader)
  makes = reader if inspect.isclass(reader) else signature.return_annotation
  forwards = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
  makes_dataclass = dataclasses.is_dataclass(makes) and (
    forwards or inspect.isclass(reader)
  )
  accepted, required, anything = set(), set(), False
  for name, parameter in signature.parameters.items():
    if parameter.kind is parameter.VAR_KEYWORD:
      anything = not makes_dataclass
      if makes_dataclass:
        accepted |= {field.name for field in dataclasses.fields(makes)}
    elif parameter.kind in (
      parameter.KEYWORD_ONLY,
      parameter.POSITIONAL_OR_KEYWORD,
    ):
      accepted.add(name)
      keyword_only = parameter.kind is parameter.KEYWORD_ONLY
      if parameter.default is parameter.empty and (
        keyword_only or makes_dataclass
      ):
        required.add(name)
  for key in section:
    if key not in accepted and not anything:
      raise ValueError(unknown("config key", key, accepted, path))
  for key in sorted(required - section.keys()):
    raise ValueError(f"config key '{path}.{key}' is missing")
  if makes_dataclass:
    try:
      reader(**section)
    except (TypeError, ValueError) as error:
      raise ValueError(f"config section {path!r}: {error}") from error


def unknown(kind: str, name: Any, known: Iterable[str], prefix="") -> str:
  """An error's text: "unknown <kind> 'x'; did you mean 'y'?"."""
  dotted = f"{prefix}." if prefix else ""
  known = sorted(map(str, known))
  text = f"unknown {kind} {dotted + str(name)!r}"
  if close := difflib.get_close_matches(str(name), known, 1):
    return f"{text}; did you mean {dotted + close[0]!r}?"
  return f"{text}; there is {', '.join(dotted + k for k in known) or 'none'}"


def one_line(error: BaseException) -> str:
  """What an exception says, without its line breaks."""
  if isinstance(error, FileNotFoundError) and error.filename is not None:
    if error.strerror == os.strerror(errno.ENOENT):
      return f"no file {os.fspath(error.filename)!r}"
    return f"{os.fspath(error.filename)}: {error.strerror}"
  return " ".join(str(error).split())


def find(config: ml_collections.ConfigDict, key: str) -> None:
  """Raises ValueError unless the dotted key exists."""
  node: Any = config
  done: list[str] = []
  for part in key.split("."):
    known = list(node.keys()) if hasattr(node, "keys") else []
    if part not in known:
      raise ValueError(unknown("config key", part, known, ".".join(done)))
    node = node[part]
    done.append(part)


def _execute(file: str) -> ModuleType:
  path = pathlib.Path(file)
  if not path.is_file():
    raise FileNotFoundError(f"no config file {file!r}")
  folder = str(path.parent.resolve())
  if folder not in sys.path:  # Modules beside it can be imported.
    sys.path.append(folder)
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if spec is None or spec.loader is None:
    raise ValueError(f"{file} is not a Python file")
  module = importlib.util.module_from_spec(spec)
  _guarded(file, spec.loader.exec_module, module)
  return module


def _guarded(file: str, function: Callable, *args):
  """Calls what a config file defines; its errors name their line."""
  try:
    return function(*args)
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename.endswith(file)]
    where = f"{file}:{lines[-1]}" if lines else file
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    raise ValueError(f"{where}: {kind}{one_line(error)}") from error
