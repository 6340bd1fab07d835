"""The whole model against the papers' equations, as loops over numbers.

NumPy in float64, loops over tokens, heads and experts, no cache, no packing.
Attention: arXiv:2405.04434, sec. 2.1 and app. C. Experts and MTP:
arXiv:2412.19437, sec. 2.1.2 and 2.2.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import cache as caches
from r1jax.models import transformer
from r1jax.models.attention import LatentAttention, softmax_scale
from r1jax.models.rows import row_layout

TOKENS = np.array([3, 17, 17, 8, 0, 39, 22, 5], np.int32)


def norm(x, scale, epsilon=1e-6):
  return x / np.sqrt(np.mean(x * x) + epsilon) * scale


def silu(x):
  return x / (1 + np.exp(-x))


def feed_forward(x, gate_up, down):
  gate, up = gate_up[:, 0], gate_up[:, 1]
  return (silu(x @ gate) * (x @ up)) @ down


def rotate(x, position, theta):
  """RoPE on pairs (x0, x1), (x2, x3), ..., in place."""
  out = np.zeros(len(x))
  for i in range(0, len(x), 2):
    angle = position * theta ** (-i / len(x))
    cos, sin = np.cos(angle), np.sin(angle)
    out[i] = x[i] * cos - x[i + 1] * sin
    out[i + 1] = x[i] * sin + x[i + 1] * cos
  return out


def attention(w, x, positions, c):
  """u_t of every token: equations 37 to 47 of app. C, head by head."""
  a, out = c.attention, np.zeros((len(x), c.width))
  q_down, kv_down = np.split(w["qkv_down"], [a.q_rank], axis=1)
  kv_norm = w["kv_norm"]["scale"]
  latents = [norm((t @ kv_down)[: a.kv_rank], kv_norm) for t in x]
  shared = [
    rotate((t @ kv_down)[a.kv_rank :], p, c.rope_theta)
    for t, p in zip(x, positions)
  ]
  for t in range(len(x)):
    query_latent = norm(x[t] @ q_down, w["q_norm"]["scale"])
    for head in range(a.num_heads):
      query = query_latent @ w["q_up"][:, head]
      plain, rope = query[: a.nope_size], query[a.nope_size :]
      rope = rotate(rope, positions[t], c.rope_theta)
      scores, values = [], []
      for s in range(t + 1):
        key_value = latents[s] @ w["kv_up"][:, head]
        key = np.concatenate([key_value[: a.nope_size], shared[s]])
        score = np.concatenate([plain, rope]) @ key
        scores.append(score / np.sqrt(a.nope_size + a.rope_size))
        values.append(key_value[a.nope_size :])
      weights = np.exp(scores) / np.sum(np.exp(scores))
      out[t] += weights @ values @ w["out"][head]
  return out


def experts(w, x, c):
  """The output of the experts for one token, and the chosen experts."""
  scores = 1 / (1 + np.exp(-(x @ w["router"]["weight"])))
  chosen = np.argsort(-(scores + w["router"]["bias"]))[: c.experts.per_token]
  out = feed_forward(x, w["shared"]["gate_up"], w["shared"]["down"])
  for e in chosen:
    gate = c.experts.scale * scores[e] / sum(scores[chosen])
    out = out + gate * feed_forward(
      x, w["expert_gate_up"][e], w["expert_down"][e]
    )
  return out, chosen


def block(w, x, positions, c, chosen):
  normed = np.array([norm(t, w["attention_norm"]["scale"]) for t in x])
  x = x + attention(w["attention"], normed, positions, c)
  rows = []
  for t in x:
    h = norm(t, w["feed_forward_norm"]["scale"])
    if "router" in w["feed_forward"]:
      out, experts_of_t = experts(w["feed_forward"], h, c)
      chosen.append(experts_of_t)
    else:
      out = feed_forward(h, **w["feed_forward"])
    rows.append(t + out)
  return np.array(rows)


def run(params, tokens, c):
  """Hidden states, those of the MTP block, and the chosen experts."""
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  positions = np.arange(len(tokens))
  x = params["embed"][tokens]
  chosen = []
  for name, count in (("dense", c.num_dense_layers), ("moe", c.num_moe_layers)):
    for i in range(count):
      w = jax.tree.map(lambda leaf, i=i: leaf[i], params[name])
      x = block(w, x, positions, c, chosen)
  final = lambda rows, w: np.array([norm(t, w["scale"]) for t in rows])
  mtp = jax.tree.map(lambda leaf: leaf[0], params["mtp"])
  x = final(x, params["final_norm"])
  following = params["embed"][np.roll(tokens, -1)]
  joined = [
    np.concatenate(
      [
        norm(h, mtp["hidden_norm"]["scale"]),
        norm(e, mtp["embed_norm"]["scale"]),
      ]
    )
    for h, e in zip(x, following)
  ]
  further = block(
    mtp["block"], np.array(joined) @ mtp["project"], positions, c, chosen
  )
  return (
    x,
    final(further, mtp["final_norm"]),
    np.array(chosen).reshape(-1, len(tokens), c.experts.per_token),
  )


@pytest.fixture(scope="module")
def oracle(toy):
  return run(toy.params, TOKENS, toy.config)


@pytest.fixture(scope="module")
def forward(toy):
  return toy.forward(toy.params, transformer.pack_rows(TOKENS[None]))


def test_hidden_states_equal_the_papers_equations(oracle, forward):
  np.testing.assert_allclose(forward.hidden[0], oracle[0], atol=2e-4)
  assert np.abs(oracle[0]).max() > 1


def test_the_mtp_block_reads_the_next_token_and_the_state(oracle, forward):
  np.testing.assert_allclose(forward.mtp_hidden[0, 0], oracle[1], atol=2e-4)


def test_every_layer_counts_the_tokens_of_its_experts(toy, oracle, forward):
  load = [
    np.bincount(layer.ravel(), minlength=toy.config.experts.num_routed)
    for layer in oracle[2]
  ]
  np.testing.assert_array_equal(forward.expert_load, load)
  assert np.sum(load) == 3 * len(TOKENS) * toy.config.experts.per_token
  assert np.all(np.max(load, axis=1) < len(TOKENS))  # They do choose.


def test_the_mtp_block_does_not_change_hidden_states(toy, forward):
  packed = transformer.pack_rows(TOKENS[None])
  alone = jax.jit(lambda p: transformer.forward(toy.model, p, packed))
  made = alone(toy.params)
  np.testing.assert_allclose(made.hidden, forward.hidden, atol=1e-5)
  assert made.mtp_hidden is None
  np.testing.assert_array_equal(made.expert_load, forward.expert_load[:-1])


def test_logprobs_are_those_of_the_logits(toy, oracle):
  logits = oracle[0] @ np.asarray(toy.params["unembed"], np.float64)
  normalised = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = [0.0] + [normalised[t, TOKENS[t + 1]] for t in range(7)]
  got = jax.jit(lambda p, t: transformer.token_logprobs(toy.model, p, t))(
    toy.params, TOKENS[None]
  )
  np.testing.assert_allclose(got[0], expected, atol=1e-3)


@pytest.fixture(scope="module")
def layer(toy):
  """An attention layer: weights, inputs, and functions that run it."""
  c = toy.config
  w = jax.tree.map(
    lambda leaf: jnp.asarray(leaf[0]), toy.params["dense"]["attention"]
  )
  x = np.random.default_rng(1).normal(size=(2, 6, c.width)).astype(np.float32)

  run = functools.partial(LatentAttention(c).apply, {"params": w})
  packed_at = lambda positions: transformer.pack_rows(
    jnp.zeros_like(positions)
  ).replace(positions=positions)

  @jax.jit
  def packed(x, positions):
    return run(x, row_layout(packed_at(positions), None, c))[0]

  @jax.jit
  def cached(x, positions):
    layout = row_layout(packed_at(positions), None, c)
    return run(x, layout, 0, caches.empty(c, 2, 9))[0]

  return w, jnp.asarray(x), packed, cached


POSITIONS = jnp.asarray([[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8]])


@pytest.mark.parametrize("way", ["packed", "cached"])
def test_one_layer_of_attention_equals_the_papers_equations(toy, layer, way):
  w, x, packed, cached = layer
  got = {"packed": packed, "cached": cached}[way](x, POSITIONS)
  w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), w)
  for row in range(2):
    expected = attention(
      w, np.float64(x[row]), np.asarray(POSITIONS[row]), toy.config
    )
    np.testing.assert_allclose(got[row], expected, atol=1e-5)


@pytest.mark.parametrize("way", ["packed", "cached"])
def test_attention_depends_only_on_relative_positions(layer, way):
  _, x, packed, cached = layer
  attend = {"packed": packed, "cached": cached}[way]
  here, there = attend(x, POSITIONS), attend(x, POSITIONS + 37)
  np.testing.assert_allclose(here, there, atol=2e-5)
  # Distances do matter.
  stretched = attend(x, POSITIONS * 2)
  assert np.abs(here - stretched)[:, 1:].max() > 1e-3


def test_scores_are_divided_by_the_root_of_the_whole_key(toy):
  assert softmax_scale(toy.config) == pytest.approx(1 / np.sqrt(6 + 4))
