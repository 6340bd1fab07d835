"""Recorded experts come to the tokens that they read, and pin the choice."""

import jax
import jax.numpy as jnp
import numpy as np
import packed as rows_of
import pytest

from r1jax import ops
from r1jax.data.packing import unpack
from r1jax.models import transformer
from r1jax.parallel.mesh import make_mesh
from r1jax.rollouts.engine import make_engine
from r1jax.rollouts.replay import differing, lay_out
from r1jax.types import Rollout, within_lengths

RNG = np.random.default_rng(1)
PREFIX = (7, 30, 7, 9)
SHAPE = P, G, MOST = 5, 3, 10
LAYERS, K = 1, 2  # Of the toy.


@pytest.fixture(scope="module")
def rollout(toy):
  """Of the toy, its experts recorded."""
  prompts = [
    [*PREFIX, *RNG.integers(0, 37, n).tolist()] for n in (3, 1, 6, 4, 6)
  ]
  engine = make_engine(
    toy.model,
    toy.words,
    make_mesh(data=1),
    PREFIX,
    num_slots=4,
    decode_steps=3,
    prompt_tokens=6,
    max_tokens=MOST,
    temperature=1.0,
    record_experts=True,
  )
  return engine(toy.params, prompts, G, seed=3, round=0)


@pytest.fixture(scope="module")
def ask(toy):
  """`ask(params, rollout, experts)`: log-probabilities [P, G, Tc], and the
  experts that were used [L, B, T, k]."""

  @jax.jit
  def jitted(params, packed, experts):
    made = transformer.forward(toy.model, params, packed, experts=experts)
    values, _ = ops.linear_logprobs(
      made.hidden, params["unembed"], packed.targets, vocab_size=37
    )
    return jnp.where(packed.origin >= 0, values, 0), made.experts

  def ask(params, rollout, experts):
    packed = packed_rows(rollout)
    rows = jax.tree.map(jnp.asarray, packed)
    values, used = jitted(params, rows, np.moveaxis(experts, -2, 0))
    return unpack(np.asarray(values), packed, SHAPE), np.asarray(used)

  return ask


def packed_rows(rollout):
  return rows_of.of_rollout(rollout, 32, rows=8)


def none_of(experts):
  return np.full_like(experts, -1)


def perturbed(params, name, size):
  """The same weights but for one of the routers."""
  moe = params["moe"]["feed_forward"]
  weight = moe["router"][name]
  noise = np.random.default_rng(0).normal(0, size, weight.shape)
  router = moe["router"] | {name: np.float32(weight + noise)}
  layers = params["moe"] | {"feed_forward": moe | {"router": router}}
  return params | {"moe": layers}


def test_experts_come_to_the_tokens_that_they_read():
  """Told by a loop over slots; the experts are the token's own number."""
  group, lengths = 4, RNG.integers(1, 9, (3, 4))
  prompt_lengths = np.array([5, 1, 3])
  ids = np.arange(3 * 6 + 3 * group * 9)
  prompts = ids[: 3 * 6].reshape(3, 6)
  completions = ids[3 * 6 :].reshape(3, group, 9)
  number = lambda x: np.stack([x, x + 1000], -1)[..., None, :].astype(np.int16)
  # The token before the first of a completion is the prompt's last.
  last = prompts[np.arange(3), prompt_lengths - 1]
  before = np.concatenate(
    [
      np.broadcast_to(last[:, None, None], (3, group, 1)),
      completions[..., :-1],
    ],
    axis=-1,
  )
  rollout = Rollout(
    prompts=prompts,
    prompt_lengths=prompt_lengths,
    completions=completions,
    lengths=lengths,
    finish=np.ones((3, group), int),
    sampled_mask=within_lengths(lengths, 9),
    logprobs=np.zeros((3, group, 9)),
    experts=number(before),
    prompt_experts=number(prompts),
  )
  packed = rows_of.of_rollout(rollout, 16, chosen=[2, 0, 1], rows=14)
  got = lay_out(rollout, packed)
  assert got.shape == (14, 16, 1, 2)
  for row, t in np.ndindex(14, 16):
    token = packed.tokens[row, t]
    unused = packed.positions[row, t] < 0
    expected = [-1, -1] if unused else [token, token + 1000]
    assert [*got[row, t, 0]] == expected
  assert (got >= 0).any() and (got < 0).any()
  # Microbatches are laid out likewise.
  split = jax.tree.map(lambda x: x.reshape(7, 2, 16), packed)
  np.testing.assert_array_equal(
    lay_out(rollout, split), got.reshape(7, 2, 16, 1, 2)
  )


def test_what_was_recorded_is_the_routers_choice(toy, rollout, ask):
  assert rollout.experts.shape == (*SHAPE, LAYERS, K)
  assert rollout.prompt_experts.shape == (*rollout.prompts.shape, LAYERS, K)
  recorded = lay_out(rollout, packed_rows(rollout))
  values, own = ask(toy.params, rollout, none_of(recorded))
  gap = differing(jnp.asarray(own), np.moveaxis(recorded, -2, 0))
  np.testing.assert_array_equal(gap, 0)
  np.testing.assert_allclose(values, rollout.logprobs, atol=1e-5)
  again, used = ask(toy.params, rollout, recorded)
  np.testing.assert_allclose(again, values, atol=1e-6)
  np.testing.assert_array_equal(used, own)
  # All of them were used, by prompts and by completions.
  mask = rollout.sampled_mask
  assert {*rollout.experts[mask].flat} == {0, 1, 2, 3}
  assert {*rollout.prompt_experts.flat} == {0, 1, 2, 3}


def test_replay_pins_the_choice_of_a_router_that_went_elsewhere(
  toy, rollout, ask
):
  """The bias has a say in the choice alone: with it repeated, nothing is left
  of the change."""
  changed = perturbed(toy.params, "bias", 0.2)
  recorded = lay_out(rollout, packed_rows(rollout))
  replayed, _ = ask(changed, rollout, recorded)
  np.testing.assert_allclose(replayed, rollout.logprobs, atol=1e-5)
  values, own = ask(changed, rollout, none_of(recorded))
  assert np.abs(values - rollout.logprobs).max() > 0.05
  gap = np.asarray(differing(jnp.asarray(own), np.moveaxis(recorded, -2, 0)))
  used = packed_rows(rollout).positions >= 0
  assert 0.1 < gap[used].mean() < 1
  assert not gap[~used].any()


def test_gates_are_still_the_routers(toy, rollout, ask):
  recorded = lay_out(rollout, packed_rows(rollout))
  slightly = perturbed(toy.params, "weight", 0.05)
  replayed, used = ask(slightly, rollout, recorded)
  gap = np.abs(replayed - rollout.logprobs).max()
  assert 1e-3 < gap
  without, own = ask(slightly, rollout, none_of(recorded))
  assert (own != used).any()
  assert np.abs(without - rollout.logprobs).max() > 2 * gap


def test_differing_counts_layers_whose_experts_are_others():
  own = np.array([[[0, 1], [2, 3], [0, 1]], [[4, 5], [6, 7], [0, 1]]])
  recorded = np.array([[[1, 0], [3, 4], [-1, -1]], [[5, 6], [7, 0], [1, 2]]])
  got = differing(jnp.asarray(own), recorded)
  np.testing.assert_array_equal(got, [0.5, 1.0, 0.5])


def test_a_model_without_experts_has_nothing_to_record(toy):
  from r1jax.models.presets import preset

  dense = transformer.Transformer(preset("tiny_qwen2", vocab_size=40))
  with pytest.raises(ValueError, match="no experts"):
    make_engine(
      dense,
      toy.words,
      make_mesh(data=1),
      (),
      num_slots=2,
      decode_steps=2,
      prompt_tokens=4,
      max_tokens=4,
      temperature=1.0,
      record_experts=True,
    )
