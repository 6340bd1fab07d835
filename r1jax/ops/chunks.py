"""Applies a function of tokens to one chunk of tokens at a time."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def over_chunks(fn: Callable, chunk: int, weights, floats, integers):
  """Returns fn(weights, floats, integers), computed `chunk` tokens at a time.

  Only the inputs are saved for the gradient, which runs `fn` again. Gradients
  of the weights accumulate in float32. If M is at most `chunk`, it is a plain
  call of `fn`.

  Args:
    fn: must treat tokens independently: row m of its result depends only on row
      m of `floats` and `integers`, and on the weights.
    chunk: tokens per call.
    weights: a tree of arrays, the same in every call.
    floats: a tree of arrays [M, ...], differentiable. The last chunk is padded
      with 0.
    integers: a tree of arrays [M, ...]. The last chunk is padded with -1.

  Returns:
    A tree of arrays [M, ...].
  """
  if jax.tree.leaves(floats)[0].shape[0] <= chunk:
    return fn(weights, floats, integers)
  return _chunked(fn, chunk, weights, floats, integers)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(fn, chunk, weights, floats, integers):
  return _forward(fn, chunk, weights, floats, integers)[0]


def _forward(fn, chunk, weights, floats, integers):
  count = jax.tree.leaves(floats)[0].shape[0]
  parts = _split(floats, chunk), _split(integers, chunk, fill=-1)
  out = jax.lax.map(lambda part: fn(weights, *part), parts)
  return _join(out, count), (weights, floats, integers)


def _backward(fn, chunk, saved, gradients):
  weights, floats, integers = saved
  count = jax.tree.leaves(floats)[0].shape[0]

  def add(total, part):
    floats, integers, gradients = part
    _, pull = jax.vjp(lambda w, f: fn(w, f, integers), weights, floats)
    d_weights, d_floats = pull(gradients)
    return jax.tree.map(jnp.add, total, d_weights), d_floats

  zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
  parts = (
    _split(floats, chunk),
    _split(integers, chunk, fill=-1),
    _split(gradients, chunk),
  )
  d_weights, d_floats = jax.lax.scan(add, zeros, parts)
  d_weights = jax.tree.map(lambda d, w: d.astype(w.dtype), d_weights, weights)
  return d_weights, _join(d_floats, count), None


_chunked.defvjp(_forward, _backward)


def _split(tree, chunk, fill=0):
  """Arrays [M, ...] as [ceil(M / chunk), chunk, ...], padded with `fill`."""

  def split(x):
    padding = [(0, -x.shape[0] % chunk)] + [(0, 0)] * (x.ndim - 1)
    padded = jnp.pad(x, padding, constant_values=fill)
    return padded.reshape(-1, chunk, *x.shape[1:])

  return jax.tree.map(split, tree)


def _join(tree, count):
  """The inverse of `_split`: arrays [count, ...], without the padding."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], tree)
