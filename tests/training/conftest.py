"""A toy base model in a directory, and tasks that it can learn in seconds."""

import jax
import numpy as np
import pytest

from r1jax.data import tokenizer
from r1jax.losses.presets import PRESETS
from r1jax.models import convert, transformer
from r1jax.models.presets import preset
from r1jax.models.weights import weights

UNLIKE = ("dapo", "gspo", "r1")  # Recipes; the others wait for `make soak`.
LETTERS = "abcdefgh 0123456789+=?\n"


def draw(config, scale=0.1, seed=0):
  """Parameters from NumPy: nothing to compile."""
  rng = np.random.default_rng(seed)

  def one(path, weight):
    centre = 1.0 if path[-1].key == "scale" else 0.0
    return rng.normal(centre, scale, weight.shape).astype(np.float32)

  return jax.tree.map_with_path(one, weights(config))


@pytest.fixture(
  params=[
    pytest.param(name, marks=() if name in UNLIKE else pytest.mark.soak)
    for name in sorted(PRESETS)
  ]
)
def recipe(request):
  """Of GRPO and its relatives, by name."""
  return request.param


@pytest.fixture(scope="session")
def toy_config():
  return preset(
    "tiny_deepseek",
    vocab_size=40,
    width=16,
    num_layers=2,
    attention=dict(
      num_heads=2, q_rank=8, kv_rank=8, nope_size=4, rope_size=4, value_size=4
    ),
    dense_width=16,
    experts=dict(width=8, num_routed=4),
  )


@pytest.fixture(scope="session")
def toy(toy_config):
  """(model, parameters)"""
  return transformer.Transformer(toy_config), draw(toy_config)


@pytest.fixture(scope="session")
def base(toy_config, tmp_path_factory):
  """The toy and its tokenizer, in Hugging Face layout."""
  folder = tmp_path_factory.mktemp("toy")
  path = folder / "words" / "tokenizer.model"
  tokenizer.fit([LETTERS] * 3, path, word_share=1.0)
  convert.save(
    folder / "base",
    toy_config,
    draw(toy_config),
    tokenizer=path.parent,
    provenance={},
  )
  return str(folder / "base")


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
  """Programs that a module compiles twice come from the disk, as in a run."""
  from jax.experimental.compilation_cache import compilation_cache

  names = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
  )
  before = [getattr(jax.config, name) for name in names]
  folder = str(tmp_path_factory.mktemp("xla"))
  for name, value in zip(names, (folder, 0.1, -1)):
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in zip(names, before):
    jax.config.update(name, value)
  compilation_cache.reset_cache()
