"""The model that a run starts from, by the section `model` of its config.

MODELS is the table of the functions that describe one.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from r1jax import config as configs
from r1jax import hf
from r1jax.hf import config as released
from r1jax.models import transformer
from r1jax.models.config import RUNTIME_FIELDS, ModelConfig, replace
from r1jax.models.presets import preset
from r1jax.models.weights import logical_axes
from r1jax.runtime.console import Console
from r1jax.training import lora
from r1jax.types import Params

LARGE = 1_000_000_000  # Bytes of parameters from which on loading is shown.


class Initial(NamedTuple):
  """A model whose parameters have not been read or made yet."""

  config: ModelConfig
  shapes: Params  # The shape and the dtype of each parameter.
  # make(shardings) returns the parameters on the devices; no host holds all of
  # them. make(None) returns them on this host.
  make: Callable[[Any], Params]
  axes: Any  # The logical axes of each parameter.
  # Of an adapter: what it is, and the model that it adapts.
  adapter: lora.Lora | None = None
  base: "Initial | None" = None


def pretrained(
  mtp: bool,
  /,
  *,
  path: str,
  dtype: Any = "float32",
  compute_dtype: Any = "float32",
  preset_name: str | None = None,
  how: Mapping[str, Any] = {},
) -> Initial:
  """The model in a Hugging Face directory.

  The progress of reading a large model is shown on standard error.

  Args:
    mtp: whether to keep the MTP blocks.
    path: the directory.
    dtype: of the parameters.
    compute_dtype: of activations and matmuls.
    preset_name: the preset that the model must match; None accepts any model.
    how: fields of `ModelConfig` that affect execution only.

  Raises ValueError if the model does not match the preset.
  """
  config, arrays = hf.open_model(path, dtype=dtype, mtp=mtp)
  if preset_name is not None:
    expected = preset(preset_name)
    if not mtp:
      expected = replace(expected, mtp_depth=0)
    execution = {name: getattr(expected, name) for name in RUNTIME_FIELDS}
    config = with_execution(config, **execution)
    if config != expected:
      raise ValueError(f"the model in {path} is not {preset_name!r}")
  return Initial(
    with_execution(config, compute_dtype=compute_dtype, **how),
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays),
    functools.partial(_read, arrays),
    logical_axes(config),
  )


def _read(arrays: Any, shardings: Any) -> Params:
  """The parameters that `hf.open_model` has opened; shows the progress."""
  console = Console(file=sys.stderr)

  def progress(done: int, total: int) -> None:
    if total > LARGE:
      console.megabytes(done, total)

  try:
    return hf.read(arrays, shardings, progress)
  finally:
    console.close()


def fresh(
  mtp: bool,
  /,
  *,
  preset_name: str,
  seed: int,
  vocab_size: int | None = None,
  compute_dtype: Any = "float32",
  how: Mapping[str, Any] = {},
) -> Initial:
  """A preset with random parameters.

  Args:
    mtp: whether to keep the MTP blocks.
    preset_name: its name.
    seed: of the parameters.
    vocab_size: of the model; None for that of the preset.
    compute_dtype: of activations and matmuls.
    how: fields of `ModelConfig` that affect execution only.
  """
  config = architecture(
    "fresh",
    mtp=mtp,
    preset_name=preset_name,
    vocab_size=vocab_size,
    compute_dtype=compute_dtype,
    how=how,
  )
  model = transformer.Transformer(config)
  init = lambda: transformer.init(model, jax.random.key(seed))
  return Initial(
    config,
    jax.eval_shape(init),
    lambda shardings: jax.jit(init, out_shardings=shardings)(),
    logical_axes(config),
  )


def adapted(
  mtp: bool,
  /,
  *,
  path: str,
  rank: int,
  alpha: float,
  targets: Sequence[str] = (*lora.ATTENTION, *lora.DENSE),
  seed: int = 0,
  dtype: Any = "bfloat16",
  compute_dtype: Any = "float32",
  preset_name: str | None = None,
  how: Mapping[str, Any] = {},
) -> Initial:
  """A low-rank adapter of a model that stays as it is; see `training.lora`.

  Args:
    mtp: whether to keep the MTP blocks, which are not adapted.
    path: the directory of the model.
    rank: of A and B.
    alpha: A B is multiplied by alpha / rank.
    targets: names of the arrays that are adapted, in `lora.TARGETS`.
    seed: of A.
    dtype: of the parameters of the model; the adapter is float32.
    compute_dtype: see `pretrained`, also for the next two.
    preset_name: that the model must match.
    how: the model runs.

  Raises ValueError for a rank below 1, or an unknown target.
  """
  if rank < 1:
    raise ValueError(f"model.rank is {rank}; it must be at least 1")
  for name in targets:
    if name not in lora.TARGETS:
      raise ValueError(configs.unknown("target of LoRA", name, lora.TARGETS))
  base = pretrained(
    mtp,
    path=path,
    dtype=dtype,
    compute_dtype=compute_dtype,
    preset_name=preset_name,
    how=how,
  )
  adapter = lora.Lora(base.config, rank, float(alpha), tuple(targets))
  init = functools.partial(lora.init, adapter, seed)
  return Initial(
    base.config,
    jax.eval_shape(init),
    lambda shardings: jax.jit(init, out_shardings=shardings)(),
    lora.logical_axes(adapter),
    adapter,
    base,
  )


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


MODELS = {"pretrained": pretrained, "fresh": fresh, "lora": adapted}


def initial(name: str, *, mtp: bool = True, **section) -> Initial:
  """The model that a config section describes, with or without MTP blocks."""
  return MODELS[name](mtp, **section)


def load(name: str, **section) -> tuple[ModelConfig, Params]:
  """The config, and the parameters on this host, of a config section."""
  model = initial(name, **section)
  return model.config, model.make(None)


def architecture(name: str, *, mtp: bool = True, **section) -> ModelConfig:
  """The config of the model that a config section describes.

  No files are needed if the section names a preset. Raises ValueError for an
  unknown `name`.
  """
  if name not in MODELS:
    raise ValueError(
      f"unknown model {name!r}; there is {', '.join(sorted(MODELS))}"
    )
  how = {"compute_dtype": section.get("compute_dtype", "float32")}
  how |= section.get("how", {})
  if section.get("preset_name"):
    sizes = preset(section["preset_name"])
  else:
    sizes = released.read(section["path"])
  if section.get("vocab_size"):
    sizes = replace(sizes, vocab_size=section["vocab_size"])
  if not mtp:
    sizes = replace(sizes, mtp_depth=0)
  return with_execution(sizes, **how)
