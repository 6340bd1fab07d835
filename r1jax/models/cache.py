"""The cache of keys and values, or of latents: its interface and its layout.

    cache = empty(config, rows, size)        room for `size` tokens per row
    cache = append(cache, layer, new)        T tokens after the first `lengths`
    out = attend(cache, layer, queries, ..)  attention to all that rows hold
    cache = advance(cache, count)            every layer has appended
    cache = copy_prompt(cache, row, ..)      a row holds a prompt and no more
    cache = grow(cache, size)                room for another number of tokens

How many tokens each row holds is in `lengths`; what lies beyond is garbage. No
other module knows how buffers are laid out, so that another layout, such as
pages, is another body of these functions.

A token is one array or two (`config.attention.cached`): its latent, or its key
and its value. Tokens are the last dimension of the first array, as scores read
it, and the one before the head size in the second, as mixing reads it. Layers
that run as a loop have buffers of their own, layers that run as a scan share
one with a leading L.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from r1jax import ops
from r1jax.models.config import ModelConfig
from r1jax.ops import Segment
from r1jax.parallel import sharding

# A tuple by layer of ([..., K, H, S], and for keys and values [..., K, S, H]);
# in a scan one such pair of [L, ...].
Buffers = tuple
LayerIndex = int | Int[Array, ""]  # A scan counts its layers in an array.


@chex.dataclass(frozen=True)
class Shared:
  """M prompts, each of which B / M consecutive rows of a cache continue."""

  rows: Buffers  # [M, K, H, S1], maybe [M, K, S1, H].
  lengths: Int[Array, "M"]  # Tokens in each.


@chex.dataclass(frozen=True)
class Cache:
  """Tokens of B rows: a prefix of all rows, shared prompts, and each row's."""

  prefix: Buffers  # [K, H, S0], maybe [K, S0, H].
  rows: Buffers  # [B, K, H, S], maybe [B, K, S, H].
  lengths: Int[Array, "B"]  # Tokens of each row in `rows`.
  shared: Shared | None = None  # Between the prefix and the rows, if not None.

  @property
  def positions(self) -> Int[Array, "B"]:
    """The position of each row's next token."""
    start = self.lengths + jax.tree.leaves(self.prefix)[0].shape[-1]
    if self.shared is None:
      return start
    return start + jnp.repeat(self.shared.lengths, self.rows_per_prompt)

  @property
  def rows_per_prompt(self) -> int:
    """Rows that continue one shared prompt."""
    return len(self.lengths) // len(self.shared.lengths)

  @property
  def size(self) -> int:
    """Tokens that each row has room for."""
    return jax.tree.leaves(self.rows)[0].shape[-1]


def empty(
  config: ModelConfig,
  rows: int,
  size: int,
  *,
  prefix: Buffers = (),
  prompts: int = 0,
  prompt_size: int = 0,
) -> Cache:
  """A cache of no tokens.

  Args:
    config: of the model.
    rows: B
    size: tokens that each row has room for.
    prefix: of all rows, from `as_prefix`; () for none.
    prompts: prompts that rows share; 0 if each row holds its own.
    prompt_size: tokens that each shared prompt has room for.
  """
  shared = None
  if prompts:
    shared = Shared(
      rows=_zeros(config, (prompts,), prompt_size),
      lengths=jnp.zeros(prompts, jnp.int32),
    )
  return Cache(
    prefix=prefix or _zeros(config, (), 0),
    rows=_zeros(config, (rows,), size),
    lengths=jnp.zeros(rows, jnp.int32),
    shared=shared,
  )


def as_prefix(cache: Cache) -> Buffers:
  """The tokens of a cache of one row, as the prefix of another cache."""
  layered = _is_stacked(cache.rows)
  return jax.tree.map(lambda x: x[:, 0] if layered else x[0], cache.rows)


def append(
  cache: Cache, layer: LayerIndex, new: tuple[Float[Array, "B T K H"], ...]
) -> Cache:
  """Writes T tokens of one layer after the first `lengths` of each row.

  Tokens for which there is no room are dropped. `lengths` stays: the other
  layers append theirs at the same place.
  """
  rows = cache.rows
  count, tokens, heads = new[0].shape[:3]
  places = cache.lengths[:, None, None] + jnp.arange(tokens)[:, None]
  row, head = jnp.arange(count)[:, None, None], jnp.arange(heads)
  stacked = _is_stacked(rows)

  def write(old, new, at):
    new = new.astype(old.dtype)
    return old.at[at].set(new, mode="drop", unique_indices=True)

  def put(old, new, tokens_last):
    index = lambda place: (head, *[slice(None)] * tokens_last, place)
    if stacked:
      # An array, so that indices on both sides of a slice come first.
      return write(old, new, (jnp.asarray(layer), row, *index(places)))
    # Row by row, a mesh that splits rows has nothing to gather. In a buffer
    # that layers share, TPUs would copy it for that.
    one = lambda old, new, place: write(old, new, index(place))
    return jax.vmap(one)(old, new, places)

  if stacked:
    return cache.replace(rows=tuple(map(put, rows, new, (True, False))))
  changed = tuple(map(put, rows[layer], new, (True, False)))
  return cache.replace(rows=(*rows[:layer], changed, *rows[layer + 1 :]))


def attend(
  cache: Cache,
  layer: LayerIndex,
  queries: Float[Array, "B T K G H"],
  *,
  scale: float,
) -> Float[Array, "B T K G Hv"]:
  """Attention of T new tokens, appended already, to all that each row holds.

  Where a token is one array, a latent, it is key and value at once.
  """
  tokens = jnp.arange(1, queries.shape[1] + 1)
  segments = [
    _segment(cache.rows, layer, (cache.lengths[:, None] + tokens)[:, None])
  ]
  if (shared := cache.shared) is not None:
    lengths = shared.lengths[:, None, None]
    segments.append(_segment(shared.rows, layer, lengths))
  prefix = tuple(x[None] for x in read(cache.prefix, layer))
  if prefix[0].shape[-1]:
    segments.append(_segment(prefix, None, None))
  return ops.cached_attention(queries, segments, scale=scale)


def _segment(buffers, layer, lengths) -> Segment:
  arrays = buffers if layer is None else read(buffers, layer)
  keys, values = arrays if len(arrays) == 2 else (*arrays, None)
  return Segment(keys, values, lengths)


def advance(cache: Cache, count: Int[Array, "B"] | int) -> Cache:
  """The cache with `count` more tokens in each row; all layers hold them."""
  return cache.replace(lengths=cache.lengths + count)


def read(
  buffers: Buffers, layer: LayerIndex
) -> tuple[Float[Array, "..."], ...]:
  """The arrays of one layer: of latents, or of keys and values."""
  if _is_stacked(buffers):
    return tuple(x[layer] for x in buffers)
  return buffers[layer]


def copy_prompt(
  cache: Cache,
  row: Int[Array, "M"],
  prompts: Cache,
  source: Int[Array, "M"],
  lengths: Int[Array, "M"],
) -> Cache:
  """Each `row` holds nothing but the first `lengths` tokens of a prompt.

  Args:
    cache: whose rows begin anew. Where rows share prompts, all rows of a
      prompt must begin anew together.
    row: rows of the cache; those beyond the last are dropped.
    prompts: a cache whose rows are prompts.
    source: rows of `prompts`.
    lengths: tokens of each prompt.
  """
  if cache.shared is None:
    return cache.replace(
      rows=_copy_rows(cache.rows, row, prompts.rows, source),
      lengths=_put(cache.lengths, row, lengths),
    )
  # Rows that share a prompt write the same values to the same place.
  place = row // cache.rows_per_prompt
  return cache.replace(
    lengths=_put(cache.lengths, row, 0),
    shared=Shared(
      rows=_copy_rows(cache.shared.rows, place, prompts.rows, source),
      lengths=_put(cache.shared.lengths, place, lengths),
    ),
  )


def _put(x, at, values):
  return x.at[at].set(values, mode="drop")


def _copy_rows(rows: Buffers, target, others: Buffers, source) -> Buffers:
  """Rows `source` of `others` at the start of rows `target`."""

  def put(old, new):
    at = (target, slice(None), slice(new.shape[-2]), slice(new.shape[-1]))
    if _is_stacked(rows):
      return old.at[:, *at].set(new[:, source], mode="drop")
    return old.at[at].set(new[source], mode="drop")

  return jax.tree.map(put, rows, others)


def join(caches: list[Cache]) -> Cache:
  """One cache with the rows of several, which have one prefix or none."""
  axis = 1 if _is_stacked(caches[0].rows) else 0
  rows = jax.tree.map(
    lambda *x: jnp.concatenate(x, axis), *[cache.rows for cache in caches]
  )
  lengths = jnp.concatenate([cache.lengths for cache in caches])
  return caches[0].replace(rows=rows, lengths=lengths)


def grow(cache: Cache, size: int) -> Cache:
  """Room for `size` tokens in each row; tokens beyond it are lost."""

  def one(path, array):
    axis = (-1, -2)[path[-1].idx]
    change = [(0, 0, 0)] * array.ndim
    change[axis] = (0, size - array.shape[axis], 0)
    return jax.lax.pad(array, jnp.zeros((), array.dtype), change)

  return cache.replace(rows=jax.tree.map_with_path(one, cache.rows))


def logical_axes(cache: Cache) -> Cache:
  """The names of the dimensions of every array, in the tree of the cache.

  They are tuples where the cache has arrays; see `AXIS_RULES`.
  """

  def names(path, array):
    if array.ndim == 1:
      return ("rows",)
    if path[0].name == "prefix":  # Every device holds it.
      return (None,) * array.ndim
    last = ((None, "tokens"), ("tokens", None))[path[-1].idx]
    return (*("layers",) * (array.ndim - 4), "rows", "kv_heads", *last)

  return jax.tree.map_with_path(names, cache)


def shard_constraint(cache: Cache) -> Cache:
  """The cache split over the mesh of the context as `logical_axes` says."""
  constrain = lambda x, names: sharding.shard_constraint(x, *names)
  return jax.tree.map(constrain, cache, logical_axes(cache))


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


def _is_stacked(buffers: Buffers) -> bool:
  return not isinstance(buffers[0], tuple)
