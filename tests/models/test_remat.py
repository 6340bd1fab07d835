"""Rematerialisation changes memory and time, not the gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import transformer
from r1jax.models.config import replace
from r1jax.models.presets import preset

WIDTH, TOKENS = 32, 256
CONFIG = preset(
  "tiny_llama",
  vocab_size=40,
  width=WIDTH,
  num_layers=2,
  attention=dict(num_heads=4, num_kv_heads=1, head_size=8),
  dense_width=64,
)
PACKED = transformer.pack_rows(
  np.random.default_rng(0).integers(0, 40, (1, TOKENS))
)


def gradient(config):
  model = transformer.Transformer(config)

  def loss(params):
    hidden = transformer.forward(model, params, PACKED).hidden
    return jnp.sum(jnp.sin(hidden))

  return jax.jit(jax.grad(loss))


@functools.cache
def compiled(remat, scan, layers=2):
  config = replace(CONFIG, remat=remat, scan=scan, num_layers=layers)
  model = transformer.Transformer(config)
  shapes = jax.eval_shape(
    lambda key: transformer.init(model, key), jax.random.key(0)
  )
  return gradient(config).lower(shapes).compile()


SLOW = pytest.mark.slow


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=SLOW)])
@pytest.mark.parametrize(
  "remat",
  [
    pytest.param("block", marks=SLOW),
    pytest.param("attention", marks=SLOW),
    "host",
  ],
)
def test_the_gradient_is_the_same(remat, scan, draw_params):
  params = draw_params(CONFIG, seed=1)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-3, rtol=1e-4),
    compiled(remat, scan)(params),
    compiled("none", False)(params),
  )


@pytest.mark.optimized
@pytest.mark.slow
def test_each_policy_saves_what_its_name_says():
  """Memory per additional block, in units of the size of its input. The output
  of attention has the same size, the log-sum-exp an eighth of it."""

  def growth(remat):
    few, many = (
      compiled(remat, True, layers).memory_analysis().temp_size_in_bytes
      for layers in (8, 24)
    )
    return (many - few) / (16 * 4 * TOKENS * WIDTH)

  assert growth("block") == pytest.approx(1, abs=0.1)
  assert growth("attention") == pytest.approx(1 + 1 + 1 / 8, abs=0.1)
  assert growth("none") > 6


@pytest.mark.optimized
@pytest.mark.slow
def test_saved_attention_is_not_recomputed():
  work = lambda remat: compiled(remat, False).cost_analysis()["flops"]
  assert work("none") < work("attention") < work("block")


def test_a_policy_that_does_not_exist_is_refused():
  with pytest.raises(ValueError, match="remat 'blocks' is none of"):
    replace(CONFIG, remat="blocks")
