"""Attention within packed rows on a mesh that may split their tokens.

Over the axis `context`, each device has consecutive tokens of a row. To attend,
it gathers what stands for the keys and values of the others' tokens, latents or
keys and values themselves, and its queries start at their own position. The
gradient of what was gathered is summed back to where it came from. Texts are
causal, so the device with a row's last tokens sees up to twice the mean number
of keys; rows of several texts even that out.
"""

import functools
from collections.abc import Callable

import jax
from jax import lax
from jaxtyping import Array, Float, Int

from r1jax import ops
from r1jax.ops.attention import NAIVE
from r1jax.parallel import sharding

AXIS = "context"


def packed_attention(
  queries: Float[Array, "B T K G H"],
  keys: Float[Array, "B T K H"],
  values: Float[Array, "B T K Hv"],
  *,
  scale: float,
  k_start: Int[Array, "B T"],
  prefix_end: Int[Array, "B T"],
) -> Float[Array, "B T K G Hv"]:
  """`ops.packed_attention` on the mesh of the context."""
  heads = ("rows", "tokens", "kv_heads", None)
  return _attend(
    functools.partial(ops.packed_attention, scale=scale),
    (queries, keys, values),
    ((*heads, None), heads, heads),
    k_start,
    prefix_end,
    gathered=(1, 2),
  )


def latent_attention(
  queries: Float[Array, "B T N H"],
  latents: Float[Array, "B T C"],
  kv_up: Float[Array, "R N H2"],
  *,
  scale: float,
  k_start: Int[Array, "B T"],
  prefix_end: Int[Array, "B T"],
) -> Float[Array, "B T N Hv"]:
  """`ops.latent_attention` on the mesh of the context."""
  return _attend(
    functools.partial(ops.latent_attention, scale=scale),
    (queries, latents, kv_up),
    (
      ("rows", "tokens", "heads", None),
      ("rows", "tokens", None),
      (None, "heads", None),
    ),
    k_start,
    prefix_end,
    gathered=(1,),
  )


def _attend(op: Callable, arrays, names, k_start, prefix_end, gathered):
  """op(*arrays, k_start=, prefix_end=) without the log-sum-exp, on each device.

  Args:
    op: of `ops`; takes `start` for a part of each row's queries.
    arrays: its positional arguments.
    names: of the dimensions of each, for `sharding.spec`.
    k_start: see the op.
    prefix_end: see the op.
    gathered: arrays whose tokens every device needs.
  """
  mesh = jax.sharding.get_abstract_mesh()
  one_device = mesh.empty or mesh.size == 1
  # XLA partitions the scores of short rows by itself.
  short = arrays[0].shape[1] <= NAIVE and mesh.shape.get(AXIS, 1) == 1
  if one_device or short:
    return op(*arrays, k_start=k_start, prefix_end=prefix_end)[0]
  spec = lambda x, names: sharding.spec(names, x.shape, mesh)
  specs = tuple(map(spec, arrays, names))
  tokens = spec(k_start, ("rows", "tokens"))
  is_split = tokens[1] is not None

  def on_device(arrays, k_start, prefix_end):
    start = None
    if is_split:
      start = lax.axis_index(AXIS) * k_start.shape[1]
      gather = functools.partial(
        lax.all_gather, axis_name=AXIS, axis=1, tiled=True
      )
      arrays = [gather(x) if i in gathered else x for i, x in enumerate(arrays)]
    return op(*arrays, k_start=k_start, prefix_end=prefix_end, start=start)[0]

  return jax.shard_map(
    on_device,
    in_specs=(specs, tokens, tokens),
    out_specs=specs[0],
    check_vma=False,
  )(arrays, k_start, prefix_end)
