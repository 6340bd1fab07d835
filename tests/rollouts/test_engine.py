"""Completions do not know their neighbours, and their numbers are right."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import packed as packed_rows
import pytest

from r1jax import ops
from r1jax.data.packing import unpack
from r1jax.models import transformer
from r1jax.parallel.mesh import make_mesh
from r1jax.rollouts.engine import make_engine
from r1jax.types import FINISH_LENGTH, FINISH_STOP

PREFIX = (7, 30, 7, 9)
WINDOW, MOST, GROUP = 6, 12, 4
RNG = np.random.default_rng(0)


def prompt(size):
  return [*PREFIX, *RNG.integers(0, 37, size).tolist()]


PROMPTS = [prompt(size) for size in (3, 1, 6, 4, 6)]
OTHERS = [prompt(size) for size in (6, 5, 1, 2, 3)]


@pytest.fixture(scope="module")
def engine(toy):
  @functools.cache
  def make(temperature=1.0, prefix=PREFIX, **kwargs):
    sizes = dict(
      num_slots=8, decode_steps=3, prompt_tokens=WINDOW, max_tokens=MOST
    )
    return make_engine(
      toy.model,
      toy.words,
      make_mesh(data=1),
      prefix,
      temperature=temperature,
      **sizes | kwargs,
    )

  return make


@pytest.fixture(scope="module")
def rollout(toy, engine):
  return engine()(toy.params, PROMPTS, GROUP, seed=3, round=2)


def test_the_rollout_says_what_it_was_given(rollout):
  for p, expected in enumerate(PROMPTS):
    length = rollout.prompt_lengths[p]
    assert rollout.prompts[p, :length].tolist() == expected
  assert rollout.completions.shape == (5, GROUP, MOST)


def test_a_completion_ends_with_its_first_end_or_at_the_limit(toy, rollout):
  kinds = set()
  for p, g in np.ndindex(5, GROUP):
    length, finish = rollout.lengths[p, g], rollout.finish[p, g]
    ids = rollout.completions[p, g]
    ends = np.isin(ids[:length], toy.words.eos_ids)
    assert 1 <= length <= MOST
    assert not ends[:-1].any()
    assert ends[-1] == (finish == FINISH_STOP)
    assert finish in (FINISH_STOP, FINISH_LENGTH)
    if finish == FINISH_LENGTH:
      assert length == MOST
    assert np.all(ids[length:] == 0)
    assert np.all(rollout.logprobs[p, g, length:] == 0)
    assert np.all(rollout.logprobs[p, g, :length] < 0)
    kinds.add((int(finish), int(ids[length - 1]) if ends[-1] else None))
  assert kinds == {(FINISH_STOP, 2), (FINISH_STOP, 5), (FINISH_LENGTH, None)}


def test_the_sampled_mask_covers_the_end_and_no_more(rollout):
  mask = rollout.sampled_mask
  np.testing.assert_array_equal(mask.sum(-1), rollout.lengths)
  np.testing.assert_array_equal(mask, rollout.logprobs < 0)


@pytest.fixture(scope="module")
def score(toy):
  """`score(params, rollout, temperature)`: the trainer's log-probabilities."""

  @functools.cache
  def jitted(temperature):
    @jax.jit
    def logprobs(params, packed):
      hidden = transformer.forward(toy.model, params, packed).hidden
      values, _ = ops.linear_logprobs(
        hidden,
        params["unembed"],
        packed.targets,
        temperature=temperature,
        vocab_size=37,
      )
      return jnp.where(packed.origin >= 0, values, 0.0)

    return logprobs

  def run(params, rollout, temperature):
    packed = packed_rows.of_rollout(rollout, 32, rows=20)
    values = jitted(temperature)(params, jax.tree.map(jnp.asarray, packed))
    return unpack(np.asarray(values), packed, rollout.logprobs.shape)

  return run


@pytest.mark.parametrize("scale", [1.0, 1.1])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_trainer_says_what_the_sampler_said(
  toy, engine, score, temperature, scale
):
  """At the temperature of sampling, of the weights as they are now, with the
  template read once for all prompts or with each."""
  params = jax.tree.map(lambda w: jnp.asarray(w * scale), toy.params)
  sampler = engine()
  if temperature != 1:
    sampler = engine(temperature, (), prompt_tokens=WINDOW + len(PREFIX))
  rollout = sampler(params, PROMPTS, GROUP, seed=0, round=0)
  said = functools.partial(score, rollout=rollout)
  np.testing.assert_allclose(
    said(params, temperature=temperature), rollout.logprobs, atol=1e-4
  )
  # It would show if one of the two were of another policy.
  others = [(toy.params, temperature)] * (scale != 1)
  others += [(params, 1.0)] * (temperature != 1)
  for weights, t in others:
    gap = said(weights, temperature=t) - rollout.logprobs
    assert np.abs(gap).max() > 0.05


def test_the_same_seed_and_round_give_the_same_bits(
  toy, engine, rollout, assert_same
):
  again = engine()(toy.params, PROMPTS, GROUP, seed=3, round=2)
  assert_same((again, ...), (rollout, ...))


def test_members_rounds_and_seeds_differ(toy, engine, rollout):
  run = functools.partial(engine(), toy.params, PROMPTS, GROUP)
  many = [rollout, run(seed=3, round=3), run(seed=4, round=2)]
  # Told by their first tokens; those that end at once have little to differ in.
  texts = [
    rollout.completions[p, g, :3].tobytes() + rollout.logprobs[p, g].tobytes()
    for rollout in many
    for p, g in np.ndindex(5, GROUP)
    if rollout.lengths[p, g] > 2
  ]
  assert len(set(texts)) == len(texts) > 30


def test_a_completion_does_not_know_its_neighbours(
  toy, engine, rollout, assert_same
):
  """Its prompt's row and its own number alone decide, not slot or order."""
  for p in range(5):
    prompts = [*OTHERS]
    prompts[p] = PROMPTS[p]
    other = engine()(toy.params, prompts, GROUP, seed=3, round=2)
    assert_same((other, p), (rollout, p))
    q = (p + 1) % 5
    assert other.completions[q].tobytes() != rollout.completions[q].tobytes()


def test_a_completion_does_not_know_its_slot(toy, engine, rollout, assert_same):
  few = engine()(toy.params, PROMPTS[:3], 2, seed=3, round=2)
  for p in range(3):
    assert_same((few, p), (rollout, (p, slice(0, 2))))
  many = engine()(toy.params, PROMPTS, 7, seed=3, round=2)
  for p in range(5):
    assert_same((many, (p, slice(0, GROUP))), (rollout, p))


def test_more_prompts_than_are_read_at_once(toy, engine, rollout, assert_same):
  many = engine()(toy.params, PROMPTS + OTHERS * 3, 1, seed=3, round=2)
  for p in range(5):
    assert_same((many, p), (rollout, (p, slice(0, 1))))
  assert np.all(many.lengths > 0)


def test_ids_that_the_tokenizer_lacks_are_never_drawn(toy, engine, assert_same):
  tempting = toy.params["unembed"].copy()
  tempting[:, 37:] = 30 * RNG.normal(size=(16, 3))
  params = toy.params | {"unembed": tempting}
  got = engine()(params, PROMPTS, GROUP, seed=0, round=0)
  assert got.completions.max() < 37
  expected = engine()(toy.params, PROMPTS, GROUP, seed=0, round=0)
  assert_same((got, ...), (expected, ...))


def test_a_completion_may_have_a_limit_of_its_own(toy, engine, rollout):
  limits = 1 + np.arange(5 * GROUP).reshape(5, GROUP) % MOST
  got = engine()(toy.params, PROMPTS, GROUP, seed=3, round=2, max_tokens=limits)
  cut = rollout.lengths > limits
  assert cut.any() and not cut.all()
  np.testing.assert_array_equal(
    got.lengths, np.minimum(rollout.lengths, limits)
  )
  np.testing.assert_array_equal(
    got.finish, np.where(cut, FINISH_LENGTH, rollout.finish)
  )
  for where in np.ndindex(5, GROUP):
    ids = rollout.completions[where][: got.lengths[where]]
    assert [*got.completions[where][: len(ids)]] == [*ids]
    assert not got.completions[where][len(ids) :].any()


@pytest.mark.parametrize("bad", [0, MOST + 1, [[1], [2], [3], [4], [13]]])
def test_a_limit_beyond_the_engines_is_refused(toy, engine, bad):
  with pytest.raises(ValueError, match="max_tokens .* the engine's 12"):
    engine()(
      toy.params, PROMPTS, GROUP, seed=0, round=0, max_tokens=np.array(bad)
    )


def test_an_evaluation_has_its_own_stream(toy, engine, rollout, assert_same):
  run = functools.partial(engine(), toy.params, PROMPTS, GROUP, seed=3)
  evaluated = run(round=2, evaluation=True)
  assert evaluated.logprobs.tobytes() != rollout.logprobs.tobytes()
  again = run(round=2, evaluation=True)
  assert_same((again, ...), (evaluated, ...))


def test_progress_counts_completions_and_tokens(toy, engine, rollout):
  calls = []
  engine()(
    toy.params,
    PROMPTS,
    GROUP,
    seed=3,
    round=2,
    progress=lambda done, tokens: calls.append((done, tokens)),
  )
  assert calls == sorted(calls) and len(calls) > 1
  assert calls[-1] == (5 * GROUP, rollout.lengths.sum())


def test_a_prompt_longer_than_the_window_is_refused(toy, engine):
  with pytest.raises(
    ValueError, match="prompt 1 has 7 tokens.*prompt_tokens is 6"
  ):
    engine()(toy.params, [prompt(6), prompt(7)], 2, seed=0, round=0)


@pytest.mark.parametrize("bad", [[7, 30, 1, 9, 4], [7, 30], [*PREFIX], []])
def test_a_prompt_without_the_template_is_refused(toy, engine, bad):
  with pytest.raises(ValueError, match="prompt 1 does not begin with the"):
    engine()(toy.params, [prompt(2), bad], 2, seed=0, round=0)


@pytest.mark.parametrize(
  "setting, message",
  [
    (dict(temperature=-1.0), "temperature -1.0 is below 0"),
    (dict(top_p=0.0), "top_p 0.0"),
    (dict(top_p=1.5), "top_p 1.5"),
    (dict(top_k=-1), "top_k -1 is below 0"),
  ],
)
def test_settings_that_cannot_sample_are_refused(engine, setting, message):
  with pytest.raises(ValueError, match=message):
    engine(**setting)
