"""One optimizer step: however the batch is split, whatever it holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax.data import packing
from r1jax.losses.advantages import advantages
from r1jax.losses.aggregation import token_weights
from r1jax.losses.presets import PRESETS
from r1jax.models import transformer
from r1jax.models.config import replace
from r1jax.parallel.mesh import make_mesh
from r1jax.training import policy, sft
from r1jax.training.batch import add_advantages, make_batch, pack_prompts
from r1jax.training.optimizer import make_optimizer
from r1jax.training.update import init_state, make_update
from r1jax.types import Batch, Rollout, within_lengths

OPTIMIZER = dict(learning_rate=0.1)
RNG = np.random.default_rng(0)


def copied(tree):
  return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


# The step, on a loss that needs no model.


def batches_of(microbatches, weight):
  """Microbatches in which every slot has the same weight."""
  return [
    Batch(packed=x, weights=np.full(x.tokens.shape, weight, np.float32))
    for x in microbatches
  ]


def linear(params, batch):
  """Its gradient is the weighted sum of tokens."""
  packed, counted = batch.packed, batch.packed.origin >= 0
  tokens = jnp.where(counted, packed.tokens, 0)
  value = jnp.sum(params["w"] * tokens * batch.weights)
  load = jnp.zeros((1, 2)).at[0, 0].set(jnp.sum(counted))
  return value, {
    "sum": jnp.sum(counted) * 1.0,
    "largest/max": jnp.max(jnp.where(counted, packed.tokens, -1)) * 1.0,
    "router/load": load,
  }


def rows_of(prompts, answers, widths, rows):
  """Texts with one answer each as the packed rows of microbatches."""
  placements = packing.pack(
    np.array([*map(len, prompts)]),
    np.array([[len(answer)] for answer in answers]),
    widths=widths,
    rows=rows,
  )
  return [
    packing.lay_out(x, prompts, answers, group_size=1, stride=40)
    for x in placements
  ]


TEXTS = [[3] * size for size in (9, 8, 7, 9)]
ROWS = rows_of([[]] * 4, TEXTS, [10], 2)


def fresh(optimizer, params=None):
  params = params or {"w": jnp.array([[2.0]])}
  return init_state(copied(params), optimizer)


@pytest.mark.parametrize(
  "widths, rows", [([10], 1), ([10], 2), ([10], 8), ([20, 8], 1), ([40], 1)]
)
def test_sums_and_maxima_do_not_depend_on_the_split(widths, rows):
  optimizer = optax.sgd(1.0)
  microbatches = rows_of([[]] * 4, TEXTS, widths, rows)
  state, metrics = make_update(linear, optimizer)(
    fresh(optimizer), batches_of(microbatches, 0.5)
  )
  gradient = 3 * (9 + 8 + 7 + 9 - 4) * 0.5
  assert metrics["sum"] == 9 + 8 + 7 + 9 - 4
  assert metrics["largest/max"] == 3
  assert metrics["loss/total"] == pytest.approx(2 * gradient)
  assert metrics["optim/grad_norm"] == pytest.approx(gradient)
  assert metrics["optim/update_norm"] == pytest.approx(gradient)
  assert state.params["w"][0, 0] == pytest.approx(2 - gradient)
  assert (
    state.step == 1 and state.skipped == 0 and metrics["optim/skipped"] == 0
  )


def test_an_empty_batch_changes_nothing_and_is_finite():
  (empty,) = rows_of([[]], [[3]], [10], 4)
  assert not (empty.positions >= 0).any()  # A first token is not predicted.
  optimizer = make_optimizer(**OPTIMIZER)
  state, metrics = make_update(linear, optimizer)(
    fresh(optimizer), batches_of([empty], 1.0)
  )
  assert state.params["w"] == 2.0
  assert all(np.all(np.isfinite(x)) for x in metrics.values())


def bias_of(*shape):
  return {"router": {"bias": jnp.zeros(shape)}}


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted():
  optimizer = make_optimizer(**OPTIMIZER)
  params = {"w": jnp.array([[2.0]]), "moe": bias_of(1, 2)}
  update = make_update(linear, optimizer, router_bias_speed=0.1)
  state = fresh(optimizer, params)
  first, _ = update(state, batches_of(ROWS, 0.5))
  kept = jax.tree.map(np.array, (first.params, first.optimizer_state))
  bias = kept[0]["moe"]["router"]["bias"]
  np.testing.assert_allclose(bias, [[-0.1, 0.1]], rtol=1e-6)
  state = first
  for skipped, bad in enumerate((jnp.nan, jnp.inf, -jnp.inf), 1):
    state, metrics = update(state, batches_of(ROWS, bad))
    assert state.skipped == skipped and metrics["optim/skipped"] == 1
    assert state.step == 1 + skipped
    now = (state.params, state.optimizer_state)
    jax.tree.map(np.testing.assert_array_equal, now, kept)
  state, metrics = update(state, batches_of(ROWS, 0.5))
  assert state.skipped == 0 and metrics["optim/skipped"] == 0
  assert state.params["w"] != kept[0]["w"]


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_an_update_without_a_gradient_changes_nothing_and_is_counted(moments):
  """Neither momentum, nor decay, nor balance, nor the schedule goes on."""
  optimizer = make_optimizer(
    **OPTIMIZER, weight_decay=0.1, warmup_steps=9, moments=moments
  )
  params = {"w": jnp.array([[2.0]]), "moe": bias_of(1, 2)}
  update = make_update(linear, optimizer, router_bias_speed=0.1)
  state = fresh(optimizer, params)
  for _ in range(2):  # The learning rate begins at 0.
    state, metrics = update(state, batches_of(ROWS, 0.5))
  assert metrics["optim/idle"] == 0 and metrics["optim/update_norm"] > 0
  kept = jax.tree.map(np.array, (state.params, state.optimizer_state))
  for step in (3, 4):
    state, metrics = update(state, batches_of(ROWS, 0.0))
    assert metrics["optim/idle"] == 1 and metrics["optim/update_norm"] == 0
    assert (state.step, state.skipped) == (step, 0)
    now = (state.params, state.optimizer_state)
    jax.tree.map(np.testing.assert_array_equal, now, kept)


def test_what_learns_apart_does_not_move_what_has_no_gradient():
  """MTP blocks learn from tokens that teach the policy nothing."""
  optimizer = make_optimizer(**OPTIMIZER, separate=("mtp",))
  params = {"w": jnp.ones((2, 2)), "mtp": {"w": jnp.ones((2, 2))}}
  state = optimizer.init(params)
  gradient = jax.tree.map(jnp.ones_like, params)
  _, state = optimizer.update(gradient, state, params)
  changes, _ = optimizer.update(
    gradient | {"w": jnp.zeros((2, 2))}, state, params
  )
  assert not np.any(changes["w"]) and np.all(changes["mtp"]["w"])


def test_the_balancing_biases_move_by_their_own_rule():
  optimizer = make_optimizer(**OPTIMIZER)
  params = {
    "w": jnp.ones((1, 1)),
    "moe": bias_of(1, 2),
    "mtp": {"block": bias_of(1, 2)},
  }

  def loss(params, batch):
    value, metrics = linear(params, batch)
    load = jnp.array([[4.0, 2.0], [1.0, 5.0]])  # The MTP block's is the last.
    return value, metrics | {"router/load": load}

  state, _ = make_update(loss, optimizer, router_bias_speed=0.01)(
    fresh(optimizer, params), batches_of(ROWS, 1.0)
  )
  np.testing.assert_allclose(
    state.params["moe"]["router"]["bias"], [[-0.01, 0.01]]
  )
  np.testing.assert_allclose(
    state.params["mtp"]["block"]["router"]["bias"], [[0.01, -0.01]]
  )


# The step on the losses of the loops.

P, G, T = 4, 3, 6
LENGTHS = RNG.integers(1, T + 1, (P, G)).astype(np.int32)
ROLLOUT = Rollout(
  prompts=RNG.integers(0, 40, (P, 5)).astype(np.int32),
  prompt_lengths=np.array([5, 3, 1, 4], np.int32),
  completions=RNG.integers(0, 40, (P, G, T)).astype(np.int32),
  lengths=LENGTHS,
  finish=np.ones((P, G), np.int32),
  sampled_mask=within_lengths(LENGTHS, T),
  logprobs=RNG.uniform(-5, -3, (P, G, T)).astype(np.float32),
)


def gradient_of(loss, params, microbatches, counts):
  """The gradient, negated, and the metrics of one step."""
  optimizer = optax.sgd(1.0)
  batches = [
    Batch(
      packed=x,
      weights=np.float32(x.origin >= 0) / counts["num_targets"],
      **counts,
    )
    for x in microbatches
  ]
  state, metrics = make_update(loss, optimizer)(
    init_state(copied(params), optimizer), batches
  )
  return jax.tree.map(lambda new, old: new - old, state.params, params), metrics


def close(one, other):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
    one,
    other,
  )


@pytest.fixture(scope="module")
def layer(toy):
  """The toy's layer of experts and its MTP block alone: quick to compile."""
  model, params = toy
  config = replace(model.config, num_layers=1, experts=dict(num_dense_layers=0))
  params = {name: w for name, w in params.items() if name != "dense"}
  return transformer.Transformer(config), params


REWARDS = RNG.integers(0, 2, (P, G)).astype(float)
REWARDS[0] = [0, 1, np.nan]


@pytest.fixture(scope="module")
def grpo_step(layer):
  """`step(recipe, widths=, rows=, pad=, further=)`: (gradient, metrics)."""
  model, params = layer
  forward = functools.partial(policy.policy_forward, model, 37, 0.9)
  mtp = functools.partial(policy.mtp_loss, model, 37)

  @functools.cache
  def update(recipe, further):
    loss = functools.partial(
      policy.policy_loss,
      forward,
      mtp if further else None,
      P * G,
      **PRESETS[recipe]["loss"] | dict(kl_coefficient=0.1),
    )
    return make_update(loss, optax.sgd(1.0))

  def step(recipe, *, widths=(16,), rows=12, pad=0, further=False):
    rollout = jax.tree.map(np.asarray, ROLLOUT)
    widen = lambda x: np.pad(x, ((0, 0), (0, 0), (0, pad)))
    rollout = rollout.replace(
      completions=widen(ROLLOUT.completions),
      logprobs=widen(ROLLOUT.logprobs),
      sampled_mask=widen(ROLLOUT.sampled_mask),
    )
    settings = PRESETS[recipe]
    aggregation = settings["aggregation"]
    if aggregation["name"] == "constant":
      aggregation = aggregation | dict(divisor=T)
    mesh, trained = make_mesh(data=1), np.isfinite(REWARDS)

    def batch_of(placement):
      batch = make_batch(rollout, placement, mesh)
      holes = jnp.where(batch.weights > 0, batch.sampler_logprobs, jnp.nan)
      return add_advantages(
        batch.replace(
          old_logprobs=holes, reference_logprobs=batch.sampler_logprobs - 0.1
        ),
        advantages(REWARDS, **settings["advantage"]).reshape(-1),
        token_weights(LENGTHS, trained, **aggregation).reshape(-1),
        np.int32(LENGTHS[trained].sum()),
      )

    placements = pack_prompts(
      rollout, range(P), mesh, widths=widths, shard_rows=rows
    )
    state, metrics = update(recipe, further)(
      init_state(copied(params), optax.sgd(1.0)), map(batch_of, placements)
    )
    return jax.tree.map(lambda a, b: a - b, state.params, params), metrics

  return step


@pytest.mark.slow
def test_any_layout_of_a_minibatch_gives_the_same_update(grpo_step, recipe):
  """Microbatches, rows of other and of several widths, padded completions."""
  gradient, metrics = grpo_step(recipe)
  assert metrics["optim/grad_norm"] > 0.01
  metrics.pop("router/load")  # A prompt counts as often as it is laid out.
  for layout in (
    dict(rows=1),
    dict(widths=(24,), rows=4),
    dict(widths=(24, 12), rows=2, pad=5),
  ):
    other_gradient, other_metrics = grpo_step(recipe, **layout)
    close(other_gradient, gradient)
    close({name: other_metrics[name] for name in metrics}, metrics)


@pytest.mark.slow
def test_in_grpo_the_mtp_block_gets_no_gradient(grpo_step):
  gradient, _ = grpo_step("r1")
  for leaf in jax.tree.leaves(gradient["mtp"]):
    np.testing.assert_array_equal(leaf, 0)
  router = gradient["moe"]["feed_forward"]["router"]
  np.testing.assert_array_equal(router["bias"], 0)
  for name in ("embed", "unembed", "final_norm"):
    assert max(np.abs(x).max() for x in jax.tree.leaves(gradient[name])) > 0


@pytest.mark.slow
def test_an_mtp_block_that_learns_does_not_change_the_policys_gradient(
  grpo_step,
):
  alone, _ = grpo_step("r1")
  beside, metrics = grpo_step("r1", further=True)
  assert metrics["loss/mtp"] > 1
  assert np.abs(beside.pop("mtp")["project"]).max() > 0
  alone.pop("mtp")
  jax.tree.map(np.testing.assert_array_equal, beside, alone)


@pytest.mark.slow
def test_any_split_of_an_sft_batch_gives_the_same_gradient(layer):
  """With all its parts: next token, the one after, balance, expert load.

  No two texts fit into a row: the balance loss is one of rows.
  """
  model, params = layer
  draw = lambda size: RNG.integers(0, 37, size).tolist()
  sizes = [(3, 12), (0, 14), (1, 12), (2, 18), (6, 8)]
  texts = [draw(head) for head, _ in sizes], [draw(size) for _, size in sizes]
  counts = dict(num_targets=np.int32(63), num_tokens=np.int32(71))
  loss = functools.partial(sft.objective, model, 37, mtp=0.3, balance=0.5)
  one, many = rows_of(*texts, [24], 8), rows_of(*texts, [24, 16], 1)
  assert len(one) == 1 and len({x.tokens.shape for x in many}) == 2
  gradient, metrics = gradient_of(loss, params, one, counts)
  other_gradient, other_metrics = gradient_of(loss, params, many, counts)
  assert metrics["loss/mtp"] > 0 and metrics["loss/balance"] > 0
  close(other_metrics, metrics)
  close(other_gradient, gradient)
