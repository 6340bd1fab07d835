"""What a step draws: a function of the step, and every example in its turn."""

import collections

import pytest

from r1jax import data
from r1jax.data.mixture import Mixture, Part
from r1jax.types import Example

SIZE, COUNT = 12, 4


def examples(label="a", size=SIZE):
  return [Example(f"{label}{i}", str(i)) for i in range(size)]


def prompts(dataset, step, seed=0, **kwargs):
  drawn = data.draw(dataset, COUNT, seed=seed, step=step, **kwargs)
  return [example.prompt for example in drawn]


def test_the_steps_of_an_epoch_draw_every_example_once():
  dataset = examples()
  steps = SIZE // COUNT
  for epoch in range(3):
    drawn = [
      prompt
      for step in range(epoch * steps, (epoch + 1) * steps)
      for prompt in prompts(dataset, step)
    ]
    assert sorted(drawn) == sorted(example.prompt for example in dataset)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("attempt", [0, 1])
def test_each_step_draws_other_examples(mixed, attempt):
  dataset = examples()
  if mixed:
    parts = {
      label: Part(examples(label, 2 * SIZE), 1, range(2 * SIZE), {})
      for label in "ab"
    }
    dataset = Mixture(parts)
  draws = [prompts(dataset, step, attempt=attempt) for step in range(3)]
  counts = collections.Counter(prompt for draw in draws for prompt in draw)
  assert set(counts.values()) == {1}
  assert draws == [prompts(dataset, i, attempt=attempt) for i in range(3)]
  assert draws[0] != prompts(dataset, 0, seed=1, attempt=attempt)


def test_a_step_goes_on_where_the_last_ended_across_epochs():
  dataset = examples(size=10)  # No multiple of the count.
  drawn = [prompt for step in range(5) for prompt in prompts(dataset, step)]
  for start in (0, 10):
    assert len({*drawn[start : start + 10]}) == 10
  assert drawn[:10] != drawn[10:]
