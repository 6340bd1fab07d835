"""Experts on a mesh are the experts of one device: forward and gradient."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import sharding
from r1jax.models import ops
from r1jax.models.expert_parallel import routed_experts
from r1jax.models.presets import preset

B, T, D, F = 8, 5, 8, 6
EXCHANGES = ("ring", "all_to_all", "ragged")


def settings(experts, per_token, **overrides):
  return preset(
    "tiny_deepseek",
    width=D,
    experts=dict(num_routed=experts, per_token=per_token, width=F),
    **overrides,
  )


def draw(config, skew=0.0, rows=B):
  """Tokens, gates, weights, and distinct experts for each token."""
  e = config.experts
  rng = np.random.default_rng(0)
  normal = lambda *s: rng.normal(size=s).astype(np.float32)
  floats = (
    normal(rows, T, D),
    normal(rows, T, e.per_token),
    normal(e.num_routed, D, 2, F),
    normal(e.num_routed, F, D),
  )
  liking = normal(rows, T, e.num_routed) + skew * np.arange(e.num_routed)
  indices = np.argsort(-liking, axis=-1)[..., : e.per_token].astype(np.int32)
  return floats, jnp.asarray(indices), normal(rows, T, D)


def by_hand(x, gates, gate_up, down, indices):
  """Every token through all experts, most of them with gate 0."""
  spread = jax.nn.one_hot(indices, len(down)) * gates[..., None]
  both = jnp.einsum("BTD,EDcF->cBTEF", x, gate_up)
  mixed = jnp.einsum(
    "BTEF,BTE->BTEF", jax.nn.silu(both[0]) * both[1], spread.sum(2)
  )
  return jnp.einsum("BTEF,EFD->BTD", mixed, down)


def run(config, mesh, floats, indices, of_out):
  """The sums, what was dropped, and the gradients, on a mesh."""

  def loss(x, gates, gate_up, down):
    out, dropped = routed_experts(x, gates, indices, gate_up, down, config)
    return jnp.sum(out * of_out), (out, dropped)

  axes = (
    ("rows", "tokens", None),
    ("rows", "tokens", None),
    ("expert", "width", None, "hidden"),
    ("expert", "hidden", "width"),
  )
  with jax.set_mesh(mesh):
    placed = [
      jax.device_put(
        x, jax.NamedSharding(mesh, sharding.spec(names, x.shape, mesh))
      )
      for x, names in zip(floats, axes)
    ]
    step = jax.jit(jax.grad(loss, argnums=range(4), has_aux=True))
    gradients, (out, dropped) = step(*placed)
  return out, float(dropped), gradients


def check(config, mesh, skew=0.0, rows=B):
  floats, indices, of_out = draw(config, skew, rows)
  out, dropped, gradients = run(config, mesh, floats, indices, of_out)
  assert dropped == 0
  expected, pull = jax.vjp(functools.partial(by_hand, indices=indices), *floats)
  np.testing.assert_allclose(out, expected, atol=1e-4, rtol=1e-4)
  for got, right in zip(gradients, pull(of_out)):
    np.testing.assert_allclose(got, right, atol=3e-4, rtol=1e-4)


# Axes of the mesh, experts and those of a token, their inequality, the chunk.
SMALL = dict(data=1, expert=2), (4, 3), 0.0, 8192
UNEQUAL = dict(data=1, expert=4), (8, 2), 3.0, 3  # 10 tokens in chunks of 3.
MIXED = dict(data=1, fsdp=2, expert=2, tensor=2), (4, 3), 0.5, 4


@pytest.mark.parametrize(
  "exchange, case",
  [
    ("ring", SMALL),
    ("all_to_all", UNEQUAL),
    ("ragged", UNEQUAL),
    ("ring", MIXED),
  ],
)
def test_a_mesh_computes_what_one_device_does(exchange, case):
  """Also where a device holds fewer experts than a token has."""
  axes, sizes, skew, chunk = case
  config = settings(*sizes, moe_exchange=exchange, moe_chunk=chunk)
  check(config, sharding.make_mesh(**axes), skew)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize(
  "case",
  [
    (dict(data=1, expert=8), (8, 3), 9.0, 2),  # Most experts get no token.
    (dict(data=2, expert=2, context=2), (6, 4), 0.0, 2),
    (dict(data=1, expert=2, context=2, tensor=2), (4, 2), 0.0, 3),
    MIXED,
  ],
)
def test_so_does_every_exchange(exchange, case, monkeypatch):
  """By grouped matmuls; and with rows that do not divide over the mesh."""
  monkeypatch.setattr(ops, "DENSE", 0)
  monkeypatch.setattr(ops, "FEW", 0)
  axes, sizes, skew, chunk = case
  config = settings(*sizes, moe_exchange=exchange, moe_chunk=chunk)
  check(config, sharding.make_mesh(**axes), skew, rows=5)


@pytest.mark.slow
def test_where_experts_are_whole_nothing_is_exchanged():
  axes = dict(data=2, fsdp=2, context=2)
  check(settings(4, 2, moe_chunk=3), sharding.make_mesh(**axes))


def test_choices_without_room_add_nothing_and_are_counted():
  """Each device has room for so many tokens of each other, first come first."""
  config = settings(
    8, 2, moe_exchange="all_to_all", moe_capacity=0.5, moe_chunk=6
  )
  shards, held, room = 4, 2, 2  # 0.5 * 6 tokens * 2 choices / 4 devices, up.
  (x, gates, *weights), indices, of_out = draw(config, skew=0.4)
  kept, lost = np.array(indices).reshape(shards, -1, 2), 0
  for device, start in itertools.product(kept, range(0, 10, 6)):
    sent = np.zeros(shards, int)
    for token in device[start : start + 6]:
      full = {int(e) // held for e in token if sent[e // held] == room}
      sent[[j for j in {*(token // held)} if j not in full]] += 1
      for i, e in enumerate(token):
        if e // held in full:
          token[i], lost = -1, lost + 1
  assert 0 < lost < indices.size / 2
  kept = jnp.asarray(kept.reshape(indices.shape))
  expected, pull = jax.vjp(
    functools.partial(by_hand, indices=kept), x, gates, *weights
  )
  mesh = sharding.make_mesh(data=1, expert=shards)
  out, dropped, gradients = run(
    config, mesh, (x, gates, *weights), indices, of_out
  )
  assert dropped == lost
  np.testing.assert_allclose(out, expected, atol=1e-4, rtol=1e-4)
  for got, right in zip(gradients, pull(of_out)):
    np.testing.assert_allclose(got, right, atol=3e-4, rtol=1e-4)


def test_experts_that_do_not_divide_over_the_mesh_are_refused():
  config = settings(6, 2)
  with pytest.raises(ValueError, match="num_routed 6 .* 4 .*mesh.expert"):
    run(config, sharding.make_mesh(data=1, expert=4), *draw(config))


@pytest.mark.parametrize(
  "overrides, message",
  [
    (dict(moe_exchange="rings"), "'rings' is none of"),
    (dict(moe_capacity=1.5), "'ring' drops nothing"),
    (dict(moe_exchange="all_to_all", moe_capacity=0.0), "not above 0"),
  ],
)
def test_exchanges_that_do_not_exist_are_refused(overrides, message):
  with pytest.raises(ValueError, match=message):
    settings(4, 2, **overrides)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_memory_is_bounded_by_the_chunk(exchange, monkeypatch):
  """Four times the tokens take no more buffers, in the gradient too."""
  monkeypatch.setattr(ops, "DENSE", 0)
  mesh = sharding.make_mesh(data=1, expert=4)
  width, per_token, chunk = 64, 4, 128
  config = preset(
    "tiny_deepseek",
    width=width,
    experts=dict(num_routed=16, per_token=per_token, width=32),
    moe_exchange=exchange,
    moe_chunk=chunk,
  )

  def shape(names, *sizes, dtype=jnp.float32):
    split = jax.NamedSharding(mesh, sharding.spec(names, sizes, mesh))
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=split)

  def loss(x, gates, gate_up, down, indices):
    return jnp.sum(
      routed_experts(x, gates, indices, gate_up, down, config)[0] ** 2
    )

  def temporaries(tokens):
    rows = ("rows", "tokens", None)
    with jax.set_mesh(mesh):
      lowered = jax.jit(jax.grad(loss, argnums=range(4))).lower(
        shape(rows, 4, tokens, width),
        shape(rows, 4, tokens, per_token),
        shape(("expert", "width", None, "hidden"), 16, width, 2, 32),
        shape(("expert", "hidden", "width"), 16, 32, width),
        shape(rows, 4, tokens, per_token, dtype=jnp.int32),
      )
      return lowered.compile().memory_analysis().temp_size_in_bytes

  small, large = temporaries(8 * chunk), temporaries(32 * chunk)
  # What a token leaves: itself, its gates and choices, or their gradients. The
  # buffers of one exchange would hold it and its hidden units 16 times.
  themselves = 24 * chunk * 4 * (width + 2 * per_token)
  assert large - small < 1.5 * themselves
