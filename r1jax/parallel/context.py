"""Context parallelism: attention over packed rows whose tokens are split.

Along the mesh axis `context`, each device holds consecutive tokens of a row. It
gathers the keys and values, or the latents they are computed from, of all
tokens of its rows, and attends from its own queries. Gradients of the gathered
arrays are summed back to the devices that own them (reduce-scatter). Attention
is causal, so the device with the last tokens of a row reads up to twice the
mean number of keys; rows that hold several texts reduce this imbalance.
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
  """Attention outputs of packed rows, on the mesh of the context.

  The arguments are those of `ops.packed_attention`.
  """
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
  """Outputs of multi-head latent attention, on the mesh of the context.

  The arguments are those of `ops.latent_attention`.
  """
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
  """The output of an attention op that runs on each device's own queries.

  Args:
    op: returns (output, log-sum-exp). Its argument `start` is the position of
      the device's first query in its row.
    arrays: the positional arguments of `op`.
    names: the logical axes of each array.
    k_start: see the op.
    prefix_end: see the op.
    gathered: indices of the arrays whose tokens every device needs.
  """
  mesh = jax.sharding.get_abstract_mesh()
  one_device = mesh.empty or mesh.size == 1
  # For short rows, XLA partitions the matrix of scores well by itself.
  short = arrays[0].shape[1] <= NAIVE and mesh.shape.get(AXIS, 1) == 1
  if one_device or short:
    return op(*arrays, k_start=k_start, prefix_end=prefix_end)[0]
  spec = lambda x, names: sharding.spec(names, x.shape, mesh)
  specs = tuple(map(spec, arrays, names))
  tokens = spec(k_start, ("rows", "tokens"))
  tokens_are_split = tokens[1] is not None

  def on_device(arrays, k_start, prefix_end):
    start = None
    if tokens_are_split:
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
