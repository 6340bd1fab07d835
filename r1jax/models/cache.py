"""What attention remembers of the tokens seen so far.

A token is cached as one array or two (`config.attention.cached`): its latent,
or its key and its value. Tokens stand last in the first, as scores read it, and
before the width in the second, as mixing does. Layers that run as a loop have
one buffer each, layers that run as a scan share one with a leading L; only the
functions here know all that.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from r1jax import sharding
from r1jax.models.config import ModelConfig

# By layer ([..., K, H, S], maybe [..., K, S, H]); or one such of [L, ...].
Buffers = tuple


@chex.dataclass(frozen=True)
class Shared:
  """N texts, each of which B / N consecutive rows of a cache go on with."""

  rows: Buffers  # [N, K, H, S1], maybe [N, K, S1, H].
  lengths: Int[Array, "N"]  # Tokens in `rows`; what lies beyond is garbage.


@chex.dataclass(frozen=True)
class Cache:
  """Tokens behind a prefix that all rows share, and each row's own."""

  prefix: Buffers  # [K, H, S0], maybe [K, S0, H].
  rows: Buffers  # [B, K, H, S], maybe [B, K, S, H].
  lengths: Int[Array, "B"]  # Tokens in `rows`; what lies beyond is garbage.
  shared: Shared | None = None  # What stands between the two, if anything.

  @property
  def positions(self) -> Int[Array, "B"]:
    """Of the token that each row goes on with."""
    start = self.lengths + jax.tree.leaves(self.prefix)[0].shape[-1]
    if self.shared is None:
      return start
    rows = len(self.lengths) // len(self.shared.lengths)
    return start + jnp.repeat(self.shared.lengths, rows)


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
  slots = lengths[:, None, None] + jnp.arange(tokens)[:, None]
  row, head = jnp.arange(count)[:, None, None], jnp.arange(heads)
  scanned = _scanned(rows)

  def put(old, new, tokens_last):
    places = lambda slot: (head, *[slice(None)] * tokens_last, slot)
    write = lambda old, new, at: old.at[at].set(
      new.astype(old.dtype), mode="drop", unique_indices=True
    )
    if scanned:
      # An array, for indices on both sides of a slice to come first.
      return write(old, new, (jnp.asarray(layer), row, *places(slots)))
    # A mesh that splits the rows has nothing to gather if they are written one
    # by one. Where layers share a buffer, TPUs would copy it for that.
    one = lambda old, new, slot: write(old, new, places(slot))
    return jax.vmap(one)(old, new, slots)

  if scanned:
    return tuple(map(put, rows, new, (True, False)))
  changed = tuple(map(put, rows[layer], new, (True, False)))
  return (*rows[:layer], changed, *rows[layer + 1 :])


def parts(
  cache: Cache, rows: Buffers, layer: int | Int[Array, ""], tokens: int
) -> list[tuple[tuple[Float[Array, "..."], ...], Bool[Array, "..."]]]:
  """All that one layer remembers, as `ops.attention_to_cache` takes it.

  `rows` are those of the cache, to which `tokens` new ones have been added.
  """
  places = lambda arrays: jnp.arange(arrays[0].shape[-1])
  own = read(rows, layer)
  last = cache.lengths[:, None] + jnp.arange(tokens)
  found = [(own, (places(own) <= last[..., None])[:, None])]
  if cache.shared is not None:
    before = read(cache.shared.rows, layer)
    inside = places(before) < cache.shared.lengths[:, None]
    found.append((before, inside[:, None, None]))
  prefix = tuple(x[None] for x in read(cache.prefix, layer))
  if prefix[0].shape[-1]:
    found.append((prefix, jnp.ones((1, 1, 1, 1), bool)))
  return found


def read(
  buffers: Buffers, layer: int | Int[Array, ""]
) -> tuple[Float[Array, "..."], ...]:
  """The arrays of one layer: of one latent, or of keys and values."""
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
    at = (target, slice(None), slice(new.shape[-2]), slice(new.shape[-1]))
    if _scanned(rows):
      return old.at[:, *at].set(new[:, source], mode="drop")
    return old.at[at].set(new[source], mode="drop")

  return jax.tree.map(put, rows, others)


def join(parts: list[Buffers]) -> Buffers:
  """The rows of several caches as the rows of one."""
  axis = 1 if _scanned(parts[0]) else 0
  return jax.tree.map(lambda *x: jnp.concatenate(x, axis), *parts)


def size(rows: Buffers) -> int:
  """Tokens that each row has room for."""
  return jax.tree.leaves(rows)[0].shape[-1]


def resize(rows: Buffers, size: int) -> Buffers:
  """Room for `size` tokens in each row; those beyond are lost."""

  def one(array, axis):
    change = [(0, 0, 0)] * array.ndim
    change[axis] = (0, size - array.shape[axis], 0)
    return jax.lax.pad(array, jnp.zeros((), array.dtype), change)

  both = lambda arrays: tuple(map(one, arrays, (-1, -2)))
  return both(rows) if _scanned(rows) else tuple(map(both, rows))


def split(rows: Buffers) -> Buffers:
  """The same on the mesh of the context: rows, heads and tokens over it."""

  def one(array, last):
    layers = ("layers",) * (array.ndim - 4)
    return sharding.constrain(array, *layers, "rows", "kv_heads", *last)

  last = (None, "tokens"), ("tokens", None)
  both = lambda arrays: tuple(map(one, arrays, last))
  return both(rows) if _scanned(rows) else tuple(map(both, rows))


def _zeros(config: ModelConfig, rows: tuple[int, ...], size: int) -> Buffers:
  layers = config.num_layers
  leading = (layers, *rows) if config.scan else rows

  def zeros(heads, width, tokens_last):
    last = (width, size) if tokens_last else (size, width)
    return jnp.zeros((*leading, heads, *last), config.compute_dtype)

  make = lambda: tuple(
    zeros(heads, width, i == 0)
    for i, (heads, width) in enumerate(config.attention.cached)
  )
  return make() if config.scan else tuple(make() for _ in range(layers))


def _scanned(buffers: Buffers) -> bool:
  return not isinstance(buffers[0], tuple)
