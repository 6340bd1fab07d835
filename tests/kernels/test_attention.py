"""The kernel for attention, interpreted, against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from r1jax_kernels import attention as kernel

# In TPU interpret mode, memory holds NaNs until it is written.
TPU = pltpu.InterpretParams(detect_races=True)
SIZES = dict(K=1, G=1, H=16, Hv=8)


def draw(seed, T, *, S=None, B=1, K, G, H, Hv):
  """Queries, keys, values, and gradients of both results."""
  rng, S = np.random.default_rng(seed), S or T
  shapes = (
    *((B, T, K, G, H), (B, S, K, H), (B, S, K, Hv)),
    *((B, T, K, G, Hv), (B, T, K, G)),
  )
  return [rng.normal(size=shape) for shape in shapes]


def packed(*texts):
  """Limits of a row of texts of these lengths."""
  starts = np.repeat(np.cumsum((0, *texts[:-1])), texts)
  return starts[None], np.zeros_like(starts)[None]


def shared(prompt, *completions):
  """Limits of a row of a prompt and its completions."""
  k_start, prefix_end = packed(prompt, *completions)
  return k_start, np.where(k_start, prompt, prefix_end)


def mask(T, S, k_start, prefix_end, start=0):
  """Which keys each query sees [B, T, S]."""
  key, query = np.arange(S), start + np.arange(T)[:, None]
  own = (k_start[..., None] <= key) & (key <= query)
  return own | (key < prefix_end[..., None])


def oracle(arrays, k_start, prefix_end, start=0, scale=0.3):
  """Outputs, log-sum-exp, and gradients of queries, keys and values."""
  queries, keys, values, d_out, d_lse = arrays
  seen = mask(queries.shape[1], keys.shape[1], k_start, prefix_end, start)
  scores = scale * np.einsum("btkgh,bskh->btkgs", queries, keys)
  weights = np.exp(scores) * seen[:, :, None, None]
  total = weights.sum(-1)
  lse = np.where(total > 0, np.log(np.maximum(total, 1e-300)), kernel.NEVER)
  weights /= np.where(total > 0, total, 1)[..., None]
  out = np.einsum("btkgs,bskh->btkgh", weights, values)
  d_weights = np.einsum("btkgh,bskh->btkgs", d_out, values)
  delta = np.sum(out * d_out, -1) - d_lse
  d_scores = scale * weights * (d_weights - delta[..., None])
  return (
    *(out, lse),
    np.einsum("btkgs,bskh->btkgh", d_scores, keys),
    np.einsum("btkgs,btkgh->bskh", d_scores, queries),
    np.einsum("btkgs,btkgh->bskh", weights, d_out),
  )


@functools.partial(jax.jit, static_argnames=("scale", "interpret"))
def run(arrays, k_start, prefix_end, start, scale, interpret):
  """The results of the kernels, in the order of `oracle`."""
  limits = dict(k_start=k_start, prefix_end=prefix_end, start=start)
  results, pull = jax.vjp(
    lambda *arrays: kernel.packed_attention(
      *arrays, scale=scale, interpret=interpret, **limits
    ),
    *arrays[:3],
  )
  return *results, *pull(tuple(arrays[3:]))


def check(arrays, k_start, prefix_end, start=0, dtype="float32", interpret=TPU):
  """Compares the kernels with the oracle on inputs of a dtype."""
  cast = lambda i, x: jnp.asarray(x, "float32" if i == 4 else dtype)
  arrays = [cast(i, x) for i, x in enumerate(arrays)]
  limits = (np.asarray(x, np.int32) for x in (k_start, prefix_end, start))
  got = run(arrays, *limits, scale=0.3, interpret=interpret)
  if isinstance(interpret, pltpu.InterpretParams):
    assert not races_found()
  exact = oracle([np.float64(x) for x in arrays], k_start, prefix_end, start)
  names = ("out", "lse", "d_queries", "d_keys", "d_values")
  for name, x, expected in zip(names, got, exact):
    x = np.float64(x)
    if name == "lse":
      some = expected > kernel.NEVER
      assert (x[~some] == np.float32(kernel.NEVER)).all()
      x, expected = x[some], expected[some]
    bound = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    error = np.linalg.norm(x - expected) / (np.linalg.norm(expected) or 1)
    assert error < bound, name


def races_found():
  """Whether the last interpretation saw a race."""
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call

  return interpret_pallas_call.races.races_found


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """Blocks of 128, the smallest; with LANES, so that rows have several."""
  monkeypatch.setattr(kernel, "BLOCK", 128)


def test_texts_and_a_shared_prompt_in_padded_rows_of_grouped_heads():
  """Rows of a block and a half; texts of one token; two query heads a key."""
  rows = packed(1, 99, 1, 91), shared(30, 100, 62)
  k_start, prefix_end = (np.concatenate(x) for x in zip(*rows))
  arrays = draw(0, 192, B=2, **SIZES | dict(G=2))
  check(arrays, k_start, prefix_end)


def test_queries_that_see_no_key_have_no_output_and_no_gradient():
  """A row of empty slots, and one query of a text; keys that no one sees."""
  k_start = np.arange(140)[None] + 1
  k_start[0, 5] = 3
  check(draw(1, 140, **SIZES), k_start, np.zeros_like(k_start), interpret=True)


LIMITS = {
  "one text": packed(256),
  "one token": packed(1),
  "tokens alone": packed(*[1] * 130),
  "blocks without a common key": packed(128, 128, 128),
  "a prompt that ends within a block": shared(200, 100, 1, 99),
  "a prompt of whole blocks": shared(128, 128, 128, 128),
  "a long row": packed(40, 600, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  "sizes",
  [
    dict(K=2, G=1, H=192, Hv=128),
    dict(K=2, G=3, H=64, Hv=64),
    pytest.param(dict(K=1, G=2, H=24, Hv=40), marks=pytest.mark.soak),
  ],
  ids=lambda sizes: "-".join(map(str, sizes.values())),
)
@pytest.mark.parametrize("limits", LIMITS)
def test_the_kernels_agree_with_float64(limits, sizes, dtype):
  k_start, prefix_end = LIMITS[limits]
  arrays = draw(2, k_start.shape[1], **sizes)
  check(arrays, k_start, prefix_end, dtype=dtype, interpret=True)


@pytest.mark.slow
@pytest.mark.parametrize(
  "dtype", [pytest.param("float32", marks=pytest.mark.soak), "bfloat16"]
)
@pytest.mark.parametrize("block, chunk", [(256, 128), (128, 512), (512, 256)])
def test_blocks_and_chunks_change_nothing(monkeypatch, block, chunk, dtype):
  """On TPU interpret mode, with races detected and memory poisoned."""
  monkeypatch.setattr(kernel, "BLOCK", block)
  monkeypatch.setattr(kernel, "CHUNK", chunk)
  sizes = dict(K=2, G=2, H=24, Hv=16)
  check(draw(3, 601, **sizes), *shared(130, 300, 171), dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
  "seed",
  [*range(6), *(pytest.param(s, marks=pytest.mark.soak) for s in range(6, 20))],
)
def test_any_limits_agree_with_float64(seed):
  """Random texts, prefixes and empty slots; queries of a part of the row."""
  rng = np.random.default_rng(seed)
  total = int(rng.integers(1, 500))
  length = int(rng.integers(1, total + 1))
  start = int(rng.integers(0, total - length + 1))
  query = start + np.arange(length)
  k_start = query - rng.integers(0, rng.integers(1, total + 1), (2, length))
  k_start = np.clip(np.minimum(k_start, np.roll(k_start, 7, 1)), 0, None)
  k_start = np.where(rng.random((2, length)) < 0.1, query + 1, k_start)
  prefix_end = np.minimum(query, rng.integers(0, total + 1, (2, 1)))
  prefix_end = prefix_end * (rng.random((2, length)) < rng.random())
  arrays = draw(seed, length, S=total, B=2, **SIZES | dict(G=2))
  check(arrays, k_start, prefix_end, start, interpret=True)


def attend(arrays, k_start, prefix_end, start=0):
  """As `run`, of float32 arrays in plain interpretation."""
  arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
  limits = (np.asarray(x, np.int32) for x in (k_start, prefix_end, start))
  return run(arrays, *limits, scale=0.3, interpret=True)


close = functools.partial(np.testing.assert_allclose, atol=2e-5)


@pytest.mark.slow
def test_packed_texts_are_texts_in_rows_of_their_own():
  texts = 70, 1, 150
  arrays = draw(4, sum(texts), **SIZES)
  got = attend(arrays, *packed(*texts))
  starts = np.cumsum((0, *texts))
  for start, end in zip(starts, starts[1:]):
    alone = attend([x[:, start:end] for x in arrays], *packed(end - start))
    for x, expected in zip(got, alone):
      close(x[:, start:end], expected)


@pytest.mark.slow
def test_a_shared_prompt_is_a_prompt_repeated():
  prompt, completions = 140, (60, 130)
  arrays = draw(5, prompt + sum(completions), **SIZES)
  for gradient in arrays[3:]:
    gradient[:, :prompt] = 0  # It would count once for each completion.
  out, lse, d_queries, d_keys, d_values = attend(
    arrays, *shared(prompt, *completions)
  )
  of_prompt = 0.0
  for start, size in zip((140, 200), completions):
    own = slice(start, start + size)
    joined = [np.concatenate([x[:, :prompt], x[:, own]], 1) for x in arrays]
    alone = attend(joined, *packed(prompt + size))
    for x, expected in zip((out, lse, d_queries, d_keys, d_values), alone):
      close(x[:, own], expected[:, prompt:])
    of_prompt += np.stack([x[:, :prompt] for x in (alone[3], alone[3])])
  close(d_keys[:, :prompt], of_prompt[0])


@pytest.mark.slow
def test_parts_of_the_keys_merge_by_their_log_sum_exp():
  """As in a ring of devices: each part holds 150 of 450 keys."""
  queries, keys, values, *gradients = draw(6, 450, **SIZES)
  k_start, prefix_end = shared(100, 120, 230)
  whole, lse, *_ = attend(
    [queries, keys, values, *gradients], k_start, prefix_end
  )
  outs, sums = [], []
  for at in range(0, 450, 150):
    part = keys[:, at : at + 150], values[:, at : at + 150]
    out, part_lse, *_ = attend(
      [queries, *part, *gradients], k_start - at, prefix_end - at, -at
    )
    outs.append(out), sums.append(part_lse)
  total = jax.nn.logsumexp(jnp.stack(sums), axis=0)
  close(total, lse)
  weights = (jnp.exp(x - total)[..., None] for x in sums)
  close(sum(w * out for w, out in zip(weights, outs)), whole)


def in_blocks(seen, block):
  """A mask [B, T, S] as [B, blocks, blocks, block x block]."""
  B, T, S = seen.shape
  seen = np.pad(seen, ((0, 0), (0, -T % block), (0, -S % block)))
  seen = seen.reshape(B, -(-T // block), block, -1, block).swapaxes(2, 3)
  return seen.reshape(*seen.shape[:3], -1)


@pytest.mark.parametrize("limits", LIMITS)
def test_a_step_is_a_pair_of_blocks_that_meet(limits):
  k_start, prefix_end = LIMITS[limits]
  T = k_start.shape[1]
  shapes = (1, 1, 1, T, 8), (1, 1, T, 8), (1, 1, T, 8)
  p = kernel._problem(*map(np.zeros, shapes), 1.0, True)

  @jax.jit
  def schedules(*limits):
    limits = kernel._limits(p, *limits, 0)
    return [kernel._schedule(p, limits, by_key=x) for x in (False, True)]

  seen = in_blocks(mask(T, T, k_start, prefix_end), p.query_block)
  for schedule in schedules(k_start, prefix_end):
    count = int(schedule.count)
    *steps, flags = (np.asarray(x)[:count] for x in schedule[:4])
    assert sorted(zip(*steps)) == list(zip(*np.nonzero(seen.any(-1))))
    full = seen.all(-1)[tuple(steps)]
    expected = np.where(full, kernel.FULL, kernel.PARTIAL)
    assert (flags & (kernel.FULL | kernel.PARTIAL) == expected).all()


def test_costs_count_the_blocks_up_to_the_diagonal():
  """Twelve heads of five blocks of keys, whose last three are queries."""
  shapes = (2, 3, 2, 384, 24), (2, 3, 640, 24), (2, 3, 640, 40)
  costs = costs_of(*(jax.ShapeDtypeStruct(x, jnp.bfloat16) for x in shapes))
  scores = 12 * (3 + 4 + 5) * 128 * 128
  depths = 24 + 40, 2 * 24 + 40, 2 * 24 + 2 * 40
  assert [cost.flops for cost in costs] == [2 * scores * n for n in depths]
  assert {cost.transcendentals for cost in costs} == {scores}
  heads, per_key = 12, (24 + 40) * 2
  by_query = heads * 384 * per_key + 2 * 3 * 384 * 4 + heads * 384 * 4
  assert costs[0].bytes_accessed == by_query + scores // 128 * per_key


def costs_of(queries, keys, values):
  """The cost estimates of the three kernels, from a traced gradient."""
  integers = jax.ShapeDtypeStruct(queries.shape[:1] + (384,), jnp.int32)
  start = jax.ShapeDtypeStruct((), jnp.int32)

  def loss(*arguments):
    out, lse = kernel.attention(0.3, False, *arguments)
    return jnp.sum(out.astype(jnp.float32)) + jnp.sum(lse)

  jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(
    queries, keys, values, integers, integers, start
  )
  calls = [e for e in jaxpr.eqns if e.primitive.name == "pallas_call"]
  assert len(calls) == 3
  return [call.params["cost_estimate"] for call in calls]
