"""Neighbouring slots that read the cache of their prompt together."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from r1jax.parallel.mesh import make_mesh
from r1jax.rollouts.engine import Engine, make_engine
from r1jax.rollouts.slots import empty

PREFIX, GROUP = (7, 30, 7, 9), 5
RNG = np.random.default_rng(1)
PROMPTS = [
  [*PREFIX, *RNG.integers(0, 37, size).tolist()] for size in (3, 1, 6, 4, 6)
]


@dataclasses.dataclass(frozen=True)
class Fixed(Engine):
  """An engine whose slots share prompts as they are told."""

  shared: int

  def _slots_per_prompt(self, group_size):
    return self.shared


@pytest.fixture(scope="module")
def engine(toy):
  @functools.cache
  def make(slots_per_prompt, prefix=PREFIX, num_slots=8, data=1):
    made = make_engine(
      toy.model,
      toy.words,
      make_mesh(data=data),
      prefix,
      num_slots=num_slots,
      decode_steps=3,
      prompt_tokens=6 + len(PREFIX) - len(prefix),
      max_tokens=12,
      temperature=1.0,
    )
    return Fixed(**vars(made), shared=slots_per_prompt)

  return make


def sample(toy, engine, prompts=PROMPTS, group_size=GROUP):
  return engine(toy.params, prompts, group_size, seed=3, round=2)


@pytest.mark.parametrize(
  "slots_per_prompt, prefix",
  [
    (4, PREFIX),
    *(
      pytest.param(*pair, marks=pytest.mark.slow)
      for pair in [(2, PREFIX), (8, PREFIX), (2, ()), (4, ()), (8, ())]
    ),
  ],
)
def test_sharing_samples_what_copies_do(toy, engine, slots_per_prompt, prefix):
  """Lengths differ, so that slots are filled again while neighbours go on."""
  copies = sample(toy, engine(1, prefix))
  shared = sample(toy, engine(slots_per_prompt, prefix))
  assert len(np.unique(shared.lengths)) > 3
  np.testing.assert_array_equal(shared.completions, copies.completions)
  np.testing.assert_array_equal(shared.lengths, copies.lengths)
  np.testing.assert_allclose(shared.logprobs, copies.logprobs, atol=1e-5)


def test_a_completion_knows_neither_neighbours_nor_slot(
  toy, engine, assert_same
):
  shared = sample(toy, engine(4))
  few = sample(toy, engine(4), PROMPTS[:3], 2)
  many = sample(toy, engine(4), PROMPTS, 7)
  for p in range(3):
    assert_same((few, p), (shared, (p, slice(0, 2))))
  for p in range(5):
    assert_same((many, (p, slice(0, GROUP))), (shared, p))


@pytest.mark.slow
def test_the_mesh_splits_shared_prompts_with_their_slots(toy, engine):
  alone = sample(toy, engine(2))
  split = sample(toy, engine(2, data=4))
  np.testing.assert_array_equal(split.completions, alone.completions)
  np.testing.assert_allclose(split.logprobs, alone.logprobs, atol=1e-5)


def test_a_shared_prompt_is_there_once(toy):
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  shapes = jax.eval_shape(
    functools.partial(
      empty, toy.model, 8, 12, slots_per_prompt=4, prompt_size=6
    )
  )
  numbers = toy.model.config.num_layers * toy.model.config.cache_size
  assert size(shapes.rows) == 8 * 12 * numbers
  assert size(shapes.shared.rows) == 2 * 6 * numbers
