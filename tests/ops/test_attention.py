"""Attention against NumPy. It also serves as the reference for kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax import ops
from r1jax.ops import fused

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
  "rows, width, k_start, prefix_end",
  [
    # A prefix of 4 and three texts that share it; three texts.
    (
      2,
      13,
      [[0] * 4 + [4] * 3 + [7] * 4 + [11] * 2, [0] * 6 + [6] * 6 + [12]],
      [[0] * 4 + [4] * 9, [0] * 13],
    ),
    (1, 16, [[0] * 16], [[0] * 16]),
    (1, 8, [[*range(8)]], [[0] * 8]),
  ],
)
@pytest.mark.parametrize("block", [128, 5, "blockwise", "kernel"])
def test_attention_sees_its_text_and_the_shared_prefix(
  monkeypatch, block, rows, width, k_start, prefix_end
):
  start = impl = None
  if block == "kernel":
    impl = "interpret"
  elif block == "blockwise":
    monkeypatch.setattr(ops.attention, "LONG_BLOCK", 4)
    start = 0
  else:
    monkeypatch.setattr(ops.attention, "BLOCK", block)
  draw = lambda *s: RNG.normal(size=(rows, width, *s)).astype(np.float32)
  queries, keys, values = draw(2, 3, 4), draw(2, 4), draw(2, 5)
  got, lse = ops.packed_attention(
    *map(jnp.asarray, (queries, keys, values)),
    scale=0.5,
    k_start=jnp.asarray(k_start),
    prefix_end=jnp.asarray(prefix_end),
    start=start,
    impl=impl,
  )
  for b, t, k, g in np.ndindex(rows, width, 2, 3):
    seen = [
      s for s in range(width) if k_start[b][t] <= s <= t or s < prefix_end[b][t]
    ]
    scores = np.array([queries[b, t, k, g] @ keys[b, s, k] * 0.5 for s in seen])
    weights = np.exp(scores) / np.exp(scores).sum()
    expected = weights @ values[b, seen, k]
    np.testing.assert_allclose(got[b, t, k, g], expected, atol=1e-5)
    np.testing.assert_allclose(
      lse[b, t, k, g], np.log(np.exp(scores).sum()), atol=1e-5
    )


WIDTH = 21  # Three blocks of 8, the last one padded.


@st.composite
def packed_rows(draw):
  """k_start and prefix_end of rows of texts, some of which share a prefix."""
  k_start, prefix_end = np.zeros((2, 2, WIDTH), np.int32)
  for row in range(2):
    prefix = draw(st.integers(0, WIDTH - 1))
    starts = draw(st.sets(st.integers(prefix, WIDTH - 1)))
    start = prefix
    for t in range(prefix, WIDTH):
      start = t if t in starts else start
      k_start[row, t], prefix_end[row, t] = start, prefix
  return k_start, prefix_end


@functools.partial(jax.jit, static_argnames="start")
def gradients_and_outputs(inputs, weights, k_start, prefix_end, start):
  """Gradients of a weighted sum of both outputs, and the outputs."""

  def loss(*inputs):
    outputs = ops.packed_attention(
      *inputs, scale=0.7, k_start=k_start, prefix_end=prefix_end, start=start
    )
    return sum(jnp.sum(x * w) for x, w in zip(outputs, weights)), outputs

  return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*inputs)


@settings(max_examples=20, deadline=None)
@given(packed_rows(), st.integers(0, 2**31))
def test_blockwise_attention_equals_unrolled_attention_forward_and_backward(
  rows, seed
):
  rng = np.random.default_rng(seed)
  draw = lambda *s: jnp.asarray(rng.normal(size=(2, WIDTH, *s)), jnp.float32)
  inputs = draw(2, 3, 4), draw(2, 4), draw(2, 5)
  weights = draw(2, 3, 5), draw(2, 3)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ops.attention, "LONG_BLOCK", 8)
    blockwise, naive = (
      gradients_and_outputs(inputs, weights, *rows, start=start)
      for start in (0, None)
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), blockwise, naive
  )


@pytest.mark.optimized
@pytest.mark.slow
def test_memory_of_blockwise_attention_is_linear_in_its_tokens():
  """With V3's heads, all scores at once would take 128 x T x T numbers."""

  def temporaries(tokens):
    shape = lambda *s: jax.ShapeDtypeStruct((1, tokens, *s), jnp.bfloat16)
    numbers = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    loss = lambda q, k, v, first, end: jnp.sum(
      ops.packed_attention(q, k, v, scale=0.1, k_start=first, prefix_end=end)[0]
    ).astype(jnp.float32)
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(
      shape(128, 1, 192), shape(128, 192), shape(128, 128), numbers, numbers
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes

  small, large = temporaries(4096), temporaries(32_768)
  assert large < 8.5 * small
  assert large < 32 * 2**30


def test_an_unknown_implementation_is_refused():
  x, slots = jnp.zeros((1, 4, 1, 3)), jnp.zeros((1, 4), jnp.int32)
  limits = dict(k_start=slots, prefix_end=slots)
  with pytest.raises(ValueError, match="'cuda' is none of pallas, interpret"):
    ops.packed_attention(
      x[..., None, :], x, x, scale=1.0, impl="cuda", **limits
    )


def test_a_token_that_sees_only_itself_returns_its_value():
  x = jnp.asarray(RNG.normal(size=(1, 4, 1, 3)), jnp.float32)
  slots = jnp.arange(4)[None]
  got, _ = ops.packed_attention(
    x[:, :, :, None],
    x,
    x,
    scale=1.0,
    k_start=slots,
    prefix_end=jnp.zeros_like(slots),
  )
  np.testing.assert_allclose(got[:, :, :, 0], x, rtol=1e-6)


@pytest.mark.parametrize(
  "start, impl", [(None, None), (0, None), (0, "interpret")]
)
def test_latent_attention_equals_attention_to_expanded_keys_and_values(
  monkeypatch, start, impl
):
  """Forward and gradient, by `unrolled`, `blockwise` and the kernel.

  The kernel gets the keys and values of one head at a time.
  """
  monkeypatch.setattr(ops.attention, "LONG_BLOCK", 4)
  monkeypatch.setattr(fused, "EXPANDED", 1)
  draw = lambda *s: jnp.asarray(RNG.normal(size=s), jnp.float32)
  queries, latents, kv_up = draw(2, 9, 3, 8), draw(2, 9, 9), draw(6, 3, 11)
  options = dict(
    scale=0.3,
    k_start=jnp.asarray([[0] * 9, [0] * 4 + [4] * 5]),
    prefix_end=jnp.asarray([[0] * 9, [0] * 6 + [2] * 3]),
  )

  def reference(queries, latents, kv_up):
    both = jnp.einsum("bsr,rnh->bsnh", latents[..., :6], kv_up)
    shared = jnp.tile(latents[:, :, None, 6:], (1, 1, 3, 1))
    keys = jnp.concatenate([both[..., :5], shared], axis=-1)
    out, lse = ops.packed_attention(
      queries[:, :, :, None], keys, both[..., 5:], **options
    )
    return out[:, :, :, 0], lse[..., 0]

  op = functools.partial(
    ops.latent_attention, start=start, impl=impl, **options
  )
  results, pulls = zip(
    *(jax.vjp(f, queries, latents, kv_up) for f in (op, reference))
  )
  gradient = jax.tree.map(lambda x: draw(*x.shape), results[0])
  gradients = [pull(gradient) for pull in pulls]
  close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4)
  jax.tree.map(close, results[0], results[1])
  jax.tree.map(close, *gradients)


@pytest.mark.parametrize("latent", [False, True])
def test_cached_attention_sees_the_lengths_of_every_segment(latent):
  """Rows see a prefix, one of two prompts, and their own tokens."""
  draw = lambda *s: RNG.normal(size=s).astype(np.float32)
  queries, segments = draw(4, 3, 2, 2, 5), []
  for count, size in ((4, 7), (2, 6), (1, 3)):
    values = None if latent else draw(count, 2, size, 4)
    segments.append((draw(count, 2, 5, size), values))
  of_rows = np.array([[[1, 2, 3]], [[3, 4, 5]], [[5, 6, 7]], [[2, 3, 4]]])
  lengths = [of_rows, np.array([6, 2])[:, None, None], None]
  got = ops.cached_attention(
    jnp.asarray(queries),
    [
      ops.Segment(*jax.tree.map(jnp.asarray, (*arrays, count)))
      for arrays, count in zip(segments, lengths)
    ],
    scale=0.5,
  )
  for b, t, k, g in np.ndindex(queries.shape[:4]):
    keys, values = [], []
    seen = of_rows[b, 0, t], lengths[1][b // 2, 0, 0], 3
    for (own_keys, own_values), m, n in zip(segments, (b, b // 2, 0), seen):
      keys.append(own_keys[m, k, :, :n].T)
      values.append(keys[-1] if latent else own_values[m, k, :n])
    keys, values = np.concatenate(keys), np.concatenate(values)
    weights = np.exp(keys @ queries[b, t, k, g] * 0.5)
    expected = weights @ values / weights.sum()
    np.testing.assert_allclose(got[b, t, k, g], expected, atol=1e-5)
