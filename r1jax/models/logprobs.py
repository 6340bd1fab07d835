"""Log-probabilities without logits: a few columns of tokens at a time.

Rows stay whole, so that the axis that a mesh splits is never taken apart. Of
each row the columns that count come first, and the rest are not computed.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from r1jax import sharding
from r1jax.models.blockwise import NEVER


def mask_padding(
  logits: Float[Array, "*B V"],
  vocab_size: int | None,
  first: int | Int[Array, ""] = 0,
) -> Float[Array, "*B V"]:
  """Logits of ids that no tokenizer makes are out of reach: -1e30.

  The logits are those of the ids from `first` on.
  """
  whole = isinstance(first, int) and vocab_size == first + logits.shape[-1]
  if vocab_size is None or whole:
    return logits
  ids = first + jnp.arange(logits.shape[-1])
  return jnp.where(ids < vocab_size, logits, NEVER)


def on_mesh(
  fn: Callable,
  mesh: AbstractMesh,
  unembed: Float[Array, "D V"],
  hidden: Float[Array, "B T D"],
  targets: Int[Array, "B T"],
  counted: Bool[Array, "B T"] | None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """fn(axis, unembed, hidden, targets, counted), on each device's own tokens.

  V is split over `axis`, if it is not None. The gradient of `unembed` is summed
  over devices once, when a device has been through its tokens.
  """
  tokens = sharding.spec(("rows", "tokens", None), hidden.shape, mesh)
  weight = sharding.spec(("width", "vocab"), unembed.shape, mesh)
  width, axis = weight

  def local(unembed, *rest):
    if width is not None:
      unembed = jax.lax.all_gather(unembed, width, tiled=True)
    return fn(axis, unembed, *rest)

  two = PartitionSpec(*tokens[:2])
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(weight, tokens, two, two),
    out_specs=(two, two),
    check_vma=False,
  )(unembed, hidden, targets, counted)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def whole(temperature, vocab_size, axis, unembed, hidden, targets):
  """(log p(target), entropy), each [*B], of hidden [*B, D]; keeps [*B, V].

  With an `axis` of the mesh, V is this device's part of it.
  """
  return _whole_forward(
    temperature, vocab_size, axis, unembed, hidden, targets
  )[0]


def _whole_forward(temperature, vocab_size, axis, unembed, hidden, targets):
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


def _whole_backward(temperature, vocab_size, axis, saved, gradients):
  """d logprob = 1[target] - p; d entropy = -p (log p + entropy)."""
  unembed, hidden, targets, logprobs, entropy = saved
  if axis is not None:  # Each device holds a share of the gradient.
    gradients = jax.lax.psum(gradients, axis)
  of_logprob, of_entropy = (x[..., None] for x in gradients)
  first, count = _first(logprobs.shape[-1], axis), logprobs.shape[-1]
  is_target = first + jnp.arange(count) == targets[..., None]
  d_logits = jnp.where(is_target, of_logprob, 0) - jnp.exp(logprobs) * (
    of_logprob + of_entropy * (logprobs + entropy[..., None])
  )
  d_logits = (d_logits / temperature).astype(hidden.dtype)
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  d_unembed = product("...D,...V->DV", hidden, d_logits)
  d_hidden = product("...V,DV->...D", d_logits, unembed).astype(hidden.dtype)
  return d_unembed.astype(unembed.dtype), d_hidden, None


whole.defvjp(_whole_forward, _whole_backward)


def _first(count, axis):
  """The first id of this device's part of the vocabulary."""
  return 0 if axis is None else jax.lax.axis_index(axis) * count


def _sum(x, axis):
  """Over the vocabulary."""
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
  """fn(unembed, hidden, targets), `columns` tokens of each row at a time.

  Where `counted` is False the results are 0, and cost nothing: those tokens are
  never looked at, but to fill up the last chunk. The gradient runs `fn` again,
  and that of `unembed` adds up in float32.
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
    one = lambda unembed, hidden: fn(unembed, hidden, take(targets))
    _, pull = jax.vjp(one, unembed, take(hidden))
    of_unembed, of_hidden = pull(tuple(take(g) for g in gradients))
    return d_unembed + of_unembed, _put(d_hidden, of_hidden, i)

  empty = jnp.zeros((*order.shape, hidden.shape[-1]), hidden.dtype)
  zeros = jnp.zeros(unembed.shape, jnp.float32)
  d_unembed, d_hidden = jax.lax.fori_loop(0, steps, step, (zeros, empty))
  d_hidden = _restore(d_hidden, order, counted.shape[1])
  return d_unembed.astype(unembed.dtype), d_hidden, None, None


chunked.defvjp(_chunked_forward, _chunked_backward)


def _order(counted, columns):
  """Each row's tokens, those that count first, in whole chunks; and how many
  chunks hold any. Beyond the last token stands T, which `_take` reads as 0."""
  length = counted.shape[1]
  order = jnp.argsort(~counted, axis=1, stable=True)
  fill = ((0, 0), (0, -length % columns))
  order = jnp.pad(order, fill, constant_values=length)
  steps = -(-jnp.max(jnp.sum(counted, axis=1)) // columns)
  if by_hand := sharding.by_hand():  # All devices take equally many.
    steps = jax.lax.pmax(steps, by_hand)
  return order, steps


def _take(x, order, step, columns):
  """The tokens [B, columns, ...] of one chunk."""
  index = jax.lax.dynamic_slice_in_dim(order, step * columns, columns, 1)
  index = jnp.expand_dims(index, range(2, x.ndim))
  return jnp.take_along_axis(x, index, axis=1, mode="fill", fill_value=0)


def _put(x, part, step):
  """`x` with one chunk written."""
  start = step * part.shape[1]
  return jax.lax.dynamic_update_slice_in_dim(x, part, start, 1)


def _restore(x, order, length):
  """Tokens in their own order again."""
  back = jnp.argsort(order, axis=1, stable=True)[:, :length]
  back = jnp.expand_dims(back, range(2, x.ndim))
  return jnp.take_along_axis(x, back, axis=1)
