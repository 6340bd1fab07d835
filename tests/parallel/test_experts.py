"""Experts on a mesh are the experts of one device: forward and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import ops
from r1jax.models.presets import preset
from r1jax.parallel import sharding
from r1jax.parallel.experts import routed_experts
from r1jax.parallel.mesh import make_mesh

B, T, D, F = 8, 5, 8, 6


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
  """The sums and the gradients, on a mesh."""

  def loss(x, gates, gate_up, down):
    out = routed_experts(
      x, gates, indices, gate_up, down, chunk=config.moe_chunk
    )
    return jnp.sum(out * of_out), out

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
    gradients, out = step(*placed)
  return out, gradients


def check(config, mesh, skew=0.0, rows=B):
  floats, indices, of_out = draw(config, skew, rows)
  out, gradients = run(config, mesh, floats, indices, of_out)
  expected, pull = jax.vjp(functools.partial(by_hand, indices=indices), *floats)
  np.testing.assert_allclose(out, expected, atol=1e-4, rtol=1e-4)
  for got, right in zip(gradients, pull(of_out)):
    np.testing.assert_allclose(got, right, atol=3e-4, rtol=1e-4)


# Axes of the mesh, experts and those of a token, their inequality, the chunk.
SMALL = dict(data=1, expert=2), (4, 3), 0.0, 8192
UNEQUAL = dict(data=1, expert=4), (8, 2), 3.0, 3  # 10 tokens in chunks of 3.
MIXED = dict(data=1, fsdp=2, expert=2, tensor=2), (4, 3), 0.5, 4


@pytest.mark.parametrize("case", [SMALL, UNEQUAL, MIXED])
def test_a_mesh_computes_what_one_device_does(case):
  """Also where a device holds fewer experts than a token has."""
  axes, sizes, skew, chunk = case
  config = settings(*sizes, moe_chunk=chunk)
  check(config, make_mesh(**axes), skew)


@pytest.mark.slow
@pytest.mark.parametrize(
  "case",
  [
    (dict(data=1, expert=8), (8, 3), 9.0, 2),  # Most experts get no token.
    (dict(data=2, expert=2, context=2), (6, 4), 0.0, 2),
    (dict(data=1, expert=2, context=2, tensor=2), (4, 2), 0.0, 3),
    MIXED,
  ],
)
def test_so_does_every_mesh(case, monkeypatch):
  """By grouped matmuls; and with rows that do not divide over the mesh."""
  monkeypatch.setattr(ops.experts, "DENSE", 0)
  monkeypatch.setattr(ops.experts, "FEW", 0)
  axes, sizes, skew, chunk = case
  config = settings(*sizes, moe_chunk=chunk)
  check(config, make_mesh(**axes), skew, rows=5)


@pytest.mark.slow
def test_where_experts_are_whole_nothing_is_exchanged():
  axes = dict(data=2, fsdp=2, context=2)
  check(settings(4, 2, moe_chunk=3), make_mesh(**axes))


def test_experts_that_do_not_divide_over_the_mesh_are_refused():
  config = settings(6, 2)
  with pytest.raises(ValueError, match="num_routed 6 .* 4 .*mesh.expert"):
    run(config, make_mesh(data=1, expert=4), *draw(config))


@pytest.mark.slow
@pytest.mark.optimized
def test_memory_is_bounded_by_the_chunk(monkeypatch):
  """Four times the tokens take no more buffers, in the gradient too."""
  monkeypatch.setattr(ops.experts, "DENSE", 0)
  mesh = make_mesh(data=1, expert=4)
  width, per_token, chunk = 64, 4, 128

  def shape(names, *sizes, dtype=jnp.float32):
    split = jax.NamedSharding(mesh, sharding.spec(names, sizes, mesh))
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=split)

  def loss(x, gates, gate_up, down, indices):
    out = routed_experts(x, gates, indices, gate_up, down, chunk=chunk)
    return jnp.sum(out**2)

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
