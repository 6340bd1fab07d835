"""Log-probabilities without logits: a few columns of tokens at a time.

Rows stay whole, so that the axis that a mesh splits is never taken apart. Of
each row the columns that count come first, and the rest are not computed.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from r1jax.models.blockwise import NEVER


def mask_padding(
  logits: Float[Array, "*B V"], vocab_size: int | None
) -> Float[Array, "*B V"]:
  """Logits of ids that no tokenizer makes are out of reach: -1e30."""
  if vocab_size is None or vocab_size == logits.shape[-1]:
    return logits
  return jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, NEVER)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def whole(temperature, vocab_size, unembed, hidden, targets):
  """(log p(target), entropy), each [*B], of hidden [*B, D]; keeps [*B, V]."""
  return _whole_forward(temperature, vocab_size, unembed, hidden, targets)[0]


def _whole_forward(temperature, vocab_size, unembed, hidden, targets):
  logits = jnp.dot(hidden, unembed, preferred_element_type=jnp.float32)
  logits = mask_padding(logits / temperature, vocab_size)
  normalizer = jax.nn.logsumexp(logits, axis=-1)
  is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
  chosen = jnp.sum(jnp.where(is_target, logits, 0), axis=-1)
  logprobs = logits - normalizer[..., None]
  entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
  saved = unembed, hidden, targets, logprobs, entropy
  return (chosen - normalizer, entropy), saved


def _whole_backward(temperature, vocab_size, saved, gradients):
  """d logprob = 1[target] - p; d entropy = -p (log p + entropy)."""
  unembed, hidden, targets, logprobs, entropy = saved
  of_logprob, of_entropy = (x[..., None] for x in gradients)
  is_target = jnp.arange(logprobs.shape[-1]) == targets[..., None]
  d_logits = jnp.where(is_target, of_logprob, 0) - jnp.exp(logprobs) * (
    of_logprob + of_entropy * (logprobs + entropy[..., None])
  )
  d_logits = (d_logits / temperature).astype(hidden.dtype)
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  d_unembed = product("...D,...V->DV", hidden, d_logits)
  d_hidden = product("...V,DV->...D", d_logits, unembed).astype(hidden.dtype)
  return d_unembed.astype(unembed.dtype), d_hidden, None


whole.defvjp(_whole_forward, _whole_backward)


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
  return order, -(-jnp.max(jnp.sum(counted, axis=1)) // columns)


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
