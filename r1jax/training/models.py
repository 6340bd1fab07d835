"""The model that a run begins with, as the section `model` of its config says.

MODELS are the ways to begin.
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

LARGE = 1_000_000_000  # Bytes of parameters whose loading is worth a bar.


def pretrained(
  *,
  path: str,
  dtype: Any = "float32",
  compute_dtype: Any = "float32",
  preset_name: str | None = None,
  how: Mapping[str, Any] = {},
) -> tuple[ModelConfig, Params]:
  """The model in a directory of Hugging Face layout.

  Loading a large one shows its progress on standard error.

  Args:
    path: of the directory.
    dtype: of the parameters.
    compute_dtype: of activations and matmuls.
    preset_name: a preset that the directory must hold; None takes any.
    how: fields of `ModelConfig` that say how it runs.

  Raises ValueError if the directory holds another model than the preset.
  """
  console = Console(file=sys.stderr)

  def tell(done: int, total: int) -> None:
    if total > LARGE:
      console.megabytes(done, total)

  try:
    found, params = hf.load(path, dtype=dtype, progress=tell)
  finally:
    console.close()
  if preset_name is not None:
    wanted = preset(preset_name)
    found = runs(
      found, **{name: getattr(wanted, name) for name in RUNTIME_FIELDS}
    )
    if found != wanted:
      raise ValueError(f"the model in {path} is not {preset_name!r}")
  return runs(found, compute_dtype=compute_dtype, **how), params


def fresh(
  *,
  preset_name: str,
  seed: int,
  vocab_size: int,
  compute_dtype: Any = "float32",
  how: Mapping[str, Any] = {},
) -> tuple[ModelConfig, Params]:
  """A published architecture with random weights, for `vocab_size` tokens."""
  config = runs(
    preset(preset_name, vocab_size=vocab_size),
    compute_dtype=compute_dtype,
    **how,
  )
  model = transformer.Transformer(config)
  return config, transformer.init(model, jax.random.key(seed))


def runs(config: ModelConfig, **how) -> ModelConfig:
  """The same model, run in another way; see the end of `ModelConfig`.

  Raises ValueError for a field that says what the model is.
  """
  for name in how.keys() - set(RUNTIME_FIELDS):
    raise ValueError(
      f"{name!r} is not how a model runs: {', '.join(RUNTIME_FIELDS)}"
    )
  return replace(config, **how)


MODELS = {"pretrained": pretrained, "fresh": fresh}


def load(name: str, **kwargs) -> tuple[ModelConfig, Params]:
  """The model that a config's section names, and its parameters."""
  return MODELS[name](**kwargs)


def architecture(name: str, **kwargs) -> ModelConfig:
  """The model that a config's section names; no parameter is read or made."""
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
  return runs(sizes, **how)
