"""Parameters and tokens to hidden states and log-probabilities.

MODELS says where a run's first parameters come from.
"""

import jax

from r1jax.models import convert, transformer
from r1jax.models.config import ModelConfig
from r1jax.models.presets import preset
from r1jax.types import Params


def pretrained(*, path: str) -> tuple[ModelConfig, Params]:
  """The model in a directory of Hugging Face layout."""
  return convert.load(path)


def fresh(*, preset_name: str, seed: int, vocab_size: int):
  """A published architecture with random weights, for `vocab_size` tokens."""
  config = preset(preset_name, vocab_size=vocab_size)
  model = transformer.Transformer(config)
  return config, transformer.init(model, jax.random.key(seed))


MODELS = {"pretrained": pretrained, "fresh": fresh}


def load(name: str, **kwargs) -> tuple[ModelConfig, Params]:
  """The model that a config's section names, and its parameters."""
  return MODELS[name](**kwargs)
