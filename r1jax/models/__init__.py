"""Parameters and tokens to hidden states and log-probabilities.

MODELS says where a run's first parameters come from.
"""

import jax

from r1jax.console import Console
from r1jax.models import convert, transformer
from r1jax.models.config import ModelConfig, replace
from r1jax.models.presets import preset
from r1jax.types import Params

LARGE = 1_000_000_000  # Bytes of parameters whose loading is worth a bar.


def pretrained(
  *, path: str, dtype: str = "float32", compute_dtype: str = "float32"
) -> tuple[ModelConfig, Params]:
  """The model in a directory of Hugging Face layout.

  Args:
    path: of the directory.
    dtype: of the parameters.
    compute_dtype: of activations and matmuls.
  """
  console = Console()

  def tell(done: int, total: int) -> None:
    if total > LARGE:
      console.progress(done // 1_000_000, total // 1_000_000, unit="MB")

  try:
    config, params = convert.load(path, dtype=dtype, progress=tell)
  finally:
    console.close()
  return replace(config, compute_dtype=compute_dtype), params


def fresh(
  *,
  preset_name: str,
  seed: int,
  vocab_size: int,
  compute_dtype: str = "float32",
) -> tuple[ModelConfig, Params]:
  """A published architecture with random weights, for `vocab_size` tokens."""
  config = preset(
    preset_name, vocab_size=vocab_size, compute_dtype=compute_dtype
  )
  model = transformer.Transformer(config)
  return config, transformer.init(model, jax.random.key(seed))


MODELS = {"pretrained": pretrained, "fresh": fresh}


def load(name: str, **kwargs) -> tuple[ModelConfig, Params]:
  """The model that a config's section names, and its parameters."""
  return MODELS[name](**kwargs)
