"""Routed experts: each token passes through its k experts; none is dropped.

A choice is one of the M * k pairs of a token and an expert. An index outside of
0..E-1 contributes nothing: that expert is on another device, or the slot holds
no token.

  dense      computes all E experts for every token; for small models
  blocked    grouped matmuls over blocks of tokens sorted by expert
  ragged     the same by the kernels of `grouped`; for TPUs
  windowed   one of these for a window of choices at a time, if most experts are
             on other devices
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from r1jax.ops.chunks import over_chunks
from r1jax.ops.grouped import grouped_gate_up, grouped_matmul
from r1jax.ops.linear import (
  gated_silu,
  input_gradient,
  linear,
  weight_gradient,
)

# `dense` is used up to DENSE hidden units of all experts together (E * F), or
# up to FEW pairs of tokens and experts (M * E).
DENSE = 512
FEW = 1024


def expert_swiglu(
  x: Float[Array, "M D"],
  gates: Float[Array, "M k"],
  indices: Int[Array, "M k"],
  gate_up: Float[Array, "E D 2 F"],
  down: Float[Array, "E F D"],
  *,
  chunk: int,
  window: int | None = None,
) -> Float[Array, "M D"]:
  """The weighted sum of experts, sum_k gates[:, k] * swiglu_indices[:, k](x).

  Args:
    x: hidden states of M tokens.
    gates: factors of the experts' outputs.
    indices: the experts of each token; others than 0..E-1 contribute nothing.
    gate_up: of each expert; see `swiglu`.
    down: of each expert; see `swiglu`.
    chunk: tokens whose buffers are in memory at once; buffers have room for the
      worst case of routing.
    window: choices whose buffers are in memory at once, if most indices are
      experts of other devices; None otherwise.
  """
  count, width, _ = down.shape
  if count * width <= DENSE or count * x.shape[0] <= FEW:
    fn = dense
  elif window is not None and window < min(chunk, len(x)) * indices.shape[1]:
    fn = functools.partial(windowed, _sparse, window)
  else:
    fn = _sparse
  return over_chunks(fn, chunk, (gate_up, down), (x, gates), indices)


def _sparse(weights, floats, indices):
  """`ragged` on TPUs, `blocked` elsewhere."""
  return jax.lax.platform_dependent(
    weights, floats, indices, tpu=ragged, default=blocked
  )


def dense(weights, floats, indices) -> Float[Array, "M D"]:
  """All experts of all tokens, with a gate of 0 for experts not chosen.

  It computes E experts per token instead of k, which is fastest while E * F is
  no wider than a dense layer. For the arguments, see `blocked`.
  """
  (gate_up, down), (x, gates) = weights, floats
  experts = jnp.arange(gate_up.shape[0])
  chosen = indices[..., None] == experts  # [M, k, E]
  gate_of_expert = jnp.sum(jnp.where(chosen, gates[..., None], 0), axis=1)
  gate_of_expert = gate_of_expert.astype(x.dtype)
  width, hidden = gate_up.shape[1], gate_up.shape[3]
  if len(x) * (width + hidden) < 2 * width * hidden:
    # CPUs copy an operand of the product. Copying the tokens for every expert
    # moves fewer numbers than copying the weights.
    copies = jnp.broadcast_to(x, (len(experts), *x.shape))
    both = jnp.einsum("EMD,EDcF->EMcF", copies, gate_up)
    gated = gated_silu(both) * gate_of_expert.T[..., None]
    return jnp.einsum("EMF,EFD->MD", gated, down)
  both = jnp.einsum("MD,EDcF->MEcF", x, gate_up)
  gated = gated_silu(both) * gate_of_expert[..., None]
  return jnp.einsum("MEF,EFD->MD", gated, down)


def ragged(
  weights, floats, indices, impl: str | None = None
) -> Float[Array, "M D"]:
  """The result of `blocked`, by `grouped`: TPUs have kernels for it.

  Gates multiply the hidden units, so that their gradient needs no outputs.
  """
  (gate_up, down), (x, gates) = weights, floats
  count = gate_up.shape[0]
  choices = _known(indices, count)
  order = jnp.argsort(choices, stable=True)
  counts = jnp.sum(choices[:, None] == jnp.arange(count), 0, dtype=jnp.int32)
  # Rows after the last expert's belong to no expert. They are undefined in both
  # directions, so they are masked.
  used = (jnp.arange(order.size) < jnp.sum(counts))[:, None]
  rows = jnp.where(used, x[order // indices.shape[1]], 0)
  gate = jnp.where(used, gates.reshape(-1)[order][:, None], 0).astype(x.dtype)
  hidden = grouped_gate_up(rows, gate_up, counts, impl=impl)
  out = grouped_matmul(hidden * gate, down, counts, impl=impl)
  out = jnp.where(used, out, 0)
  of_choice = out[jnp.argsort(order)].reshape(*indices.shape, -1)  # [M, k, D]
  return of_choice.sum(axis=1)


@jax.custom_vjp
def blocked(
  weights: tuple[Float[Array, "E D 2 F"], Float[Array, "E F D"]],
  floats: tuple[Float[Array, "M D"], Float[Array, "M k"]],
  indices: Int[Array, "M k"],
) -> Float[Array, "M D"]:
  """The weighted sum of experts by grouped matmuls; see `expert_swiglu`.

  Choices are sorted by expert. Those of each expert are padded to whole blocks,
  and a loop runs over the blocks in use. The buffer has room for the worst
  case. Tokens are moved by gathers, not scatters, in the gradient as well. The
  values before the silu are saved for the gradient.

  Args:
    weights: `gate_up` and `down` of all experts.
    floats: hidden states and gates.
    indices: the experts of each token.
  """
  return _forward(weights, floats, indices)[0]


def _forward(weights, floats, indices):
  (gate_up, down), (x, gates) = weights, floats
  plan, flat = _plan(indices, len(down)), _flat(gate_up)
  rows = _take(x, plan.source // indices.shape[1])

  def run(b, carry):  # Block b of rows, all of one expert.
    both, out = carry
    e, put = plan.expert[b], functools.partial(_put, b=b, block=plan.block)
    both_b = linear(_block(rows, b, plan.block), flat[e])
    return put(both, both_b), put(out, linear(_activate(both_b), down[e]))

  both = jnp.zeros((len(rows), flat.shape[-1]), x.dtype)
  both, out = jax.lax.fori_loop(0, plan.used, run, (both, jnp.zeros_like(rows)))
  of_choice = _take(out, plan.slot)  # [M, k, D]
  mixed = jnp.einsum("MKD,MK->MD", of_choice, gates.astype(x.dtype))
  return mixed, (weights, floats, indices, both)


def _backward(saved, gradient):
  (gate_up, down), (x, gates), indices, both = saved
  plan, flat = _plan(indices, len(down)), _flat(gate_up)
  token = plan.source // indices.shape[1]
  rows, d_out = _take(x, token), _take(gradient, token)
  gate = _take(gates.reshape(-1), plan.source)

  def run(b, carry):
    d_flat, d_down, d_rows, d_gate = carry
    e, put = plan.expert[b], functools.partial(_put, b=b, block=plan.block)
    row, d_out_b, gate_b, both_b = (
      _block(y, b, plan.block) for y in (rows, d_out, gate, both)
    )
    hidden, pull = jax.vjp(_activate, both_b)
    d_hidden = input_gradient(d_out_b, down[e])  # Not yet times the gate.
    gate_b = gate_b[:, None].astype(d_out_b.dtype)
    (d_both,) = pull(d_hidden * gate_b)
    d_gate_b = jnp.sum(hidden * d_hidden, axis=-1).astype(gate.dtype)
    return (
      d_flat.at[e].add(weight_gradient(row, d_both)),
      d_down.at[e].add(weight_gradient(hidden, d_out_b * gate_b)),
      put(d_rows, input_gradient(d_both, flat[e])),
      put(d_gate, d_gate_b),
    )

  d_flat, d_down, d_rows, d_gate = jax.lax.fori_loop(
    0,
    plan.used,
    run,
    tuple(jnp.zeros_like(x) for x in (flat, down, rows, gate)),
  )
  d_x = _take(d_rows, plan.slot).sum(axis=1)
  d_weights = d_flat.reshape(gate_up.shape), d_down
  return d_weights, (d_x, _take(d_gate, plan.slot)), None


blocked.defvjp(_forward, _backward)


def _flat(gate_up):
  """[E, D, 2 F]: gate and up of each expert as one matrix."""
  return gate_up.reshape(*gate_up.shape[:2], -1)


def _activate(both):
  """`gated_silu` of [M, 2 F]."""
  return gated_silu(both.reshape(len(both), 2, -1))


class _Plan(NamedTuple):
  """Where the choices lie in a buffer of rows, sorted by expert, in blocks."""

  block: int  # Rows per block.
  slot: Int[Array, "M k"]  # The row of each choice; out of range if none.
  source: Int[Array, "rows"]  # The choice in each row; M * k if it is empty.
  expert: Int[Array, "blocks"]  # The expert of each block.
  used: Int[Array, ""]  # Number of blocks in use, which come first.


def _plan(indices: Int[Array, "M k"], experts: int) -> _Plan:
  """The plan for a batch of choices; indices outside of 0..E-1 get no row."""
  choices = _known(indices, experts)
  n = choices.size
  # About the mean number of choices per expert, a power of 2 within 8..128.
  block = min(max(8, 1 << (n // experts).bit_length() >> 1), 128)
  order = jnp.sort(choices * n + jnp.arange(n)) % n  # By expert, then token.
  counts = jnp.sum(choices[:, None] == jnp.arange(experts), axis=0)
  blocks = -(-counts // block)
  # Where each expert's choices start in `order`, and in the buffer of rows.
  start = jnp.cumsum(counts) - counts
  row_start = (jnp.cumsum(blocks) - blocks) * block

  # Most blocks that can be in use: every expert may have one partial block.
  worst = n // block + min(experts, n)
  by_order = choices[order]
  row = row_start[by_order] + jnp.arange(n) - start[by_order]
  row = jnp.where(by_order < experts, row, worst * block)
  slot = jnp.zeros(n, jnp.int32).at[order].set(row, unique_indices=True)

  # The inverse: the expert of each block, then the choice in each row.
  ends = jnp.cumsum(blocks)
  expert = jnp.sum(jnp.arange(worst)[:, None] >= ends, axis=1)
  expert = jnp.minimum(expert, experts - 1)  # For blocks that are not in use.
  of_row = jnp.repeat(expert, block)
  place = jnp.arange(worst * block) - row_start[of_row]
  choice = order[jnp.minimum(start[of_row] + place, n - 1)]
  source = jnp.where(place < counts[of_row], choice, n)
  return _Plan(block, slot.reshape(indices.shape), source, expert, ends[-1])


def _known(indices, experts):
  """The expert of every choice [M * k]; E if it is not one of 0..E-1."""
  choices = indices.reshape(-1)
  known = (choices >= 0) & (choices < experts)
  return jnp.where(known, choices, experts)


def _take(x, index):
  """x[index] on the first axis, zeros where the index is out of range."""
  return x.at[index].get(mode="fill", fill_value=0)


def _block(x, b, block):
  """Block b of the rows of `x`."""
  return jax.lax.dynamic_slice_in_dim(x, b * block, block, 0)


def _put(x, part, b, block):
  """`x` with block b of its rows replaced by `part`."""
  return jax.lax.dynamic_update_slice_in_dim(x, part, b * block, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def windowed(
  fn: Callable, window: int, weights, floats, indices
) -> Float[Array, "M D"]:
  """The result of `fn`, computed for `window` choices at a time.

  Only choices of this device's experts take memory and time, so it suits expert
  parallelism, where most choices are of experts on other devices. `fn` is one
  of the functions above. Sums accumulate in float32.
  """
  return _windowed_forward(fn, window, weights, floats, indices)[0]


@jax.named_scope("experts")
def _windowed_forward(fn, window, weights, floats, indices):
  order, steps = _by_expert(indices, len(weights[1]), window)

  def step(i, out):
    token, choice, expert = _window(order, indices, i, window)
    part = _parts(floats, token, choice)
    sums = fn(weights, part, expert)
    return out.at[token].add(sums.astype(out.dtype), mode="drop")

  out = jnp.zeros(floats[0].shape, jnp.float32)
  out = jax.lax.fori_loop(0, steps, step, out).astype(floats[0].dtype)
  return out, (weights, floats, indices)


@jax.named_scope("experts")
def _windowed_backward(fn, window, saved, gradient):
  weights, floats, indices = saved
  order, steps = _by_expert(indices, len(weights[1]), window)

  def step(i, carry):
    d_weights, d_x, d_gates = carry
    token, choice, expert = _window(order, indices, i, window)
    part = _parts(floats, token, choice)
    _, pull = jax.vjp(lambda w, f: fn(w, f, expert), weights, part)
    part_d_weights, (part_d_x, part_d_gates) = pull(_take(gradient, token))
    return (
      jax.tree.map(jnp.add, d_weights, part_d_weights),
      d_x.at[token].add(part_d_x.astype(d_x.dtype), mode="drop"),
      d_gates.at[choice].set(part_d_gates[:, 0], mode="drop"),
    )

  x, gates = floats
  float32 = lambda w: jnp.zeros(w.shape, jnp.float32)
  zeros = jax.tree.map(float32, weights), float32(x)
  carry = (*zeros, jnp.zeros(gates.size, gates.dtype))
  d_weights, d_x, d_gates = jax.lax.fori_loop(0, steps, step, carry)
  d_weights = jax.tree.map(lambda d, w: d.astype(w.dtype), d_weights, weights)
  return d_weights, (d_x.astype(x.dtype), d_gates.reshape(gates.shape)), None


windowed.defvjp(_windowed_forward, _windowed_backward)


def _by_expert(indices, experts, window):
  """The order of choices by expert, and the number of windows in use.

  Choices without an expert come last. The order is padded to whole windows with
  indices that are out of range.
  """
  known = _known(indices, experts)
  fill = -known.size % window
  order = jnp.argsort(known, stable=True)
  order = jnp.pad(order, (0, fill), constant_values=known.size)
  return order, -(-jnp.sum(known < experts) // window)


def _window(order, indices, i, window):
  """The token [window], choice [window] and expert [window, 1] of window i."""
  choice = _block(order, i, window)
  expert = indices.reshape(-1).at[choice].get(mode="fill", fill_value=-1)
  return choice // indices.shape[1], choice, expert[:, None]


def _parts(floats, token, choice):
  """Hidden states [window, D] and gates [window, 1] of the choices."""
  x, gates = floats
  return _take(x, token), _take(gates.reshape(-1), choice)[:, None]
