"""Configs: loading files of experiments/, overrides, and checks.

A section of a config is the keyword arguments of one function. The module of a
loop maps sections to functions:

    SECTIONS = {"loss": grpo_loss, "dataset": data.DATASETS, ...}

If the value is a table of functions, the `name` in the section selects one; in
a `Table`, the name may also be "my_module:function", from a module of the user.
Without a `name`, the keys of the section are names in the table, or labels of
subsections that have a `name` of their own. A section in the module's OPTIONAL
may be None. The module also lists the values that are not sections, in FIELDS,
and defines `check(config)` for rules across sections.
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

LOOPS = {  # Imported on use, so that no loop waits for the imports of another.
  "code_tests": "r1jax.training.code_tests",
  "evaluate": "r1jax.training.evaluate",
  "generate": "r1jax.training.generate",
  "grpo": "r1jax.training.grpo",
  "pipeline": "r1jax.training.pipeline",
  "reward_model": "r1jax.training.reward_model",
  "sft": "r1jax.training.sft",
}


def loop(name: str) -> ModuleType:
  """The module of a loop, with `train(config, workdir)`, SECTIONS and FIELDS.

  Raises ValueError for an unknown name.
  """
  if name not in LOOPS:
    raise ValueError(unknown("loop", name, LOOPS))
  return importlib.import_module(LOOPS[name])


def load(path: str, overrides: Mapping[str, Any] = {}):
  """The locked config in a file "experiments/demo.py" or "...demo.py:variant".

  `overrides` maps dotted keys to values, like `--config.key=value`.
  """
  file, _, variant = path.partition(":")
  module = _execute(file)
  config = _guarded(file, module.get_config, *([variant] if variant else []))
  config.lock()
  override(config, overrides)
  return config


def sweep(path: str) -> list[dict[str, Any]]:
  """The overrides that `sweep()` of a config file yields; [] without one."""
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
  """Replaces values by dotted key; raises ValueError for unknown keys."""
  for key in overrides:
    find(config, key)
  config.update_from_flattened_dict(dict(overrides))


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError unless every section binds to its function.

  It also raises for unknown and missing keys, and calls `check` of the loop.
  """
  if "loop" not in config:
    raise ValueError(
      f"config key 'loop' is missing; set it to one of {', '.join(LOOPS)}"
    )
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
    if plain[key] is None and key in getattr(module, "OPTIONAL", ()):
      continue
    if not isinstance(plain[key], dict):
      raise ValueError(f"config key {key!r} should be a section (a dict)")
    bind(key, plain[key], reader)
  if hasattr(module, "check"):
    module.check(config)


def bind(
  path: str, section: Mapping[str, Any], reader: Callable | Mapping[str, Any]
) -> None:
  """Raises ValueError if `reader(**section)` has an unknown or missing key.

  Keyword-only parameters without a default are required; positional parameters
  may be passed by the loop. If `reader` constructs a dataclass, it is called to
  check the values too.

  Args:
    path: dotted key of the section, for errors.
    section: of a config.
    reader: a function, or a table of functions by name.
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
  result = reader if inspect.isclass(reader) else signature.return_annotation
  forwards = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
  makes_dataclass = dataclasses.is_dataclass(result) and (
    forwards or inspect.isclass(reader)
  )
  accepted, required, accepts_any = set(), set(), False
  for name, parameter in signature.parameters.items():
    if parameter.kind is parameter.VAR_KEYWORD:
      accepts_any = not makes_dataclass
      if makes_dataclass:
        accepted |= {field.name for field in dataclasses.fields(result)}
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
    if key not in accepted and not accepts_any:
      raise ValueError(unknown("config key", key, accepted, path))
  for key in sorted(required - section.keys()):
    raise ValueError(f"config key '{path}.{key}' is missing")
  if makes_dataclass:
    try:
      reader(**section)
    except (TypeError, ValueError) as error:
      raise ValueError(f"config section {path!r}: {error}") from error


def unknown(kind: str, name: Any, known: Iterable[str], prefix="") -> str:
  """An error text: "unknown <kind> 'x'; did you mean 'y'?".

  Without a similar name in `known`, it lists all of them. `prefix` is the
  dotted key before `name`.
  """
  dotted = f"{prefix}." if prefix else ""
  known = sorted(map(str, known))
  text = f"unknown {kind} {dotted + str(name)!r}"
  if close := difflib.get_close_matches(str(name), known, 1):
    return f"{text}; did you mean {dotted + close[0]!r}?"
  return f"{text}; there is {', '.join(dotted + k for k in known) or 'none'}"


def one_line(error: BaseException) -> str:
  """The message of an exception, without line breaks."""
  if isinstance(error, FileNotFoundError) and error.filename is not None:
    if error.strerror == os.strerror(errno.ENOENT):
      return f"no file {os.fspath(error.filename)!r}"
    return f"{os.fspath(error.filename)}: {error.strerror}"
  return " ".join(str(error).split())


def find(config: ml_collections.ConfigDict, key: str) -> None:
  """Raises ValueError unless the dotted key exists."""
  node: Any = config
  parents: list[str] = []
  for part in key.split("."):
    known = list(node.keys()) if hasattr(node, "keys") else []
    if part not in known:
      raise ValueError(unknown("config key", part, known, ".".join(parents)))
    node = node[part]
    parents.append(part)


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
  """Calls a function of a config file; its errors name the file and line."""
  try:
    return function(*args)
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename.endswith(file)]
    where = f"{file}:{lines[-1]}" if lines else file
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    raise ValueError(f"{where}: {kind}{one_line(error)}") from error
