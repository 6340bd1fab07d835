"""Routing, its bias and its balance, against loops over tokens and experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import ops
from r1jax.models.moe import moe, rebalance, route

RNG = np.random.default_rng(0)
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], np.float32)


@pytest.fixture(scope="module")
def layer(toy):
  """The weights of one layer of experts, in float64."""
  return jax.tree.map(lambda leaf: np.float64(leaf[0]), toy.params["moe"])


@pytest.fixture(scope="module")
def x(toy):
  return RNG.normal(size=(3, 4, toy.config.width)).astype(np.float32)


@pytest.fixture(scope="module")
def run(toy):
  """`run(weights, x)` -> output, load, balance."""
  jitted = jax.jit(lambda w, x: moe(w, x, jnp.asarray(MASK), toy.config))
  return lambda w, x: jitted(jax.tree.map(np.float32, w), x)


def affinity(layer, token):
  return 1 / (1 + np.exp(-(token @ layer["router"])))


def swiglu(x, gate_up, down):
  gate, up = np.split(x @ gate_up, 2)
  return (gate / (1 + np.exp(-gate)) * up) @ down


def test_each_token_goes_to_its_experts(toy, layer, x, run):
  c, out = toy.config, np.zeros(x.shape)
  load = np.zeros(c.num_experts)
  moved = 0
  for b, t in np.ndindex(x.shape[:2]):
    s = affinity(layer, x[b, t])
    # The bias has a say in who is chosen, and none in how much that counts.
    chosen = np.argsort(-(s + layer["router_bias"]))[: c.experts_per_token]
    moved += {*chosen} != {*np.argsort(-s)[: c.experts_per_token]}
    out[b, t] = swiglu(x[b, t], layer["shared_gate_up"], layer["shared_down"])
    for e in chosen:
      gate = c.routed_scale * s[e] / s[chosen].sum()
      out[b, t] += gate * swiglu(x[b, t], layer["gate_up"][e], layer["down"][e])
      load[e] += MASK[b, t]
  assert moved, "the bias should matter in this test"
  got, got_load, _ = run(layer, x)
  np.testing.assert_allclose(got, out, atol=1e-4)
  np.testing.assert_array_equal(got_load, load)


def test_the_balance_loss_is_the_papers(toy, layer, x, run):
  """Equations 17 to 20, of each row, which counts as much as its tokens."""
  c, total = toy.config, 0.0
  for row, mask in zip(x, MASK):
    tokens = row[mask > 0]
    if not len(tokens):
      continue
    scores = [affinity(layer, token) for token in tokens]
    loss = 0.0
    for e in range(c.num_experts):
      chosen = [
        e in np.argsort(-(s + layer["router_bias"]))[: c.experts_per_token]
        for s in scores
      ]
      f = c.num_experts / (c.experts_per_token * len(tokens)) * sum(chosen)
      p = np.mean([s[e] / s.sum() for s in scores])
      loss += f * p
    total += loss * len(tokens)
  _, _, balance = run(layer, x)
  assert balance == pytest.approx(total, rel=1e-5)


def test_equal_affinities_have_a_balance_loss_of_one(layer, x, run):
  even = layer | {"router": 0 * layer["router"]}
  assert run(even, x)[2] == pytest.approx(MASK.sum(), rel=1e-6)


def test_gates_of_the_chosen_sum_to_the_routed_scale(toy, layer, x):
  w = jax.tree.map(jnp.float32, layer)
  gates, chosen, share = route(w, jnp.asarray(x.reshape(-1, 32)), toy.config)
  np.testing.assert_allclose(gates.sum(1), toy.config.routed_scale, rtol=1e-6)
  np.testing.assert_array_equal(chosen.sum(1), toy.config.experts_per_token)
  np.testing.assert_array_equal(gates > 0, chosen > 0)
  np.testing.assert_allclose(share.sum(1), 1.0, rtol=1e-6)


def test_no_gradient_reaches_the_bias(toy, layer, x):
  def loss(w):
    out, _, balance = moe(w, jnp.asarray(x), jnp.asarray(MASK), toy.config)
    return jnp.sum(out**2) + balance

  grads = jax.jit(jax.grad(loss))(jax.tree.map(np.float32, layer))
  np.testing.assert_array_equal(grads["router_bias"], 0)
  assert np.abs(grads["router"]).max() > 0


def test_masked_tokens_are_worked_on_but_not_counted(layer, x, run):
  _, load, balance = run(layer, x)
  other = x.copy()
  other[MASK == 0] = 3.0
  out, load_too, balance_too = run(layer, other)
  np.testing.assert_array_equal(load, load_too)
  assert balance == balance_too
  assert np.all(np.isfinite(out))


def test_experts_that_are_not_chosen_do_not_matter(toy, layer):
  c = toy.config
  hidden = RNG.normal(size=(6, c.width)).astype(np.float32)
  gates = RNG.uniform(size=(6, c.num_experts)).astype(np.float32)
  gates[:, 1] = 0
  run = lambda down: ops.experts(
    jnp.asarray(hidden),
    jnp.asarray(gates),
    jnp.asarray(layer["gate_up"], jnp.float32),
    jnp.asarray(down, jnp.float32),
  )
  expected = sum(
    gates[:, e, None]
    * np.array(
      [swiglu(t, layer["gate_up"][e], layer["down"][e]) for t in hidden]
    )
    for e in range(c.num_experts)
  )
  np.testing.assert_allclose(run(layer["down"]), expected, atol=1e-4)
  other = layer["down"].copy()
  other[1] = 100.0
  np.testing.assert_array_equal(run(layer["down"]), run(other))


def test_the_bias_moves_against_the_load_by_one_speed():
  bias = jnp.asarray([[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
  load = jnp.asarray([[10.0, 2.0, 4.0, 8.0], [3.0, 3.0, 3.0, 3.0]])
  np.testing.assert_allclose(
    rebalance(bias, load, 0.01),
    [[0.49, 0.51, 0.51, 0.49], [0.0, 0.0, 0.0, 0.0]],
    rtol=1e-6,
  )


def test_the_bias_rule_balances(toy, layer):
  """A router that prefers one expert is talked out of it."""
  c = toy.config
  tokens = jnp.asarray(RNG.normal(size=(400, c.width)), jnp.float32)
  w = jax.tree.map(jnp.float32, layer)
  w["router_bias"] = jnp.asarray([3.0, 0.0, 0.0, 0.0, 0.0])
  count = jax.jit(lambda w: route(w, tokens, c)[1].sum(0))
  spread = lambda load: float(load.std() / load.mean())
  first = spread(count(w))
  for _ in range(80):
    bias = rebalance(w["router_bias"], count(w), 0.05)
    w = w | {"router_bias": bias}
  assert first > 0.5 and spread(count(w)) < 0.2
