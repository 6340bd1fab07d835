"""The plain ops, which are the kernels' specification."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from r1jax import ops

RNG = np.random.default_rng(0)
M, D, V, TRUE_V = 11, 6, 50, 47
HIDDEN = jnp.asarray(RNG.normal(size=(M, D)), jnp.float32)
UNEMBED = jnp.asarray(RNG.normal(size=(D, V)), jnp.float32)
TARGETS = jnp.asarray(RNG.integers(0, TRUE_V, M), jnp.int32)
WEIGHTS = jnp.asarray(RNG.normal(size=(M,)), jnp.float32)


def naive(hidden, unembed, targets, temperature=1.0, vocab_size=None):
  logits = hidden @ unembed[:, :vocab_size] / temperature
  logprobs = jax.nn.log_softmax(logits)
  entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
  return logprobs[jnp.arange(len(targets)), targets], entropy


def gradient(function, **kwargs):
  def scalar(hidden, unembed):
    logprobs, entropy = function(hidden, unembed, TARGETS, **kwargs)
    return jnp.sum(WEIGHTS * logprobs) + jnp.sum(entropy * WEIGHTS**2)

  return jax.jit(jax.grad(scalar, argnums=(0, 1)))(HIDDEN, UNEMBED)


SETTINGS = [
  dict(),
  dict(temperature=0.6),
  dict(vocab_size=TRUE_V),
  dict(temperature=1.7, vocab_size=TRUE_V),
]


@pytest.mark.parametrize("chunk", [4096, 4])
@pytest.mark.parametrize("setting", SETTINGS)
def test_linear_logprobs_are_log_softmax_of_the_logits(setting, chunk):
  got = ops.linear_logprobs(HIDDEN, UNEMBED, TARGETS, chunk=chunk, **setting)
  expected = naive(HIDDEN, UNEMBED, TARGETS, **setting)
  for one, other in zip(got, expected):
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("chunk", [4096, 4])
def test_so_are_their_gradients(chunk):
  setting = SETTINGS[-1]
  got = gradient(ops.linear_logprobs, chunk=chunk, **setting)
  for one, other in zip(got, gradient(naive, **setting)):
    np.testing.assert_allclose(one, other, atol=2e-5)


def test_padding_of_the_vocabulary_has_no_probability_and_no_gradient():
  tempting = UNEMBED.at[:, TRUE_V:].set(50.0)
  for unembed in (UNEMBED, tempting):
    logprobs, entropy = ops.linear_logprobs(
      jnp.tile(HIDDEN[:1], (TRUE_V, 1)),
      unembed,
      jnp.arange(TRUE_V),
      vocab_size=TRUE_V,
    )
    assert jnp.exp(logprobs).sum() == pytest.approx(1.0, abs=1e-5)
    assert entropy[0] == pytest.approx(-jnp.sum(jnp.exp(logprobs) * logprobs))
  _, grad = gradient(ops.linear_logprobs, vocab_size=TRUE_V)
  np.testing.assert_array_equal(grad[:, TRUE_V:], 0.0)


def test_the_entropy_of_equal_logits_is_the_log_of_their_number():
  logprobs, entropy = ops.linear_logprobs(
    jnp.zeros((3, D)), UNEMBED, TARGETS[:3], vocab_size=TRUE_V
  )
  np.testing.assert_allclose(entropy, np.log(TRUE_V), rtol=1e-6)
  np.testing.assert_allclose(logprobs, -np.log(TRUE_V), rtol=1e-6)


def test_large_logits_do_not_overflow():
  logprobs, entropy = ops.linear_logprobs(1e4 * HIDDEN, UNEMBED, TARGETS)
  assert np.all(np.isfinite(logprobs)) and np.all(np.isfinite(entropy))
  assert np.all(entropy >= -1e-3)


def test_logits_are_summed_in_float32():
  low = lambda x: x.astype(jnp.bfloat16)
  logprobs, entropy = ops.linear_logprobs(low(HIDDEN), low(UNEMBED), TARGETS)
  assert logprobs.dtype == entropy.dtype == jnp.float32
  exact = naive(
    low(HIDDEN).astype(jnp.float32), low(UNEMBED).astype(jnp.float32), TARGETS
  )
  np.testing.assert_allclose(logprobs, exact[0], atol=1e-5)


def rows_of(*shape, seed):
  return jnp.asarray(
    np.random.default_rng(seed).normal(size=shape), jnp.float32
  )


@given(seed=st.integers(0, 999), chunk=st.sampled_from([1, 5, 8, 24, 4096]))
@settings(max_examples=3, deadline=None)
def test_only_tokens_that_count_have_values_and_gradients(seed, chunk):
  rows, width = 3, 8
  hidden = rows_of(rows, width, D, seed=seed)
  weights = rows_of(rows, width, seed=seed + 1)
  rng = np.random.default_rng(seed)
  targets = jnp.asarray(rng.integers(0, V, (rows, width)), jnp.int32)
  counted = jnp.asarray(rng.random((rows, width)) < rng.random())

  def scalar(function, hidden, unembed, **kwargs):
    out = function(hidden, unembed, targets, **kwargs)
    return sum(jnp.sum(jnp.where(counted, weights * x, 0.0)) for x in out), out

  def plain(hidden, unembed, targets):
    flat = naive(hidden.reshape(-1, D), unembed, targets.reshape(-1))
    return tuple(x.reshape(rows, width) for x in flat)

  run = lambda function, **kwargs: jax.value_and_grad(
    lambda h, w: scalar(function, h, w, **kwargs), (0, 1), has_aux=True
  )(hidden, UNEMBED)
  got = run(ops.linear_logprobs, counted=counted, chunk=chunk)
  (value, out), gradients = run(plain)
  expected = (value, tuple(jnp.where(counted, x, 0.0) for x in out)), gradients
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
    np.testing.assert_allclose(one, other, atol=5e-5)


def test_tokens_that_do_not_count_are_never_looked_at():
  hidden = jnp.tile(HIDDEN[None, :8], (2, 1, 1))
  counted = jnp.zeros((2, 8), bool).at[:, jnp.array([1, 4, 5, 7])].set(True)
  hidden = jnp.where(counted[..., None], hidden, jnp.nan)

  def total(hidden, unembed):
    targets = jnp.tile(TARGETS[None, :8], (2, 1))
    out = ops.linear_logprobs(
      hidden, unembed, targets, counted=counted, chunk=4
    )
    return jnp.sum(out[0] + out[1])

  for value in jax.tree.leaves(
    jax.value_and_grad(total, (0, 1))(hidden, UNEMBED)
  ):
    assert np.all(np.isfinite(value))


def test_the_vocabulary_and_the_rows_may_be_split_over_devices():
  mesh = jax.make_mesh((2, 4), ("data", "tensor"), (AxisType.Auto,) * 2)
  place = lambda x, *axes: jax.device_put(
    x, NamedSharding(mesh, PartitionSpec(*axes))
  )
  hidden, unembed = rows_of(4, 8, D, seed=1), rows_of(D, 48, seed=2)
  targets = jnp.tile(TARGETS[:8], (4, 1))
  counted = jnp.arange(32).reshape(4, 8) % 3 > 0

  @jax.jit
  def total(hidden, unembed, targets, counted):
    out = ops.linear_logprobs(
      hidden, unembed, targets, counted=counted, chunk=8
    )
    return jnp.sum(out[0] * targets + out[1]), out

  run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
  split = run(
    place(hidden, "data"),
    place(unembed, None, "tensor"),
    place(targets, "data"),
    place(counted, "data"),
  )
  alone = run(hidden, unembed, targets, counted)
  for one, other in zip(jax.tree.leaves(split), jax.tree.leaves(alone)):
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_memory_of_logprobs_is_a_small_share_of_the_naive_forms():
  """[4, 2048] tokens, width 1024, R1's vocabulary, by XLA's own analysis."""
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
  tokens, width, vocabulary = 4 * 2048, 1024, 129_280

  def temporaries(function):
    def loss(hidden, unembed, targets):
      logprobs, entropy = function(hidden, unembed, targets)
      return jnp.sum(logprobs + entropy)

    compiled = (
      jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
      .lower(
        shape(tokens, width),
        shape(width, vocabulary),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
      )
      .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes

  gradient = 4 * width * vocabulary
  ours = temporaries(ops.linear_logprobs) - gradient
  assert ours < temporaries(naive) / 8


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
@pytest.mark.parametrize("block", [128, 5, "blockwise"])
def test_attention_sees_its_text_and_the_shared_prefix(
  monkeypatch, block, rows, width, k_start, prefix_end
):
  start = None
  if block == "blockwise":
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
def outcome(inputs, weights, k_start, prefix_end, start):
  """Gradients of a weighted sum of both outputs, and the outputs."""

  def loss(*inputs):
    made = ops.packed_attention(
      *inputs, scale=0.7, k_start=k_start, prefix_end=prefix_end, start=start
    )
    return sum(jnp.sum(x * w) for x, w in zip(made, weights)), made

  return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*inputs)


@settings(max_examples=20, deadline=None)
@given(packed_rows(), st.integers(0, 2**31))
def test_blockwise_attention_is_the_naive_one_forward_and_backward(rows, seed):
  rng = np.random.default_rng(seed)
  draw = lambda *s: jnp.asarray(rng.normal(size=(2, WIDTH, *s)), jnp.float32)
  inputs = draw(2, 3, 4), draw(2, 4), draw(2, 5)
  weights = draw(2, 3, 5), draw(2, 3)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ops.attention, "LONG_BLOCK", 8)
    blockwise, naive = (
      outcome(inputs, weights, *rows, start=start) for start in (0, None)
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), blockwise, naive
  )


@pytest.mark.slow
def test_memory_of_blockwise_attention_is_linear_in_its_tokens():
  """V3's heads; the naive form would hold 128 x T x T scores."""

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


def test_attention_to_nothing_else_is_attention_to_oneself():
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
