"""Routed experts on a mesh: each device has some experts and some tokens.

Rows are split over `data`, `fsdp` and `expert`, and their tokens over
`context`: every device has tokens of its own, and works on as many of them at a
time as `moe_chunk` says. The experts are split over `expert`, their hidden
units over `tensor`; what else splits their weights is gathered, once for a
layer.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Int

from r1jax import sharding
from r1jax.models import ops
from r1jax.models.chunks import over_chunks
from r1jax.models.config import ModelConfig
from r1jax.models.exchange import AXIS, EXCHANGES, NOBODY

SLACK = 1.25  # Choices that a device works on at once, over an even spread.


def routed_experts(
  x: Float[Array, "B T D"],
  gates: Float[Array, "B T k"],
  indices: Int[Array, "B T k"],
  gate_up: Float[Array, "E D 2 F"],
  down: Float[Array, "E F D"],
  config: ModelConfig,
) -> tuple[Float[Array, "B T D"], Float[Array, ""]]:
  """What a token's experts make of it, and how many choices were dropped.

  Splits the work over the mesh of the context, if there is one.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    flat = (y.reshape(-1, y.shape[-1]) for y in (x, gates, indices))
    out = ops.experts(*flat, gate_up, down, chunk=config.moe_chunk)
    return out.reshape(x.shape), jnp.zeros(())
  check(config, mesh)
  in_weights = (
    sharding.spec(("expert", "width", None, "hidden"), gate_up.shape, mesh),
    sharding.spec(("expert", "hidden", "width"), down.shape, mesh),
  )
  batch, length, _ = x.shape
  x, gates = (_pad(y, mesh, 0) for y in (x, gates))
  indices = _pad(indices, mesh, NOBODY)
  tokens = sharding.spec(("rows", "tokens", None), x.shape, mesh)
  split = in_weights[1][1] is not None  # Over `tensor`, and so are the sums.
  out, dropped = jax.shard_map(
    functools.partial(_shard, config, in_weights),
    in_specs=(in_weights, tokens, tokens, tokens),
    out_specs=(
      jax.P(*tokens[:2], "tensor" if split else None),
      jax.P(*tokens[:2]),
    ),
    check_vma=False,
  )((gate_up, down), x, gates, indices)
  return out[:batch, :length], jnp.sum(dropped)


def check(config: ModelConfig, mesh: Mesh | AbstractMesh) -> None:
  """Raises ValueError if the experts cannot be split over the mesh."""
  e, shards = config.experts, mesh.shape.get(AXIS, 1)
  if e.num_routed % shards:
    raise ValueError(
      f"num_routed {e.num_routed} experts do not divide over the {shards} "
      "devices of mesh.expert; choose a divisor"
    )


def _pad(x, mesh, fill):
  """Rows and tokens up to what divides over the mesh."""
  row_shards, token_shards = (
    math.prod(mesh.shape.get(axis, 1) for axis in sharding.LAYOUT[name])
    for name in ("rows", "tokens")
  )
  rows, tokens = -x.shape[0] % row_shards, -x.shape[1] % token_shards
  return jnp.pad(x, ((0, rows), (0, tokens), (0, 0)), constant_values=fill)


def _shard(config, in_weights, weights, x, gates, indices):
  """`routed_experts` on one device."""
  gate_up, down = weights
  weights = _whole(gate_up, 1, in_weights[0]), _whole(down, 2, in_weights[1])
  split = in_weights[1][1] is not None
  flat = [y.reshape(-1, y.shape[-1]) for y in (x, gates, indices)]
  fn = functools.partial(_exchanged, config, split)
  out, dropped = over_chunks(
    fn, config.moe_chunk, weights, tuple(flat[:2]), flat[2]
  )
  return out.reshape(*x.shape[:2], -1), dropped.reshape(x.shape[:2])


def _whole(weight, dimension, spec):
  """A weight whose width was split, gathered."""
  axes = spec[dimension]
  if axes is None:
    return weight
  return lax.all_gather(weight, axes, axis=dimension, tiled=True)


def _exchanged(config, split, weights, floats, indices):
  """The sums of one chunk's tokens, and how many choices were dropped."""
  # Evenly spread, a device gets as many choices as its own tokens have.
  window = math.ceil(SLACK * indices.size)
  run = functools.partial(_run, split, window, weights)
  experts = len(weights[1])
  if experts == config.experts.num_routed:
    return run(*floats, indices), jnp.zeros(len(indices))
  exchange = EXCHANGES[config.moe_exchange]
  return exchange(run, *floats, indices, experts, config.moe_capacity)


def _run(split, window, weights, x, gates, indices):
  """What this device's experts make of tokens that may have come from afar."""
  count = len(weights[1])
  if count < indices.shape[1]:  # By expert: most choices are elsewhere.
    experts = jnp.arange(count)
    chosen = indices[..., None] == experts
    gates = jnp.sum(jnp.where(chosen, gates[..., None], 0), axis=1)
    indices = jnp.where(chosen.any(axis=1), experts, NOBODY)
  out = ops.experts(x, gates, indices, *weights, chunk=len(x), window=window)
  if not split:
    return out
  return lax.psum_scatter(out, "tensor", scatter_dimension=1, tiled=True)
