"""Every kind of mesh says what one device says."""

import functools
import itertools

import jax
import numpy as np
import optax
import pytest

from r1jax.data import packing
from r1jax.losses.advantages import advantages
from r1jax.losses.aggregation import token_weights
from r1jax.losses.presets import PRESETS
from r1jax.models.config import replace
from r1jax.models.presets import preset
from r1jax.models.transformer import Transformer
from r1jax.models.weights import logical_axes
from r1jax.parallel import sharding
from r1jax.parallel.mesh import AXES, make_mesh
from r1jax.training import policy, sft
from r1jax.training.batch import add_advantages, make_batch
from r1jax.training.update import init_state, make_update
from r1jax.types import Batch, Rollout, within_lengths

P, G, T, IDS = 4, 4, 6, 37
RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, T + 1, (P, G)).astype(np.int32)
ROLLOUT = Rollout(
  prompts=RNG.integers(0, IDS, (P, 5)).astype(np.int32),
  prompt_lengths=np.array([5, 3, 1, 4], np.int32),
  completions=RNG.integers(0, IDS, (P, G, T)).astype(np.int32),
  lengths=LENGTHS,
  finish=np.ones((P, G), np.int32),
  sampled_mask=within_lengths(LENGTHS, T),
  logprobs=RNG.uniform(-5, -3, (P, G, T)).astype(np.float32),
)
SMALL = dict(vocab_size=40, width=16, num_layers=2)
MODELS = {
  "deepseek": ("tiny_deepseek", dict(mtp_depth=1) | SMALL),
  "dense": ("tiny_qwen2", SMALL),
}
KINDS = (
  dict(fsdp=8),
  dict(tensor=8),
  dict(expert=4, tensor=2),
  dict(data=2, fsdp=4),
  dict(context=8),
  dict(fsdp=2, expert=2, context=2),
)
ALL = tuple(
  {axis: size for axis, size in zip(AXES, sizes) if size > 1}
  for sizes in itertools.product((1, 2, 4, 8), repeat=5)
  if np.prod(sizes) == 8
)


@pytest.fixture(scope="module")
def model(random_params):
  @functools.cache
  def make(name):
    base, changes = MODELS[name]
    config = replace(preset(base), **changes)
    return Transformer(config), random_params(replace(config, init_scale=0.2))

  return make


def sft_batches(mesh):
  """Two microbatches of eight rows."""
  draw = np.random.default_rng(1)
  texts = draw.integers(3, 15, 20)
  answers = [draw.integers(0, IDS, size).tolist() for size in texts]
  placements = packing.pack(
    np.zeros(20, int), texts[:, None], widths=[16], rows=8
  )
  assert len(placements) == 2
  counts = np.int32(sum(x.count.sum() for x in placements))
  batches = []
  for placement in placements:
    packed = packing.lay_out(
      placement, [[]] * 20, answers, group_size=1, stride=20
    )
    packed, weights = sharding.rows_to_device(
      mesh, (packed, (packed.origin >= 0) / counts)
    )
    batches.append(
      Batch(
        packed=packed, weights=weights, num_targets=counts, num_tokens=counts
      )
    )
  return batches


def grpo_batch(mesh):
  """A microbatch of eight rows of a round."""
  (placement,) = packing.pack_rollout(ROLLOUT, range(P), widths=[16], rows=8)
  batch = make_batch(ROLLOUT, placement, mesh)
  rewards = np.arange(P * G).reshape(P, G) % 3 * 1.0
  weights = token_weights(
    LENGTHS, np.ones((P, G), bool), **PRESETS["r1"]["aggregation"]
  )
  with jax.set_mesh(mesh):
    return add_advantages(
      batch.replace(reference_logprobs=batch.sampler_logprobs - 0.1),
      advantages(rewards, **PRESETS["r1"]["advantage"]).reshape(-1),
      weights.reshape(-1),
      np.int32(LENGTHS.sum()),
    )


def update(model, params, mesh, loss, batches):
  """The gradient and the metrics of one update on a mesh."""
  axes = logical_axes(model.config)
  optimizer = optax.sgd(1.0)
  begin = functools.partial(init_state, optimizer=optimizer)
  state = sharding.init(mesh, axes, begin, params)
  with jax.set_mesh(mesh):
    state, metrics = make_update(loss, optimizer, axes=axes)(state, batches)
  gradient = jax.tree.map(lambda a, b: np.asarray(a) - b, state.params, params)
  return gradient, sharding.to_host(metrics)


def sft_update(model, params, sizes):
  mesh = make_mesh(**sizes)
  further = 0.3 if model.config.mtp_depth else 0.0
  loss = functools.partial(sft.objective, model, IDS, mtp=further, balance=0.5)
  return update(model, params, mesh, loss, sft_batches(mesh))


def grpo_update(model, params, sizes):
  mesh = make_mesh(**sizes)
  loss = functools.partial(
    policy.policy_loss,
    functools.partial(policy.policy_forward, model, IDS, 0.9),
    None,
    P * G,
    **PRESETS["r1"]["loss"] | dict(kl_coefficient=0.1),
  )
  return update(model, params, mesh, loss, [grpo_batch(mesh)])


def scoring(model, params, sizes):
  mesh, axes = make_mesh(**sizes), logical_axes(model.config)
  score = policy.make_score(
    functools.partial(policy.policy_forward, model, IDS, 0.9)
  )
  placed = sharding.to_device(
    params, sharding.tree_shardings(mesh, axes, params)
  )
  batch = grpo_batch(mesh)
  with jax.set_mesh(mesh):
    logprobs = score(placed, batch)
  return np.where(
    sharding.to_host(batch.weights), sharding.to_host(logprobs), 0
  )


PROGRAMS = {"sft": sft_update, "grpo": grpo_update, "scoring": scoring}


@pytest.fixture(scope="module")
def alone(model):
  @functools.cache
  def run(program, name):
    return PROGRAMS[program](*model(name), dict(data=1))

  return run


def same(model, alone, program, name, sizes):
  expected = alone(program, name)
  got = PROGRAMS[program](*model(name), sizes)
  for (path, one), other in zip(
    jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(
      one, other, rtol=1e-4, atol=5e-6, err_msg=jax.tree_util.keystr(path)
    )
  assert max(np.abs(x).max(initial=0) for x in jax.tree.leaves(expected)) > 0.01


def named(sizes):
  return "-".join(f"{axis}{size}" for axis, size in sizes.items())


@pytest.mark.parametrize("sizes", KINDS, ids=named)
@pytest.mark.parametrize(
  "program, name",
  [
    pytest.param("grpo", "deepseek", marks=pytest.mark.slow),
    ("scoring", "dense"),
  ],
)
def test_each_kind_of_mesh_says_what_one_device_says(
  model, alone, program, name, sizes
):
  same(model, alone, program, name, sizes)


@pytest.mark.soak
@pytest.mark.parametrize("sizes", ALL, ids=named)
@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_all_meshes_of_eight_say_what_one_device_says(
  model, alone, program, name, sizes
):
  same(model, alone, program, name, sizes)
