"""Rows whose tokens are split over a mesh say what whole rows say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import ops
from r1jax.models import transformer
from r1jax.models.attention import LatentAttention
from r1jax.models.config import replace
from r1jax.models.presets import preset
from r1jax.models.rows import row_layout
from r1jax.models.weights import logical_axes, weights
from r1jax.parallel import sharding
from r1jax.parallel.mesh import AXIS_RULES, make_mesh
from r1jax.types import Packed

B, T = 4, 24
RNG = np.random.default_rng(0)


def packed_rows():
  """Several texts; texts that share a prefix; one long text; an empty row."""
  tokens = RNG.integers(0, 40, (B, T))
  positions, k_start, prefix_end = np.zeros((3, B, T), np.int32)
  for row, starts in enumerate([(0, 5, 17), (0, 7, 13), (0,)]):
    for start, end in zip(starts, (*starts[1:], T)):
      k_start[row, start:end] = start
      positions[row, start:end] = np.arange(end - start)
  prefix_end[1, 7:] = 7  # Two completions of the first seven tokens,
  positions[1, 7:] += 7
  positions[0, 20:] = -1  # a row with a few empty slots, and an empty one.
  positions[3] = -1
  k_start[0, 20:], k_start[3] = np.arange(20, T), np.arange(T)
  origin = np.where(positions > 0, np.arange(B * T).reshape(B, T), -1)
  return Packed(
    tokens=jnp.asarray(tokens, jnp.int32),
    positions=jnp.asarray(positions),
    k_start=jnp.asarray(k_start),
    prefix_end=jnp.asarray(prefix_end),
    targets=jnp.asarray(np.roll(tokens, -1, 1), jnp.int32),
    origin=jnp.asarray(origin, jnp.int32),
  )


PACKED = packed_rows()
WEIGHTS = jnp.asarray(RNG.normal(size=(2, B, T)), jnp.float32)
SMALL = dict(
  vocab_size=40, width=16, num_layers=2, dense_width=24, init_scale=0.2
)
MODELS = {
  "tiny_deepseek": SMALL
  | dict(
    attention=dict(
      num_heads=2, q_rank=8, kv_rank=6, nope_size=4, rope_size=4, value_size=4
    ),
    experts=dict(num_routed=4, width=8),
  ),
  "tiny_llama": SMALL
  | dict(attention=dict(num_heads=4, num_kv_heads=2, head_size=4)),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(ops.attention, "LONG_BLOCK", 4)


def outcome(config, params, packed, given=None):
  """What a model makes of the rows, and the gradient of a sum of it."""
  model = transformer.Transformer(config)

  def loss(params):
    made = transformer.forward(model, params, packed, experts=given, mtp=True)
    numbers = transformer.logprobs(
      params,
      made.hidden,
      packed.targets,
      counted=packed.origin >= 0,
      chunk=8,
    )
    total = sum(jnp.sum(x * w) for x, w in zip(numbers, WEIGHTS))
    if made.mtp_hidden is not None:
      total += jnp.sum(made.mtp_hidden[0, ..., 0] * WEIGHTS[0])
    return total + made.balance_loss, (made, numbers)

  return jax.grad(loss, has_aux=True)(params)


@functools.cache
def alone(config, given):
  """The same on one device."""
  experts = GIVEN if given else None
  return jax.jit(functools.partial(outcome, config))(
    PARAMS[config], PACKED, experts
  )


# To the experts of the one layer that has some.
GIVEN = jnp.asarray(np.argsort(RNG.random((1, B, T, 4)))[..., :2], jnp.int32)
PARAMS = {}


def check(name, axes, draw_params, given=False, **overrides):
  config = replace(preset(name, **MODELS[name]), **overrides)
  params = PARAMS.setdefault(config, draw_params(config, seed=1))
  mesh = make_mesh(**axes)
  split = sharding.tree_shardings(mesh, logical_axes(config), params)
  rows = jax.NamedSharding(mesh, jax.P(AXIS_RULES["rows"], "context"))
  with jax.set_mesh(mesh):
    got = jax.jit(functools.partial(outcome, config))(
      jax.device_put(params, split),
      jax.device_put(PACKED, rows),
      GIVEN if given else None,
    )
  filled = np.asarray(PACKED.positions >= 0)
  gradients, (made, numbers) = jax.tree.map(np.asarray, got)
  expected, (right, right_numbers) = alone(config, given)
  close = functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-3)
  jax.tree.map(close, numbers, right_numbers)
  close(made.hidden[filled], right.hidden[filled])
  close(made.balance_loss, right.balance_loss)
  for field in ("expert_load", "experts", "router_mismatch"):
    np.testing.assert_array_equal(made[field], right[field])
  jax.tree.map(close, gradients, expected)


@pytest.mark.slow
def test_split_rows_say_what_whole_rows_say(draw_params):
  """One block, which has experts."""
  axes = dict(data=1, context=4, expert=2)
  shallow = dict(num_layers=1, mtp_depth=0, experts=dict(num_dense_layers=0))
  check("tiny_deepseek", axes, draw_params, **shallow)


many = functools.partial(pytest.param, marks=pytest.mark.soak)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, axes, given",
  [
    many("tiny_deepseek", dict(data=1, context=2), False),
    ("tiny_deepseek", dict(data=1, context=8), True),
    many("tiny_deepseek", dict(data=1, context=2, expert=2, tensor=2), True),
    ("tiny_deepseek", dict(data=1, context=2, expert=2, fsdp=2), False),
    ("tiny_llama", dict(data=1, context=4, tensor=2), False),
    many("tiny_llama", dict(data=1, context=8), False),
  ],
)
def test_so_does_every_mesh(name, axes, given, draw_params):
  """The whole of a model, also with experts that are given."""
  check(name, axes, draw_params, given)


@pytest.mark.optimized
@pytest.mark.slow
def test_memory_of_attention_is_linear_in_a_devices_tokens(monkeypatch):
  """Latents of all tokens are there, but neither their keys nor scores."""
  monkeypatch.setattr(ops.attention, "LONG_BLOCK", 64)
  config = preset(
    "tiny_deepseek",
    attention=dict(
      num_heads=16, kv_rank=8, nope_size=32, rope_size=8, value_size=32
    ),
  )

  def temporaries(tokens, context):
    mesh = make_mesh(data=1, context=context)

    def shape(names, *sizes, dtype=jnp.float32):
      split = jax.NamedSharding(mesh, sharding.spec(names, sizes, mesh))
      return jax.ShapeDtypeStruct(sizes, dtype, sharding=split)

    def loss(weights, x, packed):
      layout = row_layout(packed, None, config)
      attention = LatentAttention(config)
      return jnp.sum(attention.apply({"params": weights}, x, layout)[0] ** 2)

    numbers = shape(("rows", "tokens"), 1, tokens, dtype=jnp.int32)
    layer = lambda weight: shape(weight.axes[1:], *weight.shape[1:])
    params = jax.tree.map(layer, weights(config)["dense"]["attention"])
    with jax.set_mesh(mesh):
      lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(
        params,
        shape(("rows", "tokens", None), 1, tokens, config.width),
        jax.tree.map(lambda _: numbers, PACKED),
      )
      return lowered.compile().memory_analysis().temp_size_in_bytes

  few, many = temporaries(4096, 2), temporaries(16_384, 8)
  assert many < 1.5 * few  # As many tokens on each device.
  assert temporaries(8192, 8) < 0.7 * many
