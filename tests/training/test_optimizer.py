"""AdamW: what learns, how fast, and how far at most."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax.models import transformer
from r1jax.models.presets import preset
from r1jax.training.optimizer import (
  decay_mask,
  learning_rate_metric,
  make_optimizer,
)

OPTIMIZER = dict(learning_rate=0.1)


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


def steps(gradient, count, **settings):
  """The updates of `count` equal gradients."""
  optimizer = make_optimizer(**OPTIMIZER | settings)
  params = jax.tree.map(jnp.zeros_like, gradient)
  state, updates = optimizer.init(params), []
  step = jax.jit(optimizer.update)
  for _ in range(count):
    update, state = step(gradient, state, params)
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


def cosine(peak, end, share):
  return end + (peak - end) * (1 + np.cos(np.pi * share)) / 2


def linear(peak, end, share):
  return peak + (end - peak) * share


@pytest.mark.parametrize("shape", [cosine, linear])
@pytest.mark.parametrize("peak, warmup", [(0.1, 0), (0.1, 2), (0.0, 2)])
def test_a_second_decay_begins_where_the_first_ends(shape, peak, warmup):
  """The rate of every step by the definition; a peak of 0 is one, too."""
  settings = dict(
    learning_rate=peak,
    warmup_steps=warmup,
    decay_steps=3,
    final_share=0.5,
    restart_rate=0.04,
    restart_steps=2,
    decay=shape.__name__,
  )
  end = 0.5 * peak
  expected = (
    [peak * i / warmup for i in range(warmup)]
    + [shape(peak, end, i / 3) for i in range(3)]
    + [shape(0.04, end, i / 2) for i in range(2)]
    + [end] * 3
  )
  got = rates(len(expected), **settings)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-8)


def test_a_rate_of_nothing_moves_nothing():
  for settings in (dict(), dict(warmup_steps=2), dict(decay_steps=2)):
    assert rates(4, learning_rate=0.0, **settings) == [0.0] * 4


@pytest.mark.parametrize(
  "settings, message",
  [
    (dict(restart_steps=5, restart_rate=0.1), "restart_steps is 5 and decay_s"),
    (dict(decay_steps=5, restart_steps=5), "restart_rate is 0.0 and restart_s"),
    (dict(decay_steps=5, restart_rate=0.1), "restart_steps 0: a restart needs"),
    (dict(learning_rate=-1.0), "learning_rate is -1.0"),
    (dict(learning_rate=float("nan")), "learning_rate is nan"),
    (dict(learning_rate=float("inf")), "learning_rate is inf"),
    (dict(warmup_steps=-1), "warmup_steps is -1"),
    (dict(decay_steps=-1), "decay_steps is -1"),
    (dict(final_share=-0.1), "final_share is -0.1"),
    (dict(max_grad_norm=0.0), "max_grad_norm is 0.0; it must be above 0"),
    (dict(weight_decay=-0.1), "weight_decay is -0.1"),
  ],
)
def test_numbers_without_a_meaning_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    make_optimizer(**OPTIMIZER | settings)


@pytest.mark.parametrize("settings", [dict(), dict(separate=("mtp",))])
def test_the_rate_of_an_update_is_told(settings):
  optimizer = make_optimizer(**OPTIMIZER, warmup_steps=4, **settings)
  state, update = optimizer.init(TREE), jax.jit(optimizer.update)
  for expected in (0.0, 0.025, 0.05):
    _, state = update(TREE, state, TREE)
    assert learning_rate_metric(state)["optim/lr"] == pytest.approx(expected)
  assert learning_rate_metric(optax.sgd(0.1).init(TREE)) == {}


def test_frozen_weights_and_the_routers_bias_do_not_move():
  gradient = jax.tree.map(jnp.ones_like, TREE)
  settings = dict(frozen=("mtp",), weight_decay=0.5)
  optimizer = make_optimizer(**OPTIMIZER | settings)
  updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(TREE), TREE)
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
  updates, _ = jax.jit(optimizer.update)(nothing, optimizer.init(TREE), TREE)
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


@pytest.mark.parametrize(
  "name",
  [pytest.param("tiny_deepseek", marks=pytest.mark.slow), "tiny_qwen2"],
)
def test_the_matrices_between_the_embeddings_decay(name):
  """Weights that begin at random; norms begin at one, biases at zero."""
  model = transformer.Transformer(preset(name))
  params = transformer.init(model, jax.random.key(0))
  drawn = jax.tree.map(lambda x: bool(x.std() > 0), params)
  drawn |= {name: False for name in ("embed", "unembed") if name in drawn}
  assert decay_mask(params) == drawn


def test_the_gradient_is_clipped_as_one():
  """Two weights of norm 3 and 4 make 5; Adam's memory shows the scale."""
  optimizer = make_optimizer(**OPTIMIZER, max_grad_norm=1.0)
  gradient = {"a": jnp.array([[3.0]]), "b": jnp.array([[4.0]])}
  _, state = jax.jit(optimizer.update)(
    gradient, optimizer.init(gradient), gradient
  )
  mean = optax.tree_utils.tree_get(state, "mu")
  assert float(mean["a"][0, 0]) == pytest.approx(0.1 * 3 / 5)
  assert float(mean["b"][0, 0]) == pytest.approx(0.1 * 4 / 5)
  short = jax.tree.map(lambda g: g / 100, gradient)  # Not made longer.
  _, state = jax.jit(optimizer.update)(
    short, optimizer.init(gradient), gradient
  )
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
  low = make_optimizer(**OPTIMIZER, moments=jnp.bfloat16)
  state = low.init(gradient)
  kinds = {x.dtype for x in jax.tree.leaves(state) if x.ndim}
  assert kinds == {jnp.dtype("bfloat16")}
  update, state = jax.jit(low.update)(gradient, state, gradient)
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
    optimizer = make_optimizer(**settings, separate=("mtp",))
    state = optimizer.init(gradient)
    step = jax.jit(optimizer.update)
    for scale in (1.0, 0.1):
      update, state = step(
        jax.tree.map(lambda g, s=scale: g * s, gradient), state, gradient
      )
    made.append(update)
  np.testing.assert_array_equal(made[0]["w"], made[1]["w"])
  assert np.abs(made[1]["mtp"]["w"]).max() > 0
