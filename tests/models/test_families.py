"""Loop and scan, cache and padding agree in all architectures."""

import dataclasses
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import ops
from r1jax.models import cache as caches
from r1jax.models import transformer
from r1jax.models.config import (
  Experts,
  Grouped,
  Latent,
  Llama3,
  ModelConfig,
  Yarn,
)

SCALINGS = [
  None,
  Yarn(factor=4.0, original_length=16, mscale=1.0, mscale_all_dim=0.8),
  Llama3(factor=8.0, original_length=16, low=1.0, high=4.0),
]


def draw_config(seed):
  """A random small model of any architecture."""
  rng = random.Random(seed)
  pick = lambda *values: rng.choice(values)
  if pick(False, True):
    attention = Latent(
      num_heads=pick(1, 3),
      q_rank=pick(None, 5),
      kv_rank=pick(4, 7),
      nope_size=pick(3, 6),
      rope_size=pick(2, 4),
      value_size=pick(3, 5),
    )
  else:
    kv_heads = pick(1, 2)
    attention = Grouped(
      num_heads=kv_heads * pick(1, 3),
      num_kv_heads=kv_heads,
      head_size=pick(4, 6),
      bias=pick(False, True),
    )
  experts = None
  if pick(False, True):
    groups = pick(1, 3)
    experts = Experts(
      num_routed=6,
      num_shared=pick(1, 2),
      num_dense_layers=pick(0, 1, 3),
      per_token=pick(1, 2),
      width=pick(3, 4),
      scores=pick("sigmoid", "softmax"),
      renormalise=pick(False, True),
      scale=pick(1.0, 2.5),
      num_groups=groups,
      groups_per_token=pick(1, groups),
    )
  return ModelConfig(
    vocab_size=17,
    width=pick(8, 10),
    num_layers=3,
    attention=attention,
    dense_width=pick(6, 9),
    norm_epsilon=1e-6,
    rope_theta=100.0,
    max_length=64,
    rope_scaling=pick(*SCALINGS),
    tied=pick(False, True),
    experts=experts,
    mtp_depth=pick(0, 1, 2),
    moe_chunk=pick(5, 8192),
  )


LATENT = ModelConfig(
  vocab_size=17,
  width=10,
  num_layers=2,
  attention=Latent(
    num_heads=3, q_rank=None, kv_rank=7, nope_size=6, rope_size=4, value_size=5
  ),
  dense_width=9,
  norm_epsilon=1e-6,
  rope_theta=100.0,
  max_length=64,
  rope_scaling=SCALINGS[1],
  tied=True,
  experts=Experts(
    num_routed=6,
    num_shared=2,
    num_dense_layers=1,
    per_token=2,
    width=4,
    scores="sigmoid",
    renormalise=True,
    scale=2.5,
    num_groups=3,
    groups_per_token=2,
  ),
  mtp_depth=1,
  moe_chunk=12,
)
GROUPED = dataclasses.replace(
  LATENT,
  attention=Grouped(num_heads=6, num_kv_heads=2, head_size=4, bias=True),
  rope_scaling=SCALINGS[2],
  experts=None,
  tied=False,
)
CONFIGS = {"grouped": GROUPED} | {
  f"drawn-{seed}": draw_config(seed) for seed in range(4)
}
FEW = ("grouped", "drawn-0")


@pytest.fixture(
  params=[
    pytest.param(LATENT, id="latent"),
    *(
      pytest.param(
        config,
        id=name,
        marks=pytest.mark.slow if name in FEW else pytest.mark.soak,
      )
      for name, config in CONFIGS.items()
    ),
  ]
)
def config(request):
  return request.param


@pytest.fixture
def params(config, draw_params):
  return draw_params(config, seed=3)


def assert_close(got, expected, atol=1e-4):
  np.testing.assert_allclose(got, expected, atol=atol, rtol=1e-4)


ROWS, LENGTH = 3, 10
TOKENS = np.random.default_rng(0).integers(0, 17, (ROWS, LENGTH), np.int32)


def loss_of(config):
  """A loss that depends on every output of the model, and the outputs."""
  model = transformer.Transformer(config)
  weight = np.random.default_rng(1).normal(size=(ROWS, LENGTH, config.width))

  def loss(params):
    made = transformer.forward(
      model, params, transformer.pack_rows(TOKENS), mtp=True
    )
    total = jnp.sum(made.hidden * weight) + made.balance_loss
    if made.mtp_hidden is not None:
      total += jnp.sum(made.mtp_hidden**2 * weight)
    return total, made

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_a_scan_over_depth_is_the_loop(config, params):
  (_, looped), of_loop = loss_of(config)(params)
  scanned_config = dataclasses.replace(config, scan=True)
  (_, scanned), of_scan = loss_of(scanned_config)(params)
  jax.tree.map(assert_close, looped, scanned)
  jax.tree.map(lambda a, b: assert_close(a, b, 1e-2), of_loop, of_scan)


@pytest.mark.parametrize(
  "scan", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_the_cached_forward_pass_equals_the_uncached(config, params, scan):
  """After a prefix, by many, several and single tokens, in uneven rows."""
  config = dataclasses.replace(config, scan=scan, mtp_depth=0)
  model = transformer.Transformer(config)
  rows = TOKENS.copy()
  rows[:, :3] = rows[0, :3]
  run = jax.jit(functools.partial(transformer.forward, model))
  whole = run(params, transformer.pack_rows(rows)).hidden
  read = lambda tokens, cache: extend(params, jnp.asarray(tokens), cache)
  extend = jax.jit(functools.partial(transformer.extend, model))
  _, alone = read(rows[:1, :3], caches.empty(config, 1, 3))
  cache = caches.empty(config, ROWS, LENGTH, prefix=caches.as_prefix(alone))
  hidden, cache = read(rows[:, 3:7], cache)
  assert_close(hidden, whole[:, 3:7])
  # Rows at different positions: each goes back by its own number of tokens.
  cache = cache.replace(lengths=jnp.asarray([4, 2, 3]))
  at = 3 + np.asarray(cache.lengths)[:, None] + np.arange(3)
  hidden, cache = read(np.take_along_axis(rows, at, 1), cache)
  assert_close(hidden, np.take_along_axis(whole, at[..., None], 1))


def test_padding_after_a_row_has_no_influence(config, params):
  config = dataclasses.replace(config, mtp_depth=0)
  model = transformer.Transformer(config)
  packed = transformer.pack_rows(TOKENS[:, :5])
  lengths = np.array([5, 2, 3])
  unused = np.arange(5) >= lengths[:, None]
  packed = packed.replace(positions=jnp.where(unused, -1, packed.positions))
  cache = caches.empty(config, ROWS, LENGTH)
  run = jax.jit(functools.partial(transformer.forward, model))
  made = run(params, packed, cache=cache)
  np.testing.assert_array_equal(made.cache.lengths, lengths)
  if config.num_moe_layers:
    assigned = lengths.sum() * config.experts.per_token
    np.testing.assert_array_equal(made.expert_load.sum(1), assigned)
  next_tokens = np.take_along_axis(TOKENS, lengths[:, None], 1)
  packed = transformer.pack_rows(jnp.asarray(next_tokens))
  hidden = run(params, packed, cache=made.cache).hidden
  whole = run(params, transformer.pack_rows(TOKENS)).hidden
  assert_close(hidden[:, 0], whole[np.arange(ROWS), lengths])


@pytest.mark.slow
def test_rows_do_not_influence_each_other(config, params):
  model = transformer.Transformer(config)
  run = jax.jit(functools.partial(transformer.token_logprobs, model))
  together = run(params, TOKENS)
  for row in range(ROWS):
    assert_close(run(params, TOKENS[row : row + 1])[0], together[row])


def test_replaying_the_chosen_experts_changes_nothing(config, params):
  """Router replay."""
  if not config.num_moe_layers:
    pytest.skip("no experts here")
  model = transformer.Transformer(config)
  forward = jax.jit(functools.partial(transformer.forward, model))
  packed = transformer.pack_rows(TOKENS)
  run = lambda experts: forward(params, packed, experts=experts)
  free = run(None)
  jax.tree.map(assert_close, free, run(free.experts))
  others = run((free.experts + 1) % config.experts.num_routed)
  assert np.abs(others.hidden - free.hidden).max() > 1e-4


@pytest.mark.slow
def test_narrow_experts_and_wide_ones_run_alike(config, params):
  (_, dense), of_dense = loss_of(config)(params)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ops.experts, "DENSE", 0)
    (_, blocked), of_blocked = loss_of(config)(params)
  jax.tree.map(assert_close, dense, blocked)
  jax.tree.map(lambda a, b: assert_close(a, b, 1e-2), of_dense, of_blocked)


@pytest.mark.slow
def test_compute_in_bfloat16_stays_near_and_keeps_float32_where_it_matters(toy):
  low = dataclasses.replace(toy.config, compute_dtype="bfloat16")
  model = transformer.Transformer(low)
  packed = transformer.pack_rows(TOKENS)
  run = jax.jit(functools.partial(transformer.forward, model))
  made = run(toy.params, packed)
  exact = toy.forward(toy.params, packed)
  assert made.hidden.dtype == jnp.bfloat16
  assert made.balance_loss.dtype == made.expert_load.dtype == jnp.float32
  params = jax.tree.map(jnp.asarray, toy.params)
  assert transformer.logits(params, made.hidden).dtype == jnp.float32
  error = np.abs(np.float32(made.hidden) - exact.hidden)
  assert np.median(error) < 0.05
  cache = caches.empty(low, ROWS, LENGTH)
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(cache.rows))
