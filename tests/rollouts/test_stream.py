"""A stream says what the model says, one completion after another."""

import copy
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import transformer
from r1jax.models.presets import preset
from r1jax.ops import mask_padding
from r1jax.rollouts import stream

PROMPT = [7, 1, 30, 12, 12, 4]


@pytest.fixture
def make(toy):
  def make(**options):
    settings = dict(stop_ids=(), temperature=0.0) | options
    words = copy.copy(toy.words)
    words.vocab_size = settings.pop("vocab_size", 37)
    return stream.Stream(toy.model, toy.params, words, **settings)

  return make


def written(made, prompt, max_tokens=12, number=0):
  return list(made.complete(prompt, max_tokens=max_tokens, number=number))


def most_probable(model, params, prompt, count):
  """The greedy continuation, every token from the whole text, uncached."""

  @jax.jit
  def predict(params, tokens):
    rows = transformer.pack_rows(tokens)
    hidden = transformer.forward(model, params, rows).hidden
    logits = transformer.logits(params, hidden)
    return jnp.argmax(mask_padding(logits, 37), axis=-1)

  ids = list(prompt)
  for _ in range(count):
    padded = np.pad(ids, (0, 32 - len(ids)))[None].astype(np.int32)
    ids.append(int(predict(params, padded)[0, len(ids) - 1]))
  return ids[len(prompt) :]


@pytest.mark.slow
def test_a_greedy_stream_takes_the_most_probable_tokens(toy, make):
  made = make()
  for prompt in (PROMPT, [9]):
    expected = most_probable(toy.model, toy.params, prompt, 12)
    assert written(made, prompt) == expected


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", ["tiny_deepseek", "tiny_qwen2", "tiny_llama"])
def test_every_family_can_be_streamed(toy, name, scan, random_params):
  config = preset(name, vocab_size=40, scan=scan, init_scale=0.2)
  model, params = transformer.Transformer(config), random_params(config)
  made = stream.Stream(model, params, toy.words, stop_ids=(), temperature=0.0)
  assert written(made, PROMPT) == most_probable(model, params, PROMPT, 12)


def test_a_completion_does_not_know_the_one_before(make):
  made, turns = make(temperature=1.0, top_p=0.9), [PROMPT]
  for number in range(4):
    prompt = turns[-1]
    answer = written(made, prompt, number=number)
    fresh = make(temperature=1.0, top_p=0.9)
    assert answer == written(fresh, prompt, number=number)
    # The next turn goes on from all of it, from a part of it, or from none.
    kept = [len(prompt) + 12, len(prompt) + 3, 2, 0][number]
    turns.append([*[*prompt, *answer][:kept], 5, 6, 7 + number])


def test_a_stream_that_was_left_goes_on(make):
  made = make()
  whole = written(made, PROMPT)
  for count in (0, 1, 5, 12):
    part = made.complete(PROMPT, max_tokens=12)
    assert list(itertools.islice(part, count)) == whole[:count]
    part.close()
    longer = [*PROMPT, *whole[:count], 3]
    assert written(made, longer) == written(make(), longer)


def test_any_of_several_ends_stops(make):
  whole = written(make(), PROMPT, max_tokens=12)
  for end in {*whole}:
    at = whole.index(end)
    made = make(stop_ids=(end, 36))
    assert written(made, PROMPT) == whole[: at + 1]
  assert written(make(), PROMPT, max_tokens=1) == whole[:1]


def test_samples_depend_on_seed_and_number(make):
  draw = lambda seed=0, number=0: written(
    make(temperature=1.0, seed=seed), PROMPT, number=number
  )
  assert draw() == draw()
  assert draw() != draw(seed=1)
  assert draw() != draw(number=1)


def test_only_tokens_that_exist_are_sampled(make):
  made = make(temperature=50.0, vocab_size=3)
  assert {*written(made, PROMPT, max_tokens=60)} == {0, 1, 2}


def test_what_cannot_be_sampled_is_said(make):
  with pytest.raises(ValueError, match=r"temperature -0.5 is below 0"):
    make(temperature=-0.5)
  with pytest.raises(ValueError, match=r"top_p 0.0 is not within \(0, 1\]"):
    make(top_p=0.0)
  with pytest.raises(ValueError, match="is empty"):
    written(make(), [])


def test_a_text_is_no_longer_than_the_model_was_made_for(toy):
  short = dataclasses.replace(toy.model.config, max_length=10)
  made = stream.Stream(
    transformer.Transformer(short),
    toy.params,
    toy.words,
    stop_ids=(),
    temperature=0.0,
  )
  assert len(written(made, PROMPT)) == 4
  assert len(written(made, [*PROMPT, 1, 2, 3])) == 1
  with pytest.raises(ValueError, match="has 10 tokens, and the model was made"):
    written(made, [*PROMPT, 1, 2, 3, 4])
