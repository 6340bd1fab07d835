"""Expert parallelism: each device holds some experts and some tokens.

Rows are split over the mesh axes `data`, `fsdp` and `expert`, and their tokens
over `context`, so every device has tokens of its own. Experts are split over
`expert`, and their hidden units over `tensor`. Weights that are split over
further axes are gathered once per layer. Along `expert`, the tokens of all
devices are gathered, each device applies its own experts, and the sums are
scattered back to the owners of the tokens (all-gather and reduce-scatter), one
chunk of tokens at a time.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Int

from r1jax import ops
from r1jax.ops.chunks import over_chunks
from r1jax.parallel import sharding
from r1jax.parallel.mesh import AXIS_RULES

AXIS = "expert"
NO_EXPERT = -1  # Replaces the index of an expert on another device.
SLACK = 1.25  # Size of a device's buffer of choices, relative to an even load.


def routed_experts(
  x: Float[Array, "B T D"],
  gates: Float[Array, "B T k"],
  indices: Int[Array, "B T k"],
  gate_up: Float[Array, "E D 2 F"],
  down: Float[Array, "E F D"],
  *,
  chunk: int,
) -> Float[Array, "B T D"]:
  """The gated sum of the outputs of each token's k experts.

      out[b, t] = sum_k gates[b, t, k] * swiglu_{indices[b, t, k]}(x[b, t])

  No token is dropped. It uses the mesh of the context, if there is one. `chunk`
  is the number of tokens of a device that are processed at once, which bounds
  the size of the buffers.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    flat = (y.reshape(-1, y.shape[-1]) for y in (x, gates, indices))
    return ops.expert_swiglu(*flat, gate_up, down, chunk=chunk).reshape(x.shape)
  check(len(down), mesh)
  in_weights = (
    sharding.spec(("expert", "width", None, "hidden"), gate_up.shape, mesh),
    sharding.spec(("expert", "hidden", "width"), down.shape, mesh),
  )
  batch, length, _ = x.shape
  x, gates = (_pad(y, mesh, 0) for y in (x, gates))
  indices = _pad(indices, mesh, NO_EXPERT)
  tokens = sharding.spec(("rows", "tokens", None), x.shape, mesh)
  # If hidden units are split over `tensor`, the output is split over D by it.
  tensor_split = in_weights[1][1] is not None
  out = jax.shard_map(
    functools.partial(_on_device, len(down), chunk, in_weights),
    in_specs=(in_weights, tokens, tokens, tokens),
    out_specs=jax.P(*tokens[:2], "tensor" if tensor_split else None),
    check_vma=False,
  )((gate_up, down), x, gates, indices)
  return out[:batch, :length]


def check(num_routed: int, mesh: Mesh | AbstractMesh) -> None:
  """Raises ValueError if the experts do not divide over the mesh."""
  shards = mesh.shape.get(AXIS, 1)
  if num_routed % shards:
    raise ValueError(
      f"num_routed {num_routed} experts do not divide over the {shards} "
      "devices of mesh.expert; choose a divisor"
    )


def _pad(x, mesh, fill):
  """`x` [B, T, ...], padded so that B and T divide over the mesh."""
  row_shards, token_shards = (
    math.prod(mesh.shape.get(axis, 1) for axis in AXIS_RULES[name])
    for name in ("rows", "tokens")
  )
  rows, tokens = -x.shape[0] % row_shards, -x.shape[1] % token_shards
  return jnp.pad(x, ((0, rows), (0, tokens), (0, 0)), constant_values=fill)


def _on_device(num_routed, chunk, in_weights, weights, x, gates, indices):
  """`routed_experts` for the tokens of one device."""
  gate_up, down = weights
  weights = _gather(gate_up, 1, in_weights[0]), _gather(down, 2, in_weights[1])
  tensor_split = in_weights[1][1] is not None
  x_flat, gates, indices = (
    y.reshape(-1, y.shape[-1]) for y in (x, gates, indices)
  )
  fn = functools.partial(_exchange, num_routed, tensor_split)
  out = over_chunks(fn, chunk, weights, (x_flat, gates), indices)
  return out.reshape(*x.shape[:2], -1)


def _gather(weight, dimension, spec):
  """A weight, gathered along a dimension if that is split."""
  axes = spec[dimension]
  if axes is None:
    return weight
  return lax.all_gather(weight, axes, axis=dimension, tiled=True)


def _exchange(num_routed, tensor_split, weights, floats, indices):
  """The gated sums of one chunk of tokens over the experts of all devices."""
  # Under an even load, a device receives as many choices as its tokens make.
  window = math.ceil(SLACK * indices.size)
  run = functools.partial(_run, tensor_split, window, weights)
  experts = len(weights[1])
  if experts == num_routed:
    return run(*floats, indices)
  gather = functools.partial(lax.all_gather, axis_name=AXIS, tiled=True)
  x, gates, indices = map(gather, (*floats, indices))
  local = indices - lax.axis_index(AXIS) * experts
  local = jnp.where((local >= 0) & (local < experts), local, NO_EXPERT)
  out = run(x, gates, local)
  return lax.psum_scatter(out, AXIS, scatter_dimension=0, tiled=True)


def _run(tensor_split, window, weights, x, gates, indices):
  """The contribution of this device's experts to the gated sums."""
  count = len(weights[1])
  if count < indices.shape[1]:
    # With fewer experts than k, one slot per local expert is the shorter form.
    experts = jnp.arange(count)
    chosen = indices[..., None] == experts
    gates = jnp.sum(jnp.where(chosen, gates[..., None], 0), axis=1)
    indices = jnp.where(chosen.any(axis=1), experts, NO_EXPERT)
  out = ops.expert_swiglu(
    x, gates, indices, *weights, chunk=len(x), window=window
  )
  if not tensor_split:
    return out
  return lax.psum_scatter(out, "tensor", scatter_dimension=1, tiled=True)
