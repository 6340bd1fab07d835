"""Routing, its bias and its balance, against loops over tokens and experts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.moe import MoE, choose_experts, rebalance, route
from r1jax.models.presets import preset

RNG = np.random.default_rng(0)
FEED_FORWARD = ("gate_up", "down")
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], np.float32)


@pytest.fixture(scope="module")
def layer(toy):
  """The weights of one layer of experts, in float64."""
  moe = toy.params["moe"]["feed_forward"]
  return jax.tree.map(lambda leaf: np.float64(leaf[0]), moe)


@pytest.fixture(scope="module")
def x(toy):
  return RNG.normal(size=(3, 4, toy.config.width)).astype(np.float32)


@pytest.fixture(scope="module")
def run(toy):
  """`run(weights, x)` -> output, load, balance."""

  @jax.jit
  def jitted(w, x):
    out, load = MoE(toy.config).apply({"params": w}, x, jnp.asarray(MASK))
    return out, load.tokens, load.balance_loss

  return lambda w, x: jitted(jax.tree.map(np.float32, w), x)


def routed(layer, x, e, replay=None):
  """`route` of all tokens, by the layer's router."""
  router = jax.tree.map(jnp.float32, layer["router"])
  logits = jnp.asarray(x.reshape(-1, x.shape[-1])) @ router["weight"]
  return route(logits, router["bias"] if e.biased else None, e, replay)


def affinity(layer, token):
  return 1 / (1 + np.exp(-(token @ layer["router"]["weight"])))


def swiglu(x, gate_up, down):
  gate, up = np.einsum("D,DcF->cF", x, gate_up)
  return (gate / (1 + np.exp(-gate)) * up) @ down


def test_each_token_goes_to_its_experts(toy, layer, x, run):
  e, out = toy.config.experts, np.zeros(x.shape)
  load = np.zeros(e.num_routed)
  moved = 0
  for b, t in np.ndindex(x.shape[:2]):
    s = affinity(layer, x[b, t])
    # The bias has a say in who is chosen, and none in how much that counts.
    chosen = np.argsort(-(s + layer["router"]["bias"]))[: e.per_token]
    moved += {*chosen} != {*np.argsort(-s)[: e.per_token]}
    out[b, t] = swiglu(
      x[b, t], *(layer["shared"][name] for name in FEED_FORWARD)
    )
    for i in chosen:
      gate = e.scale * s[i] / s[chosen].sum()
      weights = layer["expert_gate_up"][i], layer["expert_down"][i]
      out[b, t] += gate * swiglu(x[b, t], *weights)
      load[i] += MASK[b, t]
  assert moved, "the bias should matter in this test"
  got, got_load, _ = run(layer, x)
  np.testing.assert_allclose(got, out, atol=1e-4)
  np.testing.assert_array_equal(got_load, load)


def test_the_balance_loss_equals_the_papers_equation(toy, layer, x, run):
  """Equations 17 to 20 per row, weighted by its number of tokens."""
  e, total = toy.config.experts, 0.0
  for row, mask in zip(x, MASK):
    tokens = row[mask > 0]
    if not len(tokens):
      continue
    scores = [affinity(layer, token) for token in tokens]
    loss = 0.0
    for i in range(e.num_routed):
      chosen = [
        i in np.argsort(-(s + layer["router"]["bias"]))[: e.per_token]
        for s in scores
      ]
      f = e.num_routed / (e.per_token * len(tokens)) * sum(chosen)
      p = np.mean([s[i] / s.sum() for s in scores])
      loss += f * p
    total += loss * len(tokens)
  _, _, balance = run(layer, x)
  assert balance == pytest.approx(total, rel=1e-5)


def test_equal_affinities_have_a_balance_loss_of_one(layer, x, run):
  router = layer["router"] | {"weight": 0 * layer["router"]["weight"]}
  even = layer | {"router": router}
  assert run(even, x)[2] == pytest.approx(MASK.sum(), rel=1e-6)


def test_gates_of_the_chosen_sum_to_the_routed_scale(toy, layer, x):
  e = toy.config.experts
  made = routed(layer, x, e)
  np.testing.assert_allclose(made.gates.sum(1), e.scale, rtol=1e-6)
  assert all(len({*row}) == e.per_token for row in made.indices.tolist())
  np.testing.assert_allclose(made.affinity.sum(1), 1.0, rtol=1e-6)


def test_no_gradient_reaches_the_bias(toy, layer, x):
  def loss(w):
    tokens, mask = jnp.asarray(x), jnp.asarray(MASK)
    out, load = MoE(toy.config).apply({"params": w}, tokens, mask)
    return jnp.sum(out**2) + load.balance_loss

  grads = jax.jit(jax.grad(loss))(jax.tree.map(np.float32, layer))
  np.testing.assert_array_equal(grads["router"]["bias"], 0)
  assert np.abs(grads["router"]["weight"]).max() > 0


def test_empty_slots_are_computed_but_not_counted(layer, x, run):
  _, load, balance = run(layer, x)
  other = x.copy()
  other[MASK == 0] = 3.0
  out, load_too, balance_too = run(layer, other)
  np.testing.assert_array_equal(load, load_too)
  assert balance == balance_too
  assert np.all(np.isfinite(out))


E = 12
SCORES = RNG.uniform(size=(40, E)).astype(np.float32)


def experts_with(**overrides):
  return preset("tiny_deepseek", experts=dict(num_routed=E) | overrides).experts


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_experts_are_chosen_within_the_best_groups(scores):
  """V3 ranks groups by their two best experts, V2 by their best."""
  e = experts_with(num_groups=4, groups_per_token=2, per_token=3, scores=scores)
  for row, got in zip(
    SCORES, np.asarray(choose_experts(jnp.asarray(SCORES), e))
  ):
    groups = row.reshape(4, 3)
    counted = 2 if scores == "sigmoid" else 1
    value = np.sort(groups, axis=1)[:, -counted:].sum(axis=1)
    best = np.argsort(-value)[:2]
    eligible = [i for i in range(E) if i // 3 in best]
    assert [*got] == sorted(eligible, key=lambda i: -row[i])[:3]


def test_without_groups_the_best_are_chosen():
  got = choose_experts(jnp.asarray(SCORES), experts_with(per_token=4))
  np.testing.assert_array_equal(got, np.argsort(-SCORES)[:, :4])


def test_softmax_scores_are_the_gates(toy, layer, x):
  """DeepSeek-V2: no bias, no renormalisation."""
  e = dataclasses.replace(
    toy.config.experts, scores="softmax", renormalise=False, scale=3.0
  )
  made = routed(layer, x, e)
  for token, indices, gates in zip(x.reshape(-1, 32), *made[:2]):
    logits = token @ layer["router"]["weight"]
    p = np.exp(logits) / np.exp(logits).sum()
    best = np.argsort(-p)[: e.per_token]
    np.testing.assert_array_equal(indices, best)
    np.testing.assert_allclose(gates, 3.0 * p[best], rtol=1e-5)


def test_replayed_experts_replace_the_choice_and_get_the_routers_gates(
  toy, layer, x
):
  e = toy.config.experts
  own = routed(layer, x, e)
  again = routed(layer, x, e, own.indices)
  np.testing.assert_array_equal(own.gates, again.gates)
  other = (own.indices + 1) % e.num_routed
  made = routed(layer, x, e, other)
  np.testing.assert_array_equal(made.indices, other)
  for token, indices, gates in zip(x.reshape(-1, 32), other, made.gates):
    s = affinity(layer, np.float64(token))[np.asarray(indices)]
    np.testing.assert_allclose(gates, e.scale * s / s.sum(), rtol=1e-4)


def test_the_bias_moves_against_the_load_by_one_speed():
  bias = jnp.asarray([[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
  load = jnp.asarray([[10.0, 2.0, 4.0, 8.0], [3.0, 3.0, 3.0, 3.0]])
  np.testing.assert_allclose(
    rebalance(bias, load, 0.01),
    [[0.49, 0.51, 0.51, 0.49], [0.0, 0.0, 0.0, 0.0]],
    rtol=1e-6,
  )


def test_the_bias_rule_balances(toy, layer):
  """The load becomes even, although the router prefers one expert."""
  c = toy.config
  tokens = jnp.asarray(RNG.normal(size=(400, c.width)), jnp.float32)
  logits = tokens @ jnp.float32(layer["router"]["weight"])
  bias = jnp.asarray([3.0, 0.0, 0.0, 0.0, 0.0])

  @jax.jit
  def load(bias):
    indices = route(logits, bias, c.experts).indices.ravel()
    return jnp.float32(jnp.bincount(indices, length=5))

  deviation = lambda load: float(load.std() / load.mean())
  first = deviation(load(bias))
  for _ in range(80):
    bias = rebalance(bias, load(bias), 0.05)
  assert first > 0.5 and deviation(load(bias)) < 0.2
