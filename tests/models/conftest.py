"""A toy DeepSeek-V3: every mechanism, every size different, nothing zero."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from r1jax.models import transformer
from r1jax.models.config import ModelConfig
from r1jax.models.presets import preset
from r1jax.models.weights import weights

SIZES = dict(
  vocab_size=40,
  width=32,
  num_layers=3,
  attention=dict(
    num_heads=3, q_rank=12, kv_rank=10, nope_size=6, rope_size=4, value_size=5
  ),
  dense_width=24,
  experts=dict(num_routed=5, num_shared=2, per_token=2, width=7),
  rope_theta=100.0,
)


class Toy(NamedTuple):
  config: ModelConfig
  model: transformer.Transformer
  params: dict
  forward: object  # (params, packed) -> Forward, with the MTP block.
  extend: object  # (params, tokens, cache) -> (hidden, cache)


def draw_all(config, seed):
  """Random weights: norms that scale, biases that bias."""
  rng = np.random.default_rng(seed)

  def draw(path, weight):
    name = path[-1].key
    centre = 1.0 if name == "scale" else 0.0
    spread = 0.1 if name.endswith("bias") else 0.25
    return rng.normal(centre, spread, weight.shape).astype(np.float32)

  return jax.tree.map_with_path(draw, weights(config))


@pytest.fixture(scope="session")
def draw_params():
  """`draw_params(config, seed)`: random weights."""
  return draw_all


@pytest.fixture(scope="session")
def toy():
  config = preset("tiny_deepseek", **SIZES)
  model = transformer.Transformer(config)
  params = draw_all(config, seed=7)
  forward = functools.partial(transformer.forward, model, mtp=True)
  extend = functools.partial(transformer.extend, model)
  return Toy(config, model, params, jax.jit(forward), jax.jit(extend))
