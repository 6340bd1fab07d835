"""AdamW: what learns, how fast, and how far at most."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax.training.update import make_optimizer

OPTIMIZER = dict(learning_rate=0.1)


def steps(gradient, count, **settings):
  """The updates of `count` equal gradients."""
  optimizer = make_optimizer(**OPTIMIZER | settings)
  params = jax.tree.map(jnp.zeros_like, gradient)
  state, updates = optimizer.init(params), []
  for _ in range(count):
    update, state = optimizer.update(gradient, state, params)
    updates.append(update)
  return updates


def rates(count, **settings):
  """The learning rate of each step: Adam's own part of it is 1."""
  updates = steps({"w": jnp.array([[3.0]])}, count, **settings)
  return [-float(update["w"][0, 0]) for update in updates]


@pytest.mark.parametrize(
  "settings, expected",
  [
    (dict(), [0.1] * 6),
    (dict(warmup_steps=4), [0, 0.025, 0.05, 0.075, 0.1, 0.1]),
    (
      dict(decay_steps=4, final_share=0.2),
      [0.1]
      + [0.02 + 0.04 * (1 + np.cos(np.pi * i / 4)) for i in (1, 2, 3, 4)]
      + [0.02],
    ),
    (
      dict(warmup_steps=2, decay_steps=2, final_share=0.0),
      [0, 0.05, 0.1, 0.05, 0, 0],
    ),
  ],
)
def test_the_learning_rate_warms_up_then_decays(settings, expected):
  np.testing.assert_allclose(rates(6, **settings), expected, atol=1e-6)


TREE = {
  "embed": jnp.ones((4, 3)),
  "unembed": jnp.ones((3, 4)),
  "moe": {
    "router": {"weight": jnp.ones((3, 2)), "bias": jnp.ones((1, 2))},
    "q_norm": {"scale": jnp.ones((1, 3))},
    "down": jnp.ones((1, 3, 2)),
    "qkv_bias": jnp.ones((1, 2, 3)),
  },
  "mtp": {"project": jnp.ones((6, 3)), "block": {"down": jnp.ones((3, 2))}},
}


def test_frozen_weights_and_the_routers_bias_do_not_move():
  gradient = jax.tree.map(jnp.ones_like, TREE)
  settings = dict(frozen=("mtp",), weight_decay=0.5)
  optimizer = make_optimizer(**OPTIMIZER | settings)
  updates, _ = optimizer.update(gradient, optimizer.init(TREE), TREE)
  moved = jax.tree.map(lambda u: bool(jnp.any(u != 0)), updates)
  assert moved == {
    "embed": True,
    "unembed": True,
    "moe": {
      "router": {"weight": True, "bias": False},
      "q_norm": {"scale": True},
      "down": True,
      "qkv_bias": True,
    },
    "mtp": {"project": False, "block": {"down": False}},
  }


def test_matrices_decay_and_norms_biases_and_embeddings_do_not():
  nothing = jax.tree.map(jnp.zeros_like, TREE)
  optimizer = make_optimizer(**OPTIMIZER | dict(weight_decay=0.5))
  updates, _ = optimizer.update(nothing, optimizer.init(TREE), TREE)
  shrunk = jax.tree.map(lambda u: round(float(u.ravel()[0]), 6), updates)
  assert shrunk == {
    "embed": 0,
    "unembed": 0,
    "moe": {
      "router": {"weight": -0.05, "bias": 0},
      "q_norm": {"scale": 0},
      "down": -0.05,
      "qkv_bias": 0,
    },
    "mtp": {"project": -0.05, "block": {"down": -0.05}},
  }


def test_the_gradient_is_clipped_as_one():
  """Two weights of norm 3 and 4 make 5; Adam's memory shows the scale."""
  optimizer = make_optimizer(**OPTIMIZER, max_grad_norm=1.0)
  gradient = {"a": jnp.array([[3.0]]), "b": jnp.array([[4.0]])}
  _, state = optimizer.update(gradient, optimizer.init(gradient), gradient)
  mean = optax.tree_utils.tree_get(state, "mu")
  assert float(mean["a"][0, 0]) == pytest.approx(0.1 * 3 / 5)
  assert float(mean["b"][0, 0]) == pytest.approx(0.1 * 4 / 5)
  short = jax.tree.map(lambda g: g / 100, gradient)  # Not made longer.
  _, state = optimizer.update(short, optimizer.init(gradient), gradient)
  mean = optax.tree_utils.tree_get(state, "mu")
  assert float(mean["a"][0, 0]) == pytest.approx(0.1 * 0.03)


def test_decay_may_be_linear():
  expected = [0.1, 0.08, 0.06, 0.04, 0.02, 0.02]
  got = rates(6, decay_steps=4, final_share=0.2, decay="linear")
  np.testing.assert_allclose(got, expected, rtol=1e-4)
  with pytest.raises(ValueError, match="unknown decay 'step'; there is cosine"):
    make_optimizer(**OPTIMIZER, decay="step")


def test_moments_may_be_kept_in_half_precision():
  """They are read in float32, and what they make is nearly the same."""
  gradient = {"w": jnp.array([[0.5, -0.01]])}
  low = make_optimizer(**OPTIMIZER, moments="bfloat16")
  state = low.init(gradient)
  kinds = {x.dtype for x in jax.tree.leaves(state) if x.ndim}
  assert kinds == {jnp.dtype("bfloat16")}
  update, state = low.update(gradient, state, gradient)
  assert update["w"].dtype == jnp.float32
  (exact,) = steps(gradient, 1)
  np.testing.assert_allclose(update["w"], exact["w"], rtol=1e-2)
  with pytest.raises(ValueError, match="moments is 'float16'"):
    make_optimizer(**OPTIMIZER, moments="float16")


def test_what_stands_apart_does_not_move_the_others():
  small, large = (
    {"w": jnp.ones((2, 2)), "mtp": {"w": jnp.ones((2, 2))}},
    {
      "w": jnp.ones((2, 2)),
      "mtp": {"w": 1e6 * jnp.ones((2, 2))},
    },
  )
  settings = dict(OPTIMIZER, max_grad_norm=0.1, b2=0.5)
  made = []
  for gradient in (small, large):
    optimizer = make_optimizer(**settings, apart=("mtp",))
    state = optimizer.init(gradient)
    for scale in (1.0, 0.1):
      update, state = optimizer.update(
        jax.tree.map(lambda g, s=scale: g * s, gradient), state, gradient
      )
    made.append(update)
  np.testing.assert_array_equal(made[0]["w"], made[1]["w"])
  assert np.abs(made[1]["mtp"]["w"]).max() > 0
