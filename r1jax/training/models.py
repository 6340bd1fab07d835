"""The initial model of a run, from the section `model` of its config.

MODELS is the table of the functions that make one.
"""

import sys
from collections.abc import Mapping
from typing import Any

import jax

from r1jax import hf
from r1jax.hf import config as configs
from r1jax.models import transformer
from r1jax.models.config import RUNTIME_FIELDS, ModelConfig, replace
from r1jax.models.presets import preset
from r1jax.runtime.console import Console
from r1jax.types import Params

LARGE = 1_000_000_000  # Bytes of parameters from which on loading is shown.


def pretrained(
  *,
  path: str,
  dtype: Any = "float32",
  compute_dtype: Any = "float32",
  preset_name: str | None = None,
  how: Mapping[str, Any] = {},
) -> tuple[ModelConfig, Params]:
  """The config and parameters of a model in a Hugging Face directory.

  The progress of loading a large model is shown on standard error.

  Args:
    path: the directory.
    dtype: of the parameters.
    compute_dtype: of activations and matmuls.
    preset_name: the preset that the model must match; None accepts any model.
    how: fields of `ModelConfig` that affect execution only; see `HOW`.

  Raises ValueError if the model does not match the preset.
  """
  console = Console(file=sys.stderr)

  def progress(done: int, total: int) -> None:
    if total > LARGE:
      console.megabytes(done, total)

  try:
    config, params = hf.load(path, dtype=dtype, progress=progress)
  finally:
    console.close()
  if preset_name is not None:
    expected = preset(preset_name)
    execution = {name: getattr(expected, name) for name in RUNTIME_FIELDS}
    config = with_execution(config, **execution)
    if config != expected:
      raise ValueError(f"the model in {path} is not {preset_name!r}")
  return with_execution(config, compute_dtype=compute_dtype, **how), params


def fresh(
  *,
  preset_name: str,
  seed: int,
  vocab_size: int,
  compute_dtype: Any = "float32",
  how: Mapping[str, Any] = {},
) -> tuple[ModelConfig, Params]:
  """The config and random parameters of a preset, for `vocab_size` tokens."""
  config = with_execution(
    preset(preset_name, vocab_size=vocab_size),
    compute_dtype=compute_dtype,
    **how,
  )
  model = transformer.Transformer(config)
  return config, transformer.init(model, jax.random.key(seed))


def with_execution(config: ModelConfig, **how) -> ModelConfig:
  """The config with other values of fields that affect execution only.

  Raises ValueError for a field that is not in `RUNTIME_FIELDS`: it would change
  the model.
  """
  for name in how.keys() - set(RUNTIME_FIELDS):
    raise ValueError(
      f"{name!r} is not how a model runs: {', '.join(RUNTIME_FIELDS)}"
    )
  return replace(config, **how)


MODELS = {"pretrained": pretrained, "fresh": fresh}


def load(name: str, **kwargs) -> tuple[ModelConfig, Params]:
  """The config and parameters of the model that a config section describes."""
  return MODELS[name](**kwargs)


def architecture(name: str, **kwargs) -> ModelConfig:
  """The config of the model that a config section describes.

  No parameters are read or made. Raises ValueError for an unknown `name`.
  """
  if name not in MODELS:
    raise ValueError(
      f"unknown model {name!r}; there is {', '.join(sorted(MODELS))}"
    )
  how = {"compute_dtype": kwargs.get("compute_dtype", "float32")}
  how |= kwargs.get("how", {})
  if name == "fresh":
    sizes = preset(kwargs["preset_name"], vocab_size=kwargs["vocab_size"])
  elif kwargs.get("preset_name"):
    sizes = preset(kwargs["preset_name"])
  else:
    sizes = configs.read(kwargs["path"])
  return with_execution(sizes, **how)
