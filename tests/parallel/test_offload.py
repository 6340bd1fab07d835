"""What waits in the hosts' memory comes back unchanged, and waits again."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.transformer import pack_rows
from r1jax.parallel import offload, sharding
from r1jax.parallel.mesh import make_mesh
from r1jax.runtime import checkpoint
from r1jax.training.optimizer import make_optimizer
from r1jax.training.update import init_state, make_update
from r1jax.types import Batch, RLState

OPTIMIZER = make_optimizer(learning_rate=0.1, weight_decay=0.1)


def loss(params, batch):
  value = jnp.sum(jnp.sin(params["w"] @ batch.weights.T))
  return value, {"sum": value}


def begin(parts):
  """A state on eight devices, some of it parked."""
  mesh = make_mesh(data=1, fsdp=8)
  split = jax.NamedSharding(mesh, jax.P("fsdp"))
  w = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
  params = {"w": jax.device_put(w, split)}
  train = init_state(params, OPTIMIZER)
  state = RLState(
    train=jax.tree.map(
      lambda x: x if x.ndim else jax.device_put(x, sharding.replicated(mesh)),
      train,
    ),
    reference=jax.tree.map(jnp.copy, params),
    reference_step=jax.device_put(
      jnp.zeros((), int), sharding.replicated(mesh)
    ),
  )
  return offload.to_host(state, parts)


def kinds(tree):
  return {x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim}


def run(train, steps=3):
  update = make_update(loss, OPTIMIZER)
  batch = Batch(
    packed=pack_rows(np.zeros((1, 1), np.int32)),
    weights=jnp.linspace(-1.0, 1.0, 4 * 16).reshape(16, 4),
  )
  for _ in range(steps):
    train, numbers = update(train, [batch])
  return train, numbers


def test_parts_wait_where_they_are_told():
  state = begin(["optimizer"])
  assert kinds(state.train.optimizer_state) == {"pinned_host"}
  assert kinds([state.train.params, state.reference]) == {"device"}
  assert kinds(begin(["reference"]).reference) == {"pinned_host"}


def test_an_optimizer_that_waits_steps_as_another():
  plain, numbers = run(begin([]).train)
  waited, others = run(begin(["optimizer"]).train)
  assert kinds(waited.optimizer_state) == {"pinned_host"}
  assert kinds(waited.params) == {"device"}
  same = np.testing.assert_array_equal
  jax.tree.map(same, waited, plain)
  jax.tree.map(same, others, numbers)
  moments = waited.optimizer_state
  split = [x.sharding.spec for x in jax.tree.leaves(moments) if x.ndim]
  assert split and all(spec[0] == "fsdp" for spec in split)


def test_a_reference_that_waits_is_read_as_another():
  read = jax.jit(lambda params: jnp.sum(offload.to_device(params)["w"] ** 2))
  waits = begin(["reference"]).reference
  assert read(waits) == read(begin([]).reference)
  fetched = offload.to_device(waits)
  assert kinds(fetched) == {"device"}
  jax.tree.map(np.testing.assert_array_equal, fetched, waits)


def test_what_waits_is_saved_and_restored(tmp_path):
  state = begin(["optimizer", "reference"])
  state = state.replace(train=run(state.train)[0])
  checkpoint.save(tmp_path, 3, state, wait=True)
  again = checkpoint.restore(tmp_path, begin(["optimizer", "reference"]))
  jax.tree.map(np.testing.assert_array_equal, again, state)
  assert kinds([again.train.optimizer_state, again.reference]) == {
    "pinned_host"
  }


def test_what_cannot_wait_is_refused():
  device = jax.devices()[0]
  offload.check(["optimizer", "reference"], device)
  with pytest.raises(ValueError, match="offload names 'params'"):
    offload.check(["params"], device)
  bare = SimpleNamespace(
    device_kind="abacus",
    addressable_memories=lambda: [SimpleNamespace(kind="device")],
  )
  offload.check([], bare)
  with pytest.raises(ValueError, match="abacus has no memory 'pinned_host'"):
    offload.check(["reference"], bare)
