"""Adapters: they begin as the model, learn alone, and are merged or kept."""

import functools
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from r1jax import config as configs
from r1jax import data, hf
from r1jax.models import transformer
from r1jax.parallel.mesh import make_mesh
from r1jax.runtime import checkpoint, metrics
from r1jax.training import grpo, inspection, lora, models, sft, state
from r1jax.training.optimizer import make_optimizer
from r1jax.training.update import init_state, make_update
from r1jax.types import Batch, Example

pytestmark = pytest.mark.usefixtures("compiled_once")
ROWS = np.array([[3, 5, 7, 9, 11, 4], [6, 4, 8, 12, 2, 3]], np.int32)
ALL = lora.TARGETS


def load_sums(*, size):
  return [
    Example("" if i % 2 else f"{i % 7}+{i % 5}=", f"{i % 7 + i % 5} a\n")
    for i in range(size)
  ]


def opened(base, **options):
  """The adapter of the toy, and its model, on the devices."""
  options = dict(rank=2, alpha=4.0, dtype="float32") | options
  initial = models.initial("lora", path=base, **options)
  frozen = state.make_frozen(make_mesh(data=1), initial)
  return initial, initial.make(None), frozen


def batch_of():
  packed = transformer.pack_rows(ROWS)
  weights = jnp.asarray(packed.origin >= 0, jnp.float32) / 10
  return Batch(packed=packed, weights=weights, num_tokens=np.int32(12))


def loss_of(config):
  def loss(params, batch):
    return sft.objective(
      transformer.Transformer(config), 38, params, batch, mtp=0, balance=0
    )

  return loss


def scalars(metrics):
  return {k: v for k, v in metrics.items() if k != "router/load"}


def test_a_new_adapter_is_the_model_bit_for_bit(base):
  _, adapter, frozen = opened(base, targets=ALL)
  jax.tree.map(np.testing.assert_array_equal, frozen.full(adapter), frozen.base)
  assert all(np.any(x) for x in jax.tree.leaves(adapter)[::2])  # A is not 0.


def test_the_adapted_matrix_is_w_plus_the_product(base):
  initial, adapter, frozen = opened(base, targets=ALL)
  rng = np.random.default_rng(0)
  adapter = jax.tree.map(lambda x: rng.normal(size=x.shape) * 0.1, adapter)
  full = frozen.full(jax.tree.map(jnp.float32, adapter))
  found = lora.pairs(initial.adapter)
  assert {names[-1] for names in found} == {
    *("qkv_down", "q_up", "kv_up", "out", "gate_up", "down"),
    *("expert_gate_up", "expert_down"),
  }
  for names, pair in found.items():
    w, new, ab = frozen.base, full, adapter
    for name in names:
      w, new, ab = w[name], new[name], ab[name]
    for lead in np.ndindex(pair.lead):
      a = ab["a"][lead].reshape(-1, 2)
      b = ab["b"][lead].reshape(2, -1)
      expected = np.asarray(w[lead]) + 2.0 * (a @ b).reshape(w[lead].shape)
      np.testing.assert_allclose(new[lead], expected, atol=1e-5)
  untouched = [
    "embed",
    "unembed",
    "final_norm",
    "mtp",
  ]
  for name in untouched:
    jax.tree.map(np.testing.assert_array_equal, full[name], frozen.base[name])


def test_with_full_rank_the_first_step_is_that_of_all_weights(base):
  """With A the identity, the gradient of B is that of W."""
  initial, adapter, frozen = opened(
    base, rank=16, alpha=16.0, targets=("qkv_down",)
  )
  size = initial.config.width

  def identity(pair):
    eye = np.broadcast_to(np.eye(size, dtype=np.float32), pair["a"].shape)
    return {"a": jnp.asarray(eye), "b": pair["b"]}

  adapter = jax.tree.map(
    identity, adapter, is_leaf=lambda x: isinstance(x, dict) and "a" in x
  )
  loss, batch = loss_of(initial.config), batch_of()

  def stepped(loss, params, batch):
    gradients = jax.grad(lambda p: loss(p, batch)[0])(params)
    return jax.tree.map(lambda x, g: x - 0.5 * g, params, gradients)

  whole = jax.jit(functools.partial(stepped, loss))(frozen.base, batch)
  (given,) = frozen.batches([batch])
  part = jax.jit(functools.partial(stepped, frozen.loss(loss)))(adapter, given)
  merged = frozen.full(part)
  for kind in ("dense", "moe"):
    found, expected, before = (
      np.asarray(x[kind]["attention"]["qkv_down"])
      for x in (merged, whole, frozen.base)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - before).max() > 1e-4
    others = [x[kind]["attention"]["out"] for x in (merged, frozen.base)]
    np.testing.assert_array_equal(*others)


def test_only_the_adapter_has_gradients_and_moments(base):
  initial, adapter, frozen = opened(base)
  optimizer = make_optimizer(learning_rate=0.01)
  held = init_state(adapter, optimizer)
  size = sum(x.size for x in jax.tree.leaves(adapter))
  moments = sum(x.size for x in jax.tree.leaves(held.optimizer_state))
  assert moments < 2 * size + 10
  update = make_update(frozen.loss(loss_of(initial.config)), optimizer)
  new, numbers = update(held, frozen.batches([batch_of()]))
  assert float(numbers["optim/grad_norm"]) > 0
  assert jax.tree.structure(new.params) == jax.tree.structure(adapter)


def sft_config(base, num_steps=6, **changes):
  c = ml_collections.ConfigDict(
    dict(
      loop="sft",
      seed=1,
      template="{question}",
      num_steps=num_steps,
      metrics_every=1,
      checkpoint_every=2,
      cpu_devices=1,
      mesh=dict(data=1),
      model=dict(name="lora", path=base, rank=4, alpha=8.0, dtype="float32"),
      tokenizer=dict(path=base),
      dataset=dict(name="sums", size=40),
      batch_examples=8,
      rows=dict(widths=(16,), shard_rows=4),
      aggregation=dict(name="token_mean"),
      loss=dict(mtp=0.0, balance=0.0),
      router_bias_speed=0.0,
      offload=(),
      optimizer=dict(learning_rate=0.03),
      teacher=dict(),
      evaluation=dict(every=3, dataset=dict(name="sums", size=7), examples=5),
    )
  )
  c.update_from_flattened_dict(changes)
  return c


@pytest.mark.slow
def test_sft_learns_resumes_and_leaves_both_forms(base, tmp_path, monkeypatch):
  monkeypatch.setitem(data.DATASETS, "sums", load_sums)
  configs.check(sft_config(base))
  straight, parted = tmp_path / "straight", tmp_path / "parted"
  whole = sft.train(sft_config(base), str(straight), sinks=())
  sft.train(sft_config(base, 3), str(parted), sinks=())
  rest = sft.train(sft_config(base), str(parted), sinks=())
  jax.tree.map(np.testing.assert_array_equal, whole, rest)
  losses = [r["loss/nll"] for r in metrics.read(straight) if "loss/nll" in r]
  assert losses[-1] < losses[0] - 0.1
  # The checkpoint holds the adapter alone; the model is merged.
  saved = checkpoint.load_params(str(straight), "params")
  jax.tree.map(np.testing.assert_array_equal, saved, whole.params)
  _, _, frozen = opened(base, rank=4, alpha=8.0)
  config, merged = hf.load(straight / "model")
  expected = frozen.full(whole.params)
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6),
    merged,
    jax.tree.map(np.asarray, expected),
  )
  settings = json.loads((straight / "adapter/adapter_config.json").read_text())
  assert settings["r"] == 4 and settings["lora_alpha"] == 8.0
  assert "q_b_proj" in settings["target_modules"]


@pytest.mark.slow
def test_in_rl_the_model_is_the_reference(make_config, tmp_path):
  config = make_config(num_steps=4, reference_every=4)
  config.model = dict(
    name="lora", path=config.model.path, rank=4, alpha=8.0, dtype="float32"
  )
  grpo.check(config)
  final = grpo.train(config, str(tmp_path), sinks=())
  rows = [r for r in metrics.read(tmp_path) if "kl/ref" in r]
  assert rows[0]["kl/ref"] >= 0 and rows[-1]["kl/ref"] > 0
  assert final.reference is None
  assert {*final.train.params} <= {"dense", "moe"}
  assert any(np.any(x) for x in jax.tree.leaves(final.train.params)[1::2])
  assert hf.load(tmp_path / "model")


def test_the_kl_of_a_new_adapter_is_exactly_0(base):
  """In bfloat16, too: what is merged is what was there."""
  initial, adapter, frozen = opened(
    base, dtype="bfloat16", compute_dtype="bfloat16"
  )
  model = transformer.Transformer(initial.config)
  packed = transformer.pack_rows(ROWS)

  @jax.jit
  def logprobs(params):
    hidden = transformer.forward(model, params, packed).hidden
    return transformer.logprobs(params, hidden, packed.targets)[0]

  np.testing.assert_array_equal(
    logprobs(frozen.full(adapter)), logprobs(frozen.base)
  )


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"router_bias_speed": 0.1}, "router_bias_speed must be 0 with model.name"),
    ({"reference_every": 2}, "reference_every is 2, but the reference of an"),
  ],
)
def test_what_an_adapter_cannot_do_is_refused(base, changes, message):
  config = sft_config(base)
  with config.unlocked():
    config.update(changes)
  with pytest.raises(ValueError, match=message):
    inspection.check_adapter(config)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(rank=0), "model.rank is 0"),
    (dict(targets=("qv",)), "unknown target of LoRA 'qv'"),
    (dict(targets=("qkv",)), "the model has none of the targets qkv"),
  ],
)
def test_a_rank_or_a_target_that_is_none_is_refused(base, options, message):
  with pytest.raises(ValueError, match=message):
    opened(base, **options)


@pytest.mark.slow
def test_the_adapter_is_sharded_like_its_matrices(base):
  """Over experts and width, with the numbers of one device."""
  if len(jax.devices()) < 4:
    pytest.skip("needs four devices")
  mesh = make_mesh(data=1, fsdp=2, expert=2)
  initial = models.initial(
    "lora", path=base, rank=2, alpha=4.0, targets=ALL, dtype="float32"
  )
  with jax.set_mesh(mesh):
    adapter = state.make_params(mesh, initial)
    frozen = state.make_frozen(mesh, initial)
    full = frozen.full(adapter)
  jax.tree.map(np.testing.assert_array_equal, full, frozen.base)
  _, alone, _ = opened(base, targets=ALL)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), adapter, alone
  )
  expert = adapter["moe"]["feed_forward"]["expert_down"]["a"]
  assert not expert.sharding.is_fully_replicated
