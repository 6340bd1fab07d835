"""Every kind of mesh samples the same, wherever the weights come from."""

import functools
import itertools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from r1jax.models.config import replace
from r1jax.models.presets import preset
from r1jax.models.transformer import Transformer
from r1jax.models.weights import logical_axes
from r1jax.parallel import sharding
from r1jax.parallel.mesh import AXES, make_mesh, reshape_mesh
from r1jax.rollouts import replay
from r1jax.rollouts.engine import make_engine

PREFIX = (7, 30, 7, 9)
RNG = np.random.default_rng(0)
PROMPTS = [
  [*PREFIX, *RNG.integers(0, 37, size).tolist()] for size in (3, 1, 6, 4, 6)
]
GROUP = 4
KINDS = (
  ("dense", dict(tensor=8)),
  *(
    pytest.param("deepseek", sizes, marks=pytest.mark.slow)
    for sizes in (
      dict(fsdp=8),
      dict(tensor=8),
      dict(expert=4, tensor=2),
      dict(data=2, fsdp=4),
      dict(fsdp=2, expert=2, context=2),
    )
  ),
)
ALL = tuple(
  {axis: size for axis, size in zip(AXES, sizes) if size > 1}
  for sizes in itertools.product((1, 2, 4, 8), repeat=5)
  if np.prod(sizes) == 8
)


@pytest.fixture(scope="module")
def policy(toy, random_params):
  @functools.cache
  def make(name):
    if name == "deepseek":
      sizes = replace(toy.model.config, experts=dict(num_routed=8))
    else:
      sizes = preset("tiny_qwen2", vocab_size=40, width=16, num_layers=2)
    return Transformer(sizes), random_params(replace(sizes, init_scale=0.3))

  return make


@pytest.fixture(scope="module")
def sample(toy, policy):
  @functools.cache
  def run(name, sizes, learned_on=None):
    """A rollout on one mesh by weights that lie on another."""
    model, params = policy(name)
    axes = logical_axes(model.config)
    mesh = make_mesh(**dict(learned_on or sizes))
    params = sharding.to_device(
      params, sharding.tree_shardings(mesh, axes, params)
    )
    engine = make_engine(
      model,
      toy.words,
      reshape_mesh(mesh, **dict(sizes)),
      PREFIX,
      num_slots=8,
      decode_steps=3,
      prompt_tokens=6,
      max_tokens=12,
      temperature=1.0,
      record_experts=name == "deepseek",
    )
    with jax.set_mesh(mesh):  # As in training.
      weights = engine.prepare(params)
      return engine(weights, PROMPTS, GROUP, seed=3, round=2)

  return run


def same(got, expected):
  """The same tokens: a draw would have to lie within rounding of a boundary
  to give another, and of these few hundred none does."""
  assert expected.lengths.sum() > 100
  np.testing.assert_array_equal(got.lengths, expected.lengths)
  np.testing.assert_array_equal(got.completions, expected.completions)
  np.testing.assert_array_equal(got.finish, expected.finish)
  np.testing.assert_allclose(got.logprobs, expected.logprobs, atol=1e-5)
  if expected.experts is not None:
    for p in range(len(PROMPTS)):
      one, other = (
        replay.of_prompt(rollout.experts, p) for rollout in (got, expected)
      )
      jax.tree.map(np.testing.assert_array_equal, one, other)


def frozen(sizes):
  return tuple(sizes.items())


def named(sizes):
  return "-".join(f"{axis}{size}" for axis, size in sizes.items())


ONE = (("data", 1),)


@pytest.mark.parametrize("name, sizes", KINDS)
def test_each_kind_of_mesh_samples_what_one_device_samples(sample, name, sizes):
  same(sample(name, frozen(sizes)), sample(name, ONE))


@pytest.mark.soak
@pytest.mark.parametrize("sizes", ALL, ids=named)
@pytest.mark.parametrize("name", ["deepseek", "dense"])
def test_all_meshes_of_eight_sample_what_one_device_samples(
  sample, name, sizes
):
  same(sample(name, frozen(sizes)), sample(name, ONE))


@pytest.mark.slow
def test_weights_come_from_the_mesh_that_they_are_learned_on(sample):
  learned_on = frozen(dict(fsdp=4, tensor=2))
  rollout = sample("dense", frozen(dict(data=4, tensor=2)), learned_on)
  same(rollout, sample("dense", ONE))


def test_a_device_gets_the_bytes_that_it_lacks(policy, toy):
  """From fsdp 8 to eight copies, and to tensor 8."""
  model, params = policy("dense")
  axes = logical_axes(model.config)
  mesh = make_mesh(fsdp=8)
  params = sharding.to_device(
    params, sharding.tree_shardings(mesh, axes, params)
  )
  make = lambda mesh: make_engine(
    model,
    toy.words,
    mesh,
    (),
    num_slots=8,
    decode_steps=3,
    prompt_tokens=6,
    max_tokens=12,
    temperature=1.0,
  )
  copied = make(reshape_mesh(mesh, data=8))
  lacking = sum(
    x.nbytes * 7 // 8
    for x in jax.tree.leaves(params)
    if not x.sharding.is_fully_replicated
  )
  assert copied.moved(params) == lacking > 0
  prepared = copied.prepare(params)
  assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(prepared))
  split = make(reshape_mesh(mesh, tensor=8))
  assert 0 < split.moved(params) < 0.6 * lacking
  block, on = split.prepare(params)["dense_0"], split.sampling.mesh
  split = dict(gate_up=P(None, None, "tensor"), down=P("tensor"))
  for name, spec in split.items():
    weight = block["feed_forward"][name]
    wanted, got = NamedSharding(on, spec), weight.sharding
    assert got.is_equivalent_to(wanted, weight.ndim), name
