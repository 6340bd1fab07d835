"""Logprobs and entropies of target tokens, with few logits in memory at once.

The logits [B, T, V] of a batch do not fit into memory, so they are computed for
one chunk of tokens at a time. A chunk is a number of columns of all rows, which
keeps a sharding of the rows intact. Tokens that are not needed are skipped: in
each row, the needed ones are sorted to the front.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float, Int

from r1jax.ops.blockwise import NEVER

LOGITS = 2**25  # Logits in memory at once: 128 MiB in float32.
COLUMNS = 128  # Most tokens per row and chunk, where some are skipped.


def linear_logprobs(
  hidden: Float[Array, "*B T D"],
  unembed: Float[Array, "D V"],
  targets: Int[Array, "*B T"],
  *,
  temperature: float = 1.0,
  vocab_size: int | None = None,
  counted: Bool[Array, "*B T"] | None = None,
  chunk: int | None = None,
  axis: str | tuple[str, ...] | None = None,
) -> tuple[Float[Array, "*B T"], Float[Array, "*B T"]]:
  """log p(target) and the entropy of softmax(hidden @ unembed / temperature).

  Both are in nats and in float32.

  Args:
    hidden: hidden states; a single row may omit B.
    unembed: the matrix from hidden states to logits.
    targets: token ids.
    temperature: of the policy.
    vocab_size: ids from here on are padding of V and get probability 0; None if
      V has no padding.
    counted: False for tokens to skip: their results are 0. None for all tokens.
    chunk: tokens whose logits are in memory at once, also in the gradient,
      which recomputes them. None for 4096, or fewer if LOGITS requires it.
    axis: the mesh axis, or axes, over which `jax.shard_map` has split V; None
      if V is whole.
  """
  unembed = unembed.astype(hidden.dtype)
  fn = functools.partial(unchunked, temperature, vocab_size, axis)
  rows = math.prod(targets.shape[:-1])
  chunk = chunk or min(4096, LOGITS // unembed.shape[1])
  if counted is None and targets.size <= chunk:
    return fn(unembed, hidden, targets)
  if counted is None:
    counted = jnp.ones(targets.shape, bool)
    columns = chunk // rows
  else:
    columns = min(chunk // rows, COLUMNS)
  columns = min(max(1, columns), targets.shape[-1])
  by_row = lambda x, *tail: x.reshape(rows, targets.shape[-1], *tail)
  out = chunked(
    fn, columns, unembed, by_row(hidden, -1), by_row(targets), by_row(counted)
  )
  return tuple(x.reshape(targets.shape) for x in out)


def mask_padding(
  logits: Float[Array, "*B V"],
  vocab_size: int | None,
  first: int | Int[Array, ""] = 0,
) -> Float[Array, "*B V"]:
  """The logits, with -1e30 for the token ids from `vocab_size` on.

  V may be padded beyond the ids of the tokenizer. The last dimension holds the
  ids from `first` on. A `vocab_size` of None means that there is no padding.
  """
  unpadded = isinstance(first, int) and vocab_size == first + logits.shape[-1]
  if vocab_size is None or unpadded:
    return logits
  ids = first + jnp.arange(logits.shape[-1])
  return jnp.where(ids < vocab_size, logits, NEVER)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def unchunked(temperature, vocab_size, axis, unembed, hidden, targets):
  """log p(target) and entropy, each [*B], of hidden states [*B, D], at once.

  Saves the logprobs [*B, V] for the gradient. If V is split over a mesh `axis`,
  `unembed` is this device's part.
  """
  return _unchunked_forward(
    temperature, vocab_size, axis, unembed, hidden, targets
  )[0]


def _unchunked_forward(temperature, vocab_size, axis, unembed, hidden, targets):
  total = functools.partial(_sum, axis=axis)
  logits = jnp.dot(hidden, unembed, preferred_element_type=jnp.float32)
  first = _first(logits.shape[-1], axis)
  logits = mask_padding(logits / temperature, vocab_size, first)
  if axis is None:
    normalizer = jax.nn.logsumexp(logits, axis=-1)
  else:
    largest = jax.lax.pmax(logits.max(axis=-1), axis)
    scaled = jnp.exp(logits - largest[..., None])
    normalizer = largest + jnp.log(total(scaled))
  is_target = first + jnp.arange(logits.shape[-1]) == targets[..., None]
  chosen = total(jnp.where(is_target, logits, 0))
  logprobs = logits - normalizer[..., None]
  entropy = -total(jnp.exp(logprobs) * logprobs)
  saved = unembed, hidden, targets, logprobs, entropy
  return (chosen - normalizer, entropy), saved


def _unchunked_backward(temperature, vocab_size, axis, saved, gradients):
  """d logprob / d logits = 1[target] - p; d entropy = -p (log p + entropy)."""
  unembed, hidden, targets, logprobs, entropy = saved
  if axis is not None:  # Within shard_map, each device has a partial gradient.
    gradients = jax.lax.psum(gradients, axis)
  d_logprob, d_entropy = (x[..., None] for x in gradients)
  first, count = _first(logprobs.shape[-1], axis), logprobs.shape[-1]
  is_target = first + jnp.arange(count) == targets[..., None]
  d_logits = jnp.where(is_target, d_logprob, 0) - jnp.exp(logprobs) * (
    d_logprob + d_entropy * (logprobs + entropy[..., None])
  )
  d_logits = (d_logits / temperature).astype(hidden.dtype)
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  d_unembed = product("...D,...V->DV", hidden, d_logits)
  d_hidden = product("...V,DV->...D", d_logits, unembed).astype(hidden.dtype)
  return d_unembed.astype(unembed.dtype), d_hidden, None


unchunked.defvjp(_unchunked_forward, _unchunked_backward)


def _first(count, axis):
  """The first token id of this device's part of the vocabulary."""
  return 0 if axis is None else jax.lax.axis_index(axis) * count


def _sum(x, axis):
  """The sum over the vocabulary, the last dimension, and over all devices."""
  x = jnp.sum(x, axis=-1)
  return x if axis is None else jax.lax.psum(x, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def chunked(
  fn: Callable,
  columns: int,
  unembed: Float[Array, "D V"],
  hidden: Float[Array, "B T D"],
  targets: Int[Array, "B T"],
  counted: Bool[Array, "B T"],
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Returns fn(unembed, hidden, targets), for `columns` tokens per row at once.

  Results are 0 where `counted` is False. Such tokens are computed only to fill
  the last chunk. The gradient runs `fn` again; the gradient of `unembed`
  accumulates in float32.
  """
  return _chunked_forward(fn, columns, unembed, hidden, targets, counted)[0]


@jax.named_scope("logprobs")
def _chunked_forward(fn, columns, unembed, hidden, targets, counted):
  order, steps = _order(counted, columns)

  def step(i, out):
    take = functools.partial(_take, order=order, step=i, columns=columns)
    new = fn(unembed, take(hidden), take(targets))
    return tuple(_put(x, part, i) for x, part in zip(out, new))

  empty = jnp.zeros(order.shape, jnp.float32)
  out = jax.lax.fori_loop(0, steps, step, (empty, empty))
  out = (_restore(x, order, counted.shape[1]) for x in out)
  out = tuple(jnp.where(counted, x, 0.0) for x in out)
  return out, (unembed, hidden, targets, counted)


@jax.named_scope("logprobs")
def _chunked_backward(fn, columns, saved, gradients):
  unembed, hidden, targets, counted = saved
  order, steps = _order(counted, columns)
  gradients = tuple(jnp.where(counted, g, 0.0) for g in gradients)

  def step(i, carry):
    d_unembed, d_hidden = carry
    take = functools.partial(_take, order=order, step=i, columns=columns)
    chunk = lambda unembed, hidden: fn(unembed, hidden, take(targets))
    _, pull = jax.vjp(chunk, unembed, take(hidden))
    chunk_d_unembed, chunk_d_hidden = pull(tuple(take(g) for g in gradients))
    return d_unembed + chunk_d_unembed, _put(d_hidden, chunk_d_hidden, i)

  empty = jnp.zeros((*order.shape, hidden.shape[-1]), hidden.dtype)
  zeros = jnp.zeros(unembed.shape, jnp.float32)
  d_unembed, d_hidden = jax.lax.fori_loop(0, steps, step, (zeros, empty))
  d_hidden = _restore(d_hidden, order, counted.shape[1])
  return d_unembed.astype(unembed.dtype), d_hidden, None, None


chunked.defvjp(_chunked_forward, _chunked_backward)


def _order(counted, columns):
  """The order in which tokens are computed, and the number of chunks in use.

  The order [B, whole chunks] has the indices of each row's counted tokens
  first. It is padded with T, for which `_take` returns 0.
  """
  length = counted.shape[1]
  order = jnp.argsort(~counted, axis=1, stable=True)
  fill = ((0, 0), (0, -length % columns))
  order = jnp.pad(order, fill, constant_values=length)
  steps = -(-jnp.max(jnp.sum(counted, axis=1)) // columns)
  # Within shard_map all devices must run the same number of steps, as `fn` may
  # communicate.
  if axes := _manual_axes():
    steps = jax.lax.pmax(steps, axes)
  return order, steps


def _manual_axes() -> tuple[str, ...]:
  """The mesh axes of the `jax.shard_map` around this call; () if none."""
  mesh = jax.sharding.get_abstract_mesh()
  kinds = zip(mesh.axis_names, mesh.axis_types or (), strict=False)
  return tuple(axis for axis, kind in kinds if kind == AxisType.Manual)


def _take(x, order, step, columns):
  """The tokens [B, columns, ...] of chunk `step`."""
  index = jax.lax.dynamic_slice_in_dim(order, step * columns, columns, 1)
  index = jnp.expand_dims(index, range(2, x.ndim))
  return jnp.take_along_axis(x, index, axis=1, mode="fill", fill_value=0)


def _put(x, part, step):
  """`x` with chunk `step` replaced by `part`."""
  start = step * part.shape[1]
  return jax.lax.dynamic_update_slice_in_dim(x, part, start, 1)


def _restore(x, order, length):
  """The tokens of `x` back in their places in the rows; inverts `order`."""
  back = jnp.argsort(order, axis=1, stable=True)[:, :length]
  back = jnp.expand_dims(back, range(2, x.ndim))
  return jnp.take_along_axis(x, back, axis=1)
