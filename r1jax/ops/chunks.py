"""A function of many tokens, computed for a chunk of them at a time."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def over_chunks(fn: Callable, chunk: int, weights, floats, integers):
  """fn(weights, floats, integers), with buffers of `chunk` tokens at most.

  Args:
    fn: treats tokens independently: row m of its results depends on row m of
      its inputs and on the weights.
    chunk: tokens per call.
    weights: a tree of arrays, the same in every call.
    floats: a tree of arrays [M, ...], differentiable.
    integers: a tree of arrays [M, ...]. The padding of the last chunk is -1,
      that of `floats` 0.

  Returns:
    A tree of arrays [M, ...]. Only inputs are kept for the gradient, which runs
    `fn` again and accumulates that of the weights in float32. Up to `chunk`
    tokens are one plain call.
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
    of_weights, of_floats = pull(gradients)
    return jax.tree.map(jnp.add, total, of_weights), of_floats

  zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
  parts = (
    _split(floats, chunk),
    _split(integers, chunk, fill=-1),
    _split(gradients, chunk),
  )
  total, of_floats = jax.lax.scan(add, zeros, parts)
  total = jax.tree.map(lambda t, w: t.astype(w.dtype), total, weights)
  return total, _join(of_floats, count), None


_chunked.defvjp(_forward, _backward)


def _split(tree, chunk, fill=0):
  """[M, ...] as [M / chunk, chunk, ...], padded with `fill`."""

  def split(x):
    padding = [(0, -x.shape[0] % chunk)] + [(0, 0)] * (x.ndim - 1)
    padded = jnp.pad(x, padding, constant_values=fill)
    return padded.reshape(-1, chunk, *x.shape[1:])

  return jax.tree.map(split, tree)


def _join(tree, count):
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], tree)
