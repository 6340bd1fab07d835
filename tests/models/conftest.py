"""A toy DeepSeek-V3: every mechanism, every size different, nothing zero."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from r1jax.models import transformer
from r1jax.models.config import ModelConfig, preset
from r1jax.models.weights import is_weight, weights

SIZES = dict(
  vocab_size=40,
  width=32,
  num_layers=3,
  num_dense_layers=1,
  num_heads=3,
  q_rank=12,
  kv_rank=10,
  nope_size=6,
  rope_size=4,
  value_size=5,
  dense_width=24,
  expert_width=7,
  num_experts=5,
  num_shared_experts=2,
  experts_per_token=2,
  rope_theta=100.0,
)


class Toy(NamedTuple):
  config: ModelConfig
  model: transformer.Transformer
  params: dict
  forward: object  # (params, packed) -> Forward, with the MTP block.
  extend: object  # (params, tokens, cache) -> (hidden, cache)


@pytest.fixture(scope="session")
def toy():
  config = preset("tiny_deepseek", **SIZES)
  model = transformer.Transformer(config)
  rng = np.random.default_rng(0)

  def draw(weight):  # Norms that scale, biases that bias.
    centre = 1.0 if weight.init == "ones" else 0.0
    spread = 0.1 if weight.init == "zeros" else 0.25
    return rng.normal(centre, spread, weight.shape).astype(np.float32)

  params = jax.tree.map(draw, weights(config), is_leaf=is_weight)
  forward = functools.partial(transformer.forward, model, mtp=True)
  extend = functools.partial(transformer.extend, model)
  return Toy(config, model, params, jax.jit(forward), jax.jit(extend))
