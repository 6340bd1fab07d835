"""A toy DeepSeek-V3 with all mechanisms, distinct sizes and no zero weights."""

import functools
from typing import NamedTuple

import jax
import pytest

from r1jax.models import transformer
from r1jax.models.config import ModelConfig
from r1jax.models.presets import preset

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


@pytest.fixture(scope="session")
def toy(draw_params):
  config = preset("tiny_deepseek", **SIZES)
  model = transformer.Transformer(config)
  params = draw_params(config, seed=7)
  forward = functools.partial(transformer.forward, model, mtp=True)
  extend = functools.partial(transformer.extend, model)
  return Toy(config, model, params, jax.jit(forward), jax.jit(extend))
