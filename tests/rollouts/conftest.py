"""A toy model and a tokenizer that leaves some of its ids unused."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from r1jax.models import transformer
from r1jax.models.presets import preset
from r1jax.models.weights import weights


class Words:
  """The model has 40 ids, the tokenizer 37; two of them end a text."""

  vocab_size, eos_ids = 37, (2, 5)
  prefix_ids = ()

  def encode(self, text):
    return [ord(character) % 37 for character in text]

  def decode(self, ids):
    return " ".join(str(i) for i in ids if i not in self.eos_ids)


class Toy(NamedTuple):
  model: transformer.Transformer
  params: dict
  words: Words


@pytest.fixture(scope="session")
def toy():
  config = preset(
    "tiny_deepseek",
    vocab_size=40,
    width=16,
    num_layers=2,
    attention=dict(
      num_heads=2, q_rank=8, kv_rank=8, nope_size=4, rope_size=4, value_size=4
    ),
    dense_width=16,
    experts=dict(width=8, num_routed=4),
    mtp_depth=0,
  )
  rng = np.random.default_rng(2)

  def draw(path, weight):
    centre = 1.0 if path[-1].key == "scale" else 0.0
    return rng.normal(centre, 0.25, weight.shape).astype(np.float32)

  params = jax.tree.map_with_path(draw, weights(config))
  return Toy(transformer.Transformer(config), params, Words())


@pytest.fixture(scope="session")
def assert_same():
  """Bit for bit; each argument is a pair of rollout and index."""

  def check(one, other):
    for name in ("completions", "lengths", "finish", "logprobs"):
      a, b = (getattr(rollout, name)[at] for rollout, at in (one, other))
      assert a.tobytes() == b.tobytes(), name

  return check
