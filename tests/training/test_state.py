"""A state is made and restored in the shards and memory where it stays."""

import functools
import shutil

import jax
import numpy as np
import pytest
from trees import assert_same

from r1jax import hf
from r1jax.models.weights import logical_axes
from r1jax.parallel import sharding
from r1jax.parallel.mesh import make_mesh
from r1jax.runtime import checkpoint
from r1jax.training import models, policy
from r1jax.training.optimizer import make_optimizer
from r1jax.training.state import make_params, restore_or_init

MODELS = {
  "pretrained": lambda base: dict(name="pretrained", path=base),
  "fresh": lambda base: dict(
    name="fresh", preset_name="tiny_deepseek", seed=0, vocab_size=40
  ),
}


def shardings_of(tree):
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


@pytest.mark.parametrize(
  "name", ["pretrained", pytest.param("fresh", marks=pytest.mark.slow)]
)
def test_a_state_comes_where_it_stays(name, base, tmp_path):
  mesh = make_mesh(data=1, fsdp=4, tensor=2)
  initial = models.initial(**MODELS[name](base), mtp=False)
  axes, kept = logical_axes(initial.config), ("optimizer", "reference")
  init = functools.partial(
    policy.init_rl_state,
    initial.config,
    make_optimizer(learning_rate=0.1),
    True,
  )
  begin = lambda: restore_or_init(str(tmp_path), mesh, initial, init, kept)
  state, step = begin()
  assert step is None and "mtp" not in state.train.params
  params = make_params(mesh, initial)
  assert_same(jax.device_get(state.train.params), jax.device_get(params))
  split = sharding.tree_shardings(mesh, axes, params)
  assert shardings_of(state.train.params) == shardings_of(params) == split
  assert not params["embed"].is_fully_replicated
  kinds = lambda tree: {
    x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim
  }
  assert kinds(state.train.optimizer_state) == {"pinned_host"}
  assert kinds(state.reference) == {"pinned_host"}
  # A checkpoint comes back there, and the model is not read or made.
  checkpoint.save(tmp_path, 0, state, wait=True)
  checkpoint.write_score(tmp_path, 9, 1.0)
  again, step = restore_or_init(
    str(tmp_path), mesh, initial._replace(make=None), init, kept
  )
  assert step == 0 and checkpoint.read_scores(tmp_path) == {}
  assert shardings_of(again) == shardings_of(state)
  assert_same(jax.device_get(again), jax.device_get(state))


def test_a_model_is_described_without_being_read(base, monkeypatch):
  monkeypatch.setattr(hf, "read", None)
  whole = models.initial("pretrained", path=base, dtype="bfloat16")
  short = models.initial("pretrained", path=base, mtp=False)
  assert whole.config.mtp_depth == 1 and short.config.mtp_depth == 0
  assert whole.shapes.keys() - short.shapes.keys() == {"mtp"}
  kind = whole.shapes["embed"].dtype
  assert kind == np.dtype("bfloat16") and whole.shapes["embed"].shape[0] == 40


def test_the_checksum_of_a_model_is_that_of_its_content(base, tmp_path):

  copy = shutil.copytree(base, tmp_path / "copy")
  assert hf.content_hash(copy) == hf.content_hash(base)
  (copy / "README.md").write_text("of no matter")
  assert hf.content_hash(copy) == hf.content_hash(base)
  seen = {hf.content_hash(base)}
  for name in ("config.json", "tokenizer.model", "model.safetensors"):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    seen.add(hf.content_hash(copy))
  assert len(seen) == 4
