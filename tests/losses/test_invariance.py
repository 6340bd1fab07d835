"""Splitting, packing and padding do not change an update."""

import functools
import operator

import jax
import numpy as np
import pytest

from r1jax.losses.advantages import advantages
from r1jax.losses.aggregation import token_weights
from r1jax.losses.grpo import grpo_loss
from r1jax.losses.presets import PRESETS

P, G = 3, 4
RNG = np.random.default_rng(3)
LENGTHS = np.array([[6, 1, 3, 2], [4, 4, 6, 5], [2, 6, 1, 1]])
REWARDS = RNG.integers(0, 3, (P, G)).astype(np.float64)
REWARDS[1] = 1.0  # Teaches nothing.
REWARDS[2, 3] = np.nan  # Could not be graded.
VOCABULARY = 50
RECIPES = PRESETS | {
  "all terms": PRESETS["dapo"]
  | dict(
    loss=dict(
      ratio="sequence",
      clip=dict(name="two_sided", low=0.1, high=0.1, delta=1.3),
      kl="k3_importance",
      kl_coefficient=0.1,
      entropy_coefficient=0.01,
      correction=dict(name="mask", level="sequence", low=0.5, high=2.0),
    )
  ),
  "token correction": PRESETS["r1"]
  | dict(
    loss=PRESETS["r1"]["loss"]
    | dict(correction=dict(name="truncate", level="token", cap=1.1))
  ),
}
each = pytest.mark.parametrize("name", RECIPES)


@pytest.fixture(scope="module", autouse=True)
def double_precision():
  with jax.enable_x64(True):
    yield


def draw(scale):
  return -1.5 + RNG.normal(scale=scale, size=(P, G, LENGTHS.max()))


VALUES = dict(
  logprobs=draw(0.4),
  old_logprobs=draw(0.4),
  reference_logprobs=draw(0.6),
  sampler_logprobs=draw(0.4),
  entropy=np.full((P, G, LENGTHS.max()), np.log(VOCABULARY)),
)
MASK = np.arange(LENGTHS.max()) < LENGTHS[..., None]
MASK[0, 2, 1] = False  # A tool wrote it.


def tokens_by_completion(recipe, counted=None):
  """{completion: {array: its tokens}}, and the number of trained tokens."""
  if counted is None:
    counted = np.isfinite(REWARDS)
  weights = token_weights(MASK.sum(-1), counted, **recipe["aggregation"])
  weights = weights[..., None] * MASK
  per_completion = advantages(REWARDS, **recipe["advantage"])[..., None]
  arrays = VALUES | dict(
    weights=weights, advantages=np.broadcast_to(per_completion, MASK.shape)
  )
  tokens = {}
  for index, (p, g) in enumerate(np.ndindex(P, G)):
    values_of_one = {key: x[p, g, : LENGTHS[p, g]] for key, x in arrays.items()}
    values_of_one["completions"] = np.full(LENGTHS[p, g], index)
    tokens[index] = values_of_one
  return tokens, np.sum(weights > 0)


def pack_rows(tokens, chosen, room, width, hole):
  """Completions in twelve rows of `width`, at most `room` tokens in a row."""
  shape = (P * G, width)
  arrays = {key: np.full(shape, hole) for key in [*VALUES, "advantages"]}
  arrays |= dict(
    weights=np.zeros(shape), completions=np.full(shape, 999, np.int32)
  )
  used, places = [0] * (P * G), {}
  for index in chosen:
    size = len(tokens[index]["weights"])
    row = next(i for i, slots in enumerate(used) if slots + size <= room)
    places[index] = row, slice(used[row], used[row] + size)
    used[row] += size
    for key, values in tokens[index].items():
      arrays[key][places[index]] = values
  return arrays, places


@functools.cache
def microbatch_loss(name, **changes):
  """A function from (arrays, num_tokens) to ((loss, metrics), gradient)."""
  settings = RECIPES[name]["loss"] | changes
  first = ("old_logprobs", "reference_logprobs", "advantages", "weights")

  def loss(logprobs, arrays, num_tokens):
    rest = {key: x for key, x in arrays.items() if key not in first}
    del rest["logprobs"]
    return grpo_loss(
      logprobs,
      *(arrays[key] for key in first),
      **rest,
      num_completions=P * G,
      num_tokens=num_tokens,
      **settings,
    )

  gradient = jax.value_and_grad(loss, has_aux=True)
  return jax.jit(lambda arrays, n: gradient(arrays["logprobs"], arrays, n))


def update(
  name, parts, room=12, width=20, *, hole=np.nan, counted=None, **changes
):
  """Loss, gradient by completion, and metrics, summed over microbatches."""
  tokens, num_tokens = tokens_by_completion(RECIPES[name], counted)
  loss, gradients, metrics = 0.0, {}, {}
  for chosen in parts:
    arrays, places = pack_rows(tokens, chosen, room, width, hole)
    (value, numbers), gradient = microbatch_loss(name, **changes)(
      arrays, num_tokens
    )
    loss += float(value)
    gradient = np.asarray(gradient)
    np.testing.assert_array_equal(gradient[arrays["weights"] == 0], 0.0)
    gradients |= {index: gradient[place] for index, place in places.items()}
    for key, number in numbers.items():
      combine = dict(max=max, min=min).get(key[-3:], operator.add)
      number = float(number)
      metrics[key] = combine(metrics[key], number) if key in metrics else number
  return loss, gradients, metrics


def same(one, other):
  assert one[0] == pytest.approx(other[0], rel=1e-9, abs=1e-12)
  assert one[1].keys() == other[1].keys()
  for index, gradient in one[1].items():
    np.testing.assert_allclose(gradient, other[1][index], rtol=1e-9, atol=1e-14)
  assert one[2].keys() == other[2].keys()
  for key, number in one[2].items():
    assert number == pytest.approx(other[2][key], rel=1e-9, abs=1e-12), key


ALL = list(range(P * G))
SHUFFLED = RNG.permutation(P * G).tolist()
LAYOUTS = {
  "packed tightly": ([ALL], 20),
  "a row for each": ([ALL], 6),
  "shuffled": ([SHUFFLED], 12),
  "two microbatches": ([SHUFFLED[:6], SHUFFLED[6:]], 12),
  "uneven microbatches": ([SHUFFLED[:1], SHUFFLED[1:9], SHUFFLED[9:]], 12),
  "a completion at a time": ([[index] for index in ALL], 6),
}


@each
def test_no_layout_changes_the_update(name):
  whole = update(name, [ALL])
  assert max(np.abs(g).max() for g in whole[1].values()) > 1e-5
  for parts, room in LAYOUTS.values():
    same(update(name, parts, room), whole)


@pytest.mark.parametrize("name", ["r1", "dr_grpo", "all terms"])
def test_padding_by_a_hundred_more_changes_nothing(name):
  same(update(name, [ALL], width=120), update(name, [ALL]))


@each
def test_values_without_a_weight_are_ignored(name):
  zero = update(name, [ALL], hole=0.0)
  for hole in (np.nan, np.inf, -np.inf, 1e30):
    same(update(name, [ALL], hole=hole), zero)


@each
def test_without_trained_completions_loss_and_gradient_are_zero(name):
  nothing = np.zeros((P, G), bool)
  loss, gradients, metrics = update(name, [ALL], counted=nothing)
  assert loss == 0.0
  for gradient in gradients.values():
    np.testing.assert_array_equal(gradient, 0.0)
  assert metrics.pop("ratio/min") == np.inf  # The least of nothing.
  assert set(metrics.values()) == {0.0}


@each
def test_the_entropy_of_even_odds_is_the_log_of_their_number(name):
  """Whatever the weights are, and however the update is split."""
  _, _, metrics = update(name, [[index] for index in ALL])
  assert metrics["entropy/mean"] == pytest.approx(np.log(VOCABULARY), rel=1e-12)


@each
def test_logged_terms_add_up_to_the_loss(name):
  loss, _, metrics = update(name, [SHUFFLED[:6], SHUFFLED[6:]])
  logged = [x for key, x in metrics.items() if key.startswith("loss/")]
  assert sum(logged) == pytest.approx(loss, rel=1e-12)


@each
def test_for_equal_rewards_only_the_kl_has_a_gradient(name):
  _, gradients, _ = update(name, [ALL], kl_coefficient=0.0)
  for index in range(G, 2 * G):
    np.testing.assert_array_equal(gradients[index], 0.0)
