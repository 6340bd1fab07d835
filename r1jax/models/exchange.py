"""Tokens to the devices that hold their experts, and the sums back.

For use within `jax.shard_map`. The devices along the mesh axis `expert` hold
E / N experts each, in order, and tokens of their own. Three ways, all of which
drop no token and use buffers of the worst case, N times a device's tokens, so
that the caller hands over a chunk of them at a time:

- `ring`: every device reads all tokens, and each sum goes to its token's owner.
- `all_to_all`: a token goes to the devices that hold an expert of its choice,
  in buffers of one size for each pair of devices. Given less room than the
  worst case, it drops what does not fit.
- `ragged`: likewise, but only what is there is sent.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

AXIS = "expert"
NOBODY = -1  # The expert of a choice that is none.

# What a device's own experts make of tokens: (x, gates, indices) -> sums.
Run = Callable[..., Float[Array, "M D"]]


def ring(run: Run, x, gates, indices, experts: int, capacity: float | None):
  """All tokens past all experts; see `EXCHANGES`."""
  del capacity  # Nothing is sent that could be dropped.
  gather = functools.partial(lax.all_gather, axis_name=AXIS, tiled=True)
  out = run(gather(x), gather(gates), _own(gather(indices), experts))
  out = lax.psum_scatter(out, AXIS, scatter_dimension=0, tiled=True)
  return out, jnp.zeros(len(x))


def all_to_all(
  run: Run, x, gates, indices, experts: int, capacity: float | None
):
  """Tokens in a buffer for each pair of devices; see `EXCHANGES`."""
  shards, room = lax.axis_size(AXIS), len(x)
  if capacity is not None:
    room = min(room, math.ceil(capacity * indices.size / shards))
  wanted = _wanted(indices, experts)
  start = jnp.arange(shards) * room
  seats = _seat(wanted, indices.shape[1], start, room, shards * room)
  move = lambda x, fill=0: lax.all_to_all(x, AXIS, 0, 0, tiled=True)
  out = _through(run, seats, move, move, x, gates, indices, experts)
  return out, _dropped(wanted, indices, experts, room)


def ragged(run: Run, x, gates, indices, experts: int, capacity: float | None):
  """Tokens side by side, as many as there are; see `EXCHANGES`."""
  del capacity
  shards, per_token = lax.axis_size(AXIS), indices.shape[1]
  wanted = _wanted(indices, experts)
  counts = jnp.sum(wanted, axis=0, dtype=jnp.int32)
  start, rows = jnp.cumsum(counts) - counts, len(x) * min(shards, per_token)
  seats = _seat(wanted, per_token, start, len(x), rows)
  table = lax.all_gather(counts, AXIS)
  there = lambda x, fill=0: _send(shards * len(wanted), fill, x, table)
  back = lambda x: _send(len(seats.source), 0, x, table.T)
  out = _through(run, seats, there, back, x, gates, indices, experts)
  return out, jnp.zeros(len(x))


# exchange(run, x [M, D], gates [M, k], indices [M, k], experts, capacity) gives
# the sum of each token's choices [M, D], and how many of them were dropped [M].
# `experts` is how many a device holds; `run` reads indices that count from its
# first, or are NOBODY. `capacity` is the room of a buffer over what an even
# spread of the choices would take; None for the worst case.
EXCHANGES = {"ring": ring, "all_to_all": all_to_all, "ragged": ragged}


def _own(indices, experts):
  """Indices among this device's experts; NOBODY for those elsewhere."""
  own = indices - lax.axis_index(AXIS) * experts
  return jnp.where((own >= 0) & (own < experts), own, NOBODY)


def _wanted(indices, experts):
  """True where a token goes to a device: [M, N]."""
  shards = jnp.arange(lax.axis_size(AXIS))
  at = jnp.where(indices < 0, NOBODY, indices // experts)
  return jnp.any(at[..., None] == shards, axis=1)


class _Seats(NamedTuple):
  """Where tokens stand in the buffer that is sent."""

  source: Int[Array, "rows"]  # The token in each row; M where none is.
  slots: Int[Array, "M s"]  # The rows of each token; beyond all for none.


def _seat(wanted, per_token, start, room, rows) -> _Seats:
  """The seats of tokens, those for one device side by side from its start."""
  tokens = len(wanted)
  place = jnp.cumsum(wanted, axis=0) - 1
  found = jnp.where(wanted & (place < room), start + place, rows)
  slots = jnp.sort(found, axis=1)[:, :per_token]  # None is the highest.
  token = jnp.broadcast_to(jnp.arange(tokens)[:, None], slots.shape)
  source = jnp.full(rows, tokens).at[slots].set(token, mode="drop")
  return _Seats(source, slots)


def _dropped(wanted, indices, experts, room):
  """How many of each token's choices found no room."""
  lost = wanted & (jnp.cumsum(wanted, axis=0) > room)
  shards = jnp.arange(wanted.shape[1])
  chosen = (indices // experts)[..., None] == shards
  return jnp.sum(chosen & lost[:, None], axis=(1, 2), dtype=jnp.float32)


def _through(run, seats, there, back, x, gates, indices, experts):
  """There, past the experts, and back."""
  known = _take(indices, seats.source, fill=NOBODY)
  out = run(
    there(_spread(x, *seats)),
    there(_spread(gates, *seats)),
    _own(there(known, fill=NOBODY), experts),
  )
  return _collect(back(out), *seats)


# Two linear maps, each the other's transpose: neither scatters.


@jax.custom_vjp
def _spread(x, source, slots):
  """Tokens to their rows."""
  return _take(x, source)


@jax.custom_vjp
def _collect(x, source, slots):
  """The sums over each token's rows."""
  return jnp.sum(_take(x, slots), axis=1)


_spread.defvjp(
  lambda x, *seats: (_spread(x, *seats), seats),
  lambda seats, gradient: (_collect(gradient, *seats), None, None),
)
_collect.defvjp(
  lambda x, *seats: (_collect(x, *seats), seats),
  lambda seats, gradient: (_spread(gradient, *seats), None, None),
)


def _take(x, index, fill=0):
  """x[index] on the first axis; `fill` where the index is out of range."""
  return x.at[index].get(mode="fill", fill_value=fill)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _send(rows: int, fill: int, x, table: Int[Array, "N N"]):
  """Segments of `x` to their devices, those received side by side.

  Device i has table[i, j] rows for device j, and all of its segments stand in
  the order of j; received, they stand in the order of i. Sending them back is
  the same with the table turned round, and so is the gradient.
  """
  me = lax.axis_index(AXIS)
  before = lambda counts, axis: jnp.cumsum(counts, axis) - counts
  return _ragged_all_to_all(
    x,
    jnp.full((rows, *x.shape[1:]), fill, x.dtype),
    before(table, 1)[me],  # Where each segment stands here,
    table[me],
    before(table, 0)[me],  # and where it will stand there.
    table[:, me],
  )


_send.defvjp(
  lambda rows, fill, x, table: (_send(rows, fill, x, table), (x, table)),
  lambda rows, fill, saved, gradient: (
    _send(len(saved[0]), 0, gradient, saved[1].T),
    None,
  ),
)


def _ragged_all_to_all(*operands):
  """`jax.lax.ragged_all_to_all`, or the same of other collectives."""
  real = functools.partial(lax.ragged_all_to_all, axis_name=AXIS)
  return lax.platform_dependent(
    *operands, tpu=real, cuda=real, default=_emulated
  )


def _emulated(x, output, starts, sizes, targets, received):
  """CPUs have no ragged collective: all that is sent, and slices of it."""
  me = lax.axis_index(AXIS)
  gather = functools.partial(lax.all_gather, axis_name=AXIS)
  sent = gather(x)
  starts, sizes, targets = (gather(v)[:, me] for v in (starts, sizes, targets))
  row = jnp.arange(len(output))
  for i in range(len(received)):
    at = row - targets[i]
    here = (at >= 0) & (at < jnp.minimum(sizes[i], received[i]))
    here = here.reshape(-1, *[1] * (x.ndim - 1))
    output = jnp.where(here, _take(sent[i], starts[i] + at), output)
  return output
