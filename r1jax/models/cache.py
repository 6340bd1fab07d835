"""The cache of keys and values, or of latents: its interface and its layout.

    cache = empty(config, rows, size)        no tokens, room for `size` per row
    cache = append(cache, layer, new)        write T tokens of one layer
    out = attend(cache, layer, queries, ..)  attend to all tokens of each row
    cache = advance(cache, count)            count the tokens that were appended
    cache = copy_prompt(cache, row, ..)      restart rows with a cached prompt
    cache = grow(cache, size)                change the room per row

`lengths` says how many tokens each row holds. Buffers beyond it hold garbage,
which attention ignores. No other module knows the layout of the buffers, so
that another layout, such as pages, only needs other bodies of these functions.

Per token, the cache holds a key and a value, or one latent, which serves as
both (`config.attention.cached`). Keys and latents are stored as [K, H, S] and
values as [K, S, H], the orders in which scores and outputs read them. Layers
that run as a loop have separate buffers. Layers that run as a scan share
buffers with a leading dimension L.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from r1jax import ops
from r1jax.models.config import ModelConfig
from r1jax.ops import Segment
from r1jax.parallel import sharding

# For each layer a tuple of one or two arrays: [..., K, H, S], [..., K, S, H].
# In a scan, just one such tuple, whose arrays have a leading L.
Buffers = tuple
LayerIndex = int | Int[Array, ""]  # An array in a scan.


@chex.dataclass(frozen=True)
class Shared:
  """M prompts, each shared by B / M consecutive rows of a cache."""

  rows: Buffers  # [M, K, H, S1] and, for values, [M, K, S1, H].
  lengths: Int[Array, "M"]  # Tokens of each prompt.


@chex.dataclass(frozen=True)
class Cache:
  """The cached tokens of B rows.

  The text of a row is the prefix, then its shared prompt if there are any, then
  the tokens of the row itself.
  """

  prefix: Buffers  # [K, H, S0] and, for values, [K, S0, H].
  rows: Buffers  # [B, K, H, S] and, for values, [B, K, S, H].
  lengths: Int[Array, "B"]  # Tokens of each row in `rows`.
  shared: Shared | None = None

  @property
  def positions(self) -> Int[Array, "B"]:
    """The position of each row's next token."""
    start = self.lengths + jax.tree.leaves(self.prefix)[0].shape[-1]
    if self.shared is None:
      return start
    return start + jnp.repeat(self.shared.lengths, self.rows_per_prompt)

  @property
  def rows_per_prompt(self) -> int:
    """Number of rows that share a prompt."""
    return len(self.lengths) // len(self.shared.lengths)

  @property
  def size(self) -> int:
    """Number of tokens that each row has room for."""
    return jax.tree.leaves(self.rows)[0].shape[-1]

  @property
  def prompt_size(self) -> int:
    """Tokens that each shared prompt has room for; 0 without any."""
    if self.shared is None:
      return 0
    return jax.tree.leaves(self.shared.rows)[0].shape[-1]


def empty(
  config: ModelConfig,
  rows: int,
  size: int,
  *,
  prefix: Buffers = (),
  prompts: int = 0,
  prompt_size: int = 0,
) -> Cache:
  """A cache without tokens, apart from the prefix.

  Args:
    config: of the model.
    rows: number of rows, B.
    size: tokens that each row has room for.
    prefix: tokens that all rows begin with, from `as_prefix`; () for none.
    prompts: number of shared prompts, M; 0 if rows hold their own prompts.
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
  """The buffers of a cache of one row, for `empty(prefix=...)`."""
  stacked = _is_stacked(cache.rows)
  return jax.tree.map(lambda x: x[:, 0] if stacked else x[0], cache.rows)


def append(
  cache: Cache, layer: LayerIndex, new: tuple[Float[Array, "B T K H"], ...]
) -> Cache:
  """The cache with T tokens of one layer written after the tokens of each row.

  `lengths` does not change, as other layers write to the same place; `advance`
  changes it once per step. Tokens for which there is no room are dropped.

  Args:
    cache: of the rows.
    layer: number of the layer.
    new: keys and values, or latents as a tuple of one array.
  """
  rows = cache.rows
  count, tokens, heads = new[0].shape[:3]
  # Indices that broadcast to [B, T, K], the leading dimensions of `new`.
  places = cache.lengths[:, None, None] + jnp.arange(tokens)[:, None]
  row, head = jnp.arange(count)[:, None, None], jnp.arange(heads)
  stacked = _is_stacked(rows)

  def write(old, new, at):
    new = new.astype(old.dtype)
    return old.at[at].set(new, mode="drop", unique_indices=True)

  def put(old, new, tokens_last):
    index = lambda place: (head, *[slice(None)] * tokens_last, place)
    if stacked:
      # The layer is made an array, as then all indexed dimensions come first in
      # the result, whatever slices stand between them.
      return write(old, new, (jnp.asarray(layer), row, *index(places)))
    # With vmap over rows, XLA sees that no row depends on another, and gathers
    # nothing if a mesh splits the rows. It is not used for stacked buffers, as
    # TPUs would copy the whole buffer.
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
  """Attention of T new tokens to all tokens of their rows.

  The new tokens must have been appended, but not yet counted by `advance`. A
  latent serves as key and as value.

  Args:
    cache: of the rows.
    layer: number of the layer.
    queries: of the new tokens.
    scale: factor of the scores.
  """
  tokens = jnp.arange(1, queries.shape[1] + 1)  # Each sees itself as well.
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
  """The tokens of one layer; `layer` is None if only that layer is given."""
  arrays = buffers if layer is None else read(buffers, layer)
  keys, values = arrays if len(arrays) == 2 else (*arrays, None)
  return Segment(keys, values, lengths)


def advance(cache: Cache, count: Int[Array, "B"] | int) -> Cache:
  """The cache with `count` more tokens per row, after all layers appended."""
  return cache.replace(lengths=cache.lengths + count)


def read(
  buffers: Buffers, layer: LayerIndex
) -> tuple[Float[Array, "..."], ...]:
  """The arrays of one layer: keys and values, or latents."""
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
  """The cache with some rows restarted: they hold a prompt and nothing else.

  Args:
    cache: the cache. If its rows share prompts, all rows of a prompt must be
      restarted together.
    row: the rows to restart; those out of range are ignored.
    prompts: a cache whose rows are the prompts.
    source: the row of `prompts` for each `row`.
    lengths: tokens of each prompt.
  """
  if cache.shared is None:
    return cache.replace(
      rows=_copy_rows(cache.rows, row, prompts.rows, source),
      lengths=_put(cache.lengths, row, lengths),
    )
  # All rows that share a prompt write the same values to the same place.
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
  """`rows` with rows `source` of `others` written over rows `target`.

  Rows of `others` may have less room; they are written from the first token on.
  """

  def put(old, new):
    at = (target, slice(None), slice(new.shape[-2]), slice(new.shape[-1]))
    if _is_stacked(rows):
      return old.at[:, *at].set(new[:, source], mode="drop")
    return old.at[at].set(new[source], mode="drop")

  return jax.tree.map(put, rows, others)


def grow(cache: Cache, size: int, prompt_size: int = 0) -> Cache:
  """The cache with room for `size` tokens per row; tokens beyond are lost.

  `prompt_size` is the room of each shared prompt; 0 leaves it as it is.
  """

  def resize(buffers, size):
    def one(path, array):
      axis = (-1, -2)[path[-1].idx]  # S in the first array and in the second.
      change = [(0, 0, 0)] * array.ndim
      change[axis] = (0, size - array.shape[axis], 0)  # May be negative.
      return jax.lax.pad(array, jnp.zeros((), array.dtype), change)

    return jax.tree.map_with_path(one, buffers)

  cache = cache.replace(rows=resize(cache.rows, size))
  if prompt_size and (shared := cache.shared) is not None:
    shared = shared.replace(rows=resize(shared.rows, prompt_size))
    cache = cache.replace(shared=shared)
  return cache


def logical_axes(cache: Cache) -> Cache:
  """The logical axes of every array, as a tree like the cache.

  Leaves are tuples of names; `AXIS_RULES` maps them to mesh axes.
  """

  def names(path, array):
    if array.ndim == 1:
      return ("rows",)
    if path[0].name == "prefix":  # Replicated on every device.
      return (None,) * array.ndim
    last = ((None, "tokens"), ("tokens", None))[path[-1].idx]
    return (*("layers",) * (array.ndim - 4), "rows", "kv_heads", *last)

  return jax.tree.map_with_path(names, cache)


def shard_constraint(cache: Cache) -> Cache:
  """The cache, sharded over the mesh of the context by its `logical_axes`."""
  constrain = lambda x, names: sharding.shard_constraint(x, *names)
  return jax.tree.map(constrain, cache, logical_axes(cache))


def _zeros(config: ModelConfig, rows: tuple[int, ...], size: int) -> Buffers:
  """Empty buffers of `size` tokens; `rows` are their leading dimensions."""
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
  """Whether the layers share arrays with a leading L, for a scan."""
  return not isinstance(buffers[0], tuple)
