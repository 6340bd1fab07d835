"""What attention remembers of the tokens seen so far.

A token is cached as one array or two (`config.attention.cached`): its latent,
or its key and its value. Layers that run as a loop have one buffer each, layers
that run as a scan share one with a leading L; only `append`, `read` and `copy`
know which.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from r1jax.models.config import ModelConfig

# By layer a tuple of [..., S, H]; or one tuple of [L, ..., S, H].
Buffers = tuple


@chex.dataclass(frozen=True)
class Cache:
  """Tokens behind a prefix that all rows share, and each row's own."""

  prefix: Buffers  # [K, S0, H]
  rows: Buffers  # [B, K, S, H]
  lengths: Int[Array, "B"]  # Tokens in `rows`; what lies beyond is garbage.

  @property
  def prefix_length(self) -> int:
    """Tokens of the prefix, S0."""
    return jax.tree.leaves(self.prefix)[0].shape[-2]


def empty_cache(
  config: ModelConfig, rows: int, size: int, prefix: Buffers = ()
) -> Cache:
  """Room for `size` tokens in each row, after the `prefix` of another cache."""
  return Cache(
    prefix=prefix or _zeros(config, (), 0),
    rows=_zeros(config, (rows,), size),
    lengths=jnp.zeros(rows, jnp.int32),
  )


def as_prefix(cache: Cache) -> Buffers:
  """What the one row of `cache` holds, for all rows of another to share."""
  layered = _scanned(cache.rows)
  return jax.tree.map(lambda x: x[:, 0] if layered else x[0], cache.rows)


def append(
  rows: Buffers,
  layer: int | Int[Array, ""],
  new: tuple[Float[Array, "B T K H"], ...],
  lengths: Int[Array, "B"],
) -> Buffers:
  """Writes T tokens of one layer behind the first `lengths` of each row."""
  count, tokens, heads = new[0].shape[:3]
  row = jnp.arange(count)[:, None, None]
  slot = lengths[:, None, None] + jnp.arange(tokens)[None, :, None]
  index = row, jnp.arange(heads), slot
  put = lambda old, new, at: old.at[at].set(
    new.astype(old.dtype), mode="drop", unique_indices=True
  )
  if _scanned(rows):
    return tuple(put(old, x, (layer, *index)) for old, x in zip(rows, new))
  changed = tuple(put(old, x, index) for old, x in zip(rows[layer], new))
  return (*rows[:layer], changed, *rows[layer + 1 :])


def read(
  buffers: Buffers, layer: int | Int[Array, ""]
) -> tuple[Float[Array, "*B K S H"], ...]:
  """The arrays of one layer."""
  if _scanned(buffers):
    return tuple(x[layer] for x in buffers)
  return buffers[layer]


def copy(
  rows: Buffers,
  target: Int[Array, "M"],
  others: Buffers,
  source: Int[Array, "M"],
) -> Buffers:
  """Writes rows `source` of `others` into rows `target`, from their start.

  A target beyond the last row is dropped.
  """

  def put(old, new):
    at = (target, slice(None), slice(new.shape[-2]))
    if _scanned(rows):
      return old.at[:, *at].set(new[:, source], mode="drop")
    return old.at[at].set(new[source], mode="drop")

  return jax.tree.map(put, rows, others)


def join(parts: list[Buffers]) -> Buffers:
  """The rows of several caches as the rows of one."""
  axis = 1 if _scanned(parts[0]) else 0
  return jax.tree.map(lambda *x: jnp.concatenate(x, axis), *parts)


def _zeros(config: ModelConfig, rows: tuple[int, ...], size: int) -> Buffers:
  dtype, layers = config.compute_dtype, config.num_layers
  layered = (layers,) if config.scan else ()
  make = lambda: tuple(
    jnp.zeros((*layered, *rows, heads, size, width), dtype)
    for heads, width in config.attention.cached
  )
  return make() if config.scan else tuple(make() for _ in range(layers))


def _scanned(buffers: Buffers) -> bool:
  return not isinstance(buffers[0], tuple)
