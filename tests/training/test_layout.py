"""No large array is copied to devices that could share it."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.presets import PRESETS
from r1jax.models import cache as caches
from r1jax.models.config import replace
from r1jax.models.presets import preset
from r1jax.models.transformer import Transformer
from r1jax.models.weights import logical_axes, used_axes, weights
from r1jax.parallel import sharding
from r1jax.parallel.mesh import make_mesh, row_shards
from r1jax.rollouts import slots
from r1jax.rollouts.engine import make_engine
from r1jax.training import policy
from r1jax.training.optimizer import make_optimizer
from r1jax.training.update import make_update
from r1jax.types import Batch, Packed

pytestmark = pytest.mark.slow

LAYERS, ROWS, WIDTH, TOKENS, SLOTS, ROOM = 3, 16, 40, 24, 16, 48
MESH = dict(fsdp=2, expert=2, tensor=2)
SIZES = dict(
  deepseek=replace(
    preset("tiny_deepseek"),
    vocab_size=96,
    width=WIDTH,
    num_layers=LAYERS,
    experts=dict(num_dense_layers=0, num_routed=8, width=20),
    mtp_depth=0,
    scan=True,
    remat="block",
  ),
  dense=replace(
    preset("tiny_qwen2"),
    vocab_size=96,
    width=WIDTH,
    num_layers=LAYERS,
    scan=True,
    remat="block",
  ),
)
OPTIMIZER = dict(learning_rate=1e-3, weight_decay=0.1)


@pytest.fixture(
  scope="module",
  params=["deepseek", pytest.param("dense", marks=pytest.mark.soak)],
)
def sizes(request):
  return SIZES[request.param]


def shapes(sizes):
  """The parameters, as shapes."""
  return jax.tree.map(
    lambda w: jax.ShapeDtypeStruct(w.shape, jnp.float32), weights(sizes)
  )


def struct(x, split):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split)


def held(tree, splits):
  """Bytes of a tree, and those that one device holds of it."""
  pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(splits), strict=True)
  count = lambda shape, x: math.prod(shape) * x.dtype.itemsize
  return np.sum(
    [(count(x.shape, x), count(s.shard_shape(x.shape), x)) for x, s in pairs], 0
  )


def arrays(compiled):
  """The shapes of all arrays that a device makes."""
  found = re.findall(r"= \(?[a-z]+\d+\[([\d,]+)\]", compiled.as_text())
  return {tuple(map(int, shape.split(","))) for shape in found}


def gathered(sizes):
  """The shapes of large weights of a layer as a device uses them."""
  split = dict(heads=2, kv_heads=2, hidden=2, expert=2)
  for w in jax.tree.leaves(weights(sizes)):
    if {"layers", "width"} <= {*w.axes} and len(w.axes) > 2:
      yield tuple(
        size // split.get(name, 1) for size, name in zip(w.shape, w.axes)
      )[1:]


@pytest.fixture(scope="module")
def update(sizes):
  """The compiled parts of an update, its state, and how it comes in."""
  mesh, model = make_mesh(**MESH), Transformer(sizes)
  axes = logical_axes(sizes)
  optimizer = make_optimizer(**OPTIMIZER)
  loss = functools.partial(
    policy.policy_loss,
    functools.partial(policy.policy_forward, model, 90, 0.9),
    None,
    ROWS,
    **PRESETS["r1"]["loss"],
  )
  begin = functools.partial(policy.init_rl_state, sizes, optimizer, True)
  state = jax.eval_shape(begin, shapes(sizes))
  split = sharding.tree_shardings(mesh, axes, state)
  state = jax.tree.map(struct, state, split)
  tokens, values = sharding.rows_to_device(
    mesh, [np.zeros((ROWS, TOKENS), kind) for kind in (np.int32, np.float32)]
  )
  batch = Batch(
    packed=Packed(**dict.fromkeys(Packed.__dataclass_fields__, tokens)),
    weights=values,
    completions=tokens,
    advantages=values,
    sampler_logprobs=values,
    old_logprobs=values,
    reference_logprobs=values,
  )
  with jax.set_mesh(mesh):
    step = make_update(loss, optimizer, axes=axes)
    params = state.train.params
    add = step.add.lower(params, params, batch)
    _, metrics = add.out_info
    apply = step.apply.lower(state.train, params, metrics)
    compiled = add.compile(), apply.compile()
  return compiled, state, split


def test_parameters_optimizer_and_reference_are_shared_by_all(update):
  _, state, split = update
  trees = dict(
    params=(state.train.params, split.train.params),
    optimizer=(state.train.optimizer_state, split.train.optimizer_state),
    reference=(state.reference, split.reference),
  )
  for name, pair in trees.items():
    whole, own = held(*pair)
    assert own < 1.15 * whole / 8, name  # Heads of which there are too few.


def test_the_state_leaves_an_update_as_it_came(update):
  (add, apply), state, split = update
  gradients, _ = add.output_shardings
  left, _ = apply.output_shardings
  same = lambda x, got, wanted: _equal(got, wanted, x.ndim)
  for tree in (apply.input_shardings[0][0], left):
    jax.tree.map(same, state.train, tree, split.train)
  for tree in (gradients, add.input_shardings[0][1]):
    jax.tree.map(same, state.train.params, tree, split.train.params)


def _equal(got, wanted, ndim):
  assert got.is_equivalent_to(wanted, ndim), (got, wanted)


def test_an_update_gathers_neither_all_layers_nor_all_rows(update, sizes):
  made = arrays(update[0][0])
  layer = {*gathered(sizes)}
  assert made & (layer | {(1, *shape) for shape in layer})
  assert not made & {(LAYERS, *shape) for shape in layer}
  # Of all rows, no more than a device's share of their states.
  share = ROWS * TOKENS * WIDTH // row_shards(make_mesh(**MESH))
  whole = {s for s in made if s[:2] == (ROWS, TOKENS) and len(s) > 2}
  assert max(map(math.prod, whole), default=0) <= share
  assert {s for s in made if s[:2] == (ROWS // 4, TOKENS)}
  logits = {s for s in made if 96 in s and ROWS in s and len(s) > 2}
  assert not logits


@pytest.fixture(scope="module")
def decode(sizes):
  """A compiled `decode`, and the cache as it comes in."""
  mesh, model = make_mesh(**MESH), Transformer(sizes)

  class Words:
    vocab_size, eos_ids = 90, (0,)
    prefix_ids = ()
    encode = decode = staticmethod(str)

  engine = make_engine(
    model,
    Words(),
    mesh,
    (),
    num_slots=SLOTS,
    decode_steps=5,
    prompt_tokens=8,
    max_tokens=40,
    temperature=1.0,
  )
  axes = used_axes(sizes)
  params = jax.tree.map(
    struct, shapes(sizes), sharding.tree_shardings(mesh, axes, shapes(sizes))
  )
  with jax.set_mesh(mesh):
    cache = slots.empty(model, SLOTS, ROOM)
    cache = jax.tree.map(lambda x: struct(x, x.sharding), cache)
    prefix = caches.empty(sizes, 1, 1).prefix
    table = slots.to_table(slots.idle_slots(SLOTS, 5))
    compiled = slots.decode.lower(
      model, engine.sampling, params, prefix, cache, table
    ).compile()
  return compiled, cache


def test_caches_are_shared_and_leave_as_they_came(decode, sizes):
  compiled, cache = decode
  rows = cache.rows
  whole, own = held(rows, jax.tree.map(lambda x: x.sharding, rows))
  heads = sizes.attention.cached[0][0]
  assert own == whole // (4 * math.gcd(heads, 2))
  left = compiled.output_shardings[0]
  for x, got in zip(
    jax.tree.leaves(rows), jax.tree.leaves(left.rows), strict=True
  ):
    _equal(got, x.sharding, x.ndim)


def test_a_step_of_decoding_holds_its_own_rows_alone(decode, sizes):
  compiled, cache = decode
  made = arrays(compiled)
  for x in jax.tree.leaves(cache.rows):
    assert x.shape not in made
    assert any(math.prod(s) == math.prod(x.shape) // 4 for s in made) or any(
      math.prod(s) == math.prod(x.shape) // 8 for s in made
    )
