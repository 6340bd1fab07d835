"""Checkpoints in the released layout, there and back."""

import json
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from r1jax import hf
from r1jax.hf import arrays, layout
from r1jax.hf import config as configs
from r1jax.models.config import replace
from r1jax.models.presets import preset
from r1jax.models.weights import is_weight, weights
from r1jax.training import models

# Every size different; V2 and V3 with and without a query latent.
SIZES = dict(vocab_size=40, width=32, num_layers=3, dense_width=24)
LATENT = dict(
  num_heads=3, q_rank=12, kv_rank=10, nope_size=6, rope_size=4, value_size=5
)
EXPERTS = dict(num_routed=6, num_shared=2, per_token=2, width=7)
GROUPED = dict(num_heads=6, num_kv_heads=3, head_size=4)
MODELS = {
  "v3": preset("tiny_deepseek", attention=LATENT, experts=EXPERTS, **SIZES),
  "v3 of two depths": preset(
    "tiny_deepseek",
    attention=LATENT,
    experts=EXPERTS | dict(num_dense_layers=3, num_shared=0),
    mtp_depth=2,
    tied=True,
    **SIZES,
  ),
  "v2": preset(
    "tiny_deepseek_v2",
    attention=LATENT | dict(q_rank=None),
    experts=EXPERTS | dict(num_groups=3, num_dense_layers=0),
    **SIZES,
  ),
  "qwen2": preset("tiny_qwen2", attention=GROUPED, **SIZES),
  "llama": preset("tiny_llama", attention=GROUPED, **SIZES),
}
FLOATS = dict(
  float32=np.dtype("float32"), bfloat16=np.dtype(ml_dtypes.bfloat16)
)
RELEASED = "model.safetensors"


def draw(config, dtype="float32"):
  """Random parameters; the balancing bias in float32, as it must be."""
  rng = np.random.default_rng(0)
  return jax.tree.map_with_path(
    lambda path, w: rng.normal(size=w.shape).astype(
      "float32" if path[-1].key == "router_bias" else FLOATS[dtype]
    ),
    weights(config),
    is_leaf=is_weight,
  )


def assert_same(one, other):
  """Trees of the same bits."""
  assert jax.tree.structure(one) == jax.tree.structure(other)

  def same(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

  jax.tree.map(same, one, other)


@pytest.fixture
def v3(tmp_path):
  """A directory with a DeepSeek-V3 in it."""
  config = MODELS["v3"]
  hf.save(tmp_path / "model", config, draw(config))
  return tmp_path / "model"


@pytest.mark.parametrize(
  "name",
  [
    "model.layers.2.self_attn.rotary_emb.inv_freq",
    "model.layers.3.self_attn.rotary_emb.inv_freq",  # Of the MTP layer.
    "model.rotary_emb.inv_freq",
    "model.layers.0.self_attn.rotary_emb.cos_cached",
  ],
)
@pytest.mark.parametrize("mtp", [True, False])
def test_buffers_of_older_checkpoints_are_ignored(v3, name, mtp):
  expected = hf.load(v3, mtp=mtp)
  for dtype in (np.float32, np.int64):
    buffer = np.ones(2, dtype)
    edit(v3, lambda t, buffer=buffer: t.update({name: buffer}))
    config, params = hf.load(v3, mtp=mtp)
    assert config == expected[0]
    assert_same(params, expected[1])
  edit(v3, lambda t: t.update({name.replace("rotary", "other"): buffer}))
  with pytest.raises(ValueError, match="unknown tensor .*other_emb"):
    hf.load(v3)


def edit(directory, change, file=RELEASED):
  tensors = load_file(directory / file)
  change(tensors)
  save_file(tensors, directory / file)


# Names as in DeepSeek-V3's model.safetensors.index.json.
BLOCK = {
  "input_layernorm.weight": (32,),
  "self_attn.q_a_proj.weight": (12, 32),
  "self_attn.q_a_layernorm.weight": (12,),
  "self_attn.q_b_proj.weight": (3 * (6 + 4), 12),
  "self_attn.kv_a_proj_with_mqa.weight": (10 + 4, 32),
  "self_attn.kv_a_layernorm.weight": (10,),
  "self_attn.kv_b_proj.weight": (3 * (6 + 5), 10),
  "self_attn.o_proj.weight": (32, 3 * 5),
  "post_attention_layernorm.weight": (32,),
}
DENSE = {
  "mlp.gate_proj.weight": (24, 32),
  "mlp.up_proj.weight": (24, 32),
  "mlp.down_proj.weight": (32, 24),
}
SPARSE = {
  "mlp.gate.weight": (6, 32),
  "mlp.gate.e_score_correction_bias": (6,),
  "mlp.shared_experts.gate_proj.weight": (14, 32),
  "mlp.shared_experts.up_proj.weight": (14, 32),
  "mlp.shared_experts.down_proj.weight": (32, 14),
} | {
  f"mlp.experts.{e}.{name}_proj.weight": shape
  for e in range(6)
  for name, shape in (("gate", (7, 32)), ("up", (7, 32)), ("down", (32, 7)))
}
MTP = {
  "embed_tokens.weight": (40, 32),
  "enorm.weight": (32,),
  "hnorm.weight": (32,),
  "eh_proj.weight": (32, 64),
  "shared_head.norm.weight": (32,),
  "shared_head.head.weight": (40, 32),
}
V3 = {
  "model.embed_tokens.weight": (40, 32),
  "model.norm.weight": (32,),
  "lm_head.weight": (40, 32),
} | {
  f"model.layers.{layer}.{name}": shape
  for layer, parts in enumerate(
    (BLOCK | DENSE, BLOCK | SPARSE, BLOCK | SPARSE, BLOCK | SPARSE | MTP)
  )
  for name, shape in parts.items()
}


def test_names_and_shapes_are_those_of_the_release(v3):
  tensors = load_file(v3 / RELEASED)
  assert {name: array.shape for name, array in tensors.items()} == V3


def test_v3_has_as_many_numbers_as_were_released():
  config = preset("deepseek_v3")
  count = lambda config: sum(
    math.prod(group[0].shape) for group in layout.by_tensor(config).values()
  )
  # The published 671B without MTP, the biases of 58 layers, and layer 61.
  copies = layout.pieces(config, layout.mtp_copies(config))
  copied = [math.prod(piece.shape) for piece in copies]
  assert copied == [129_280 * 7168] * 2
  alone = replace(config, mtp_depth=0)
  assert count(alone) == 671_026_404_352 + 58 * 256
  assert count(config) > count(alone) + sum(copied)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_bit_for_bit(name, dtype, tmp_path):
  config, params = MODELS[name], draw(MODELS[name], dtype)
  hf.save(tmp_path / "a", config, params, file_bytes=20_000)
  found, read = hf.load(tmp_path / "a", dtype=dtype)
  assert found == config
  assert_same(read, params)
  hf.save(tmp_path / "b", config, read, file_bytes=20_000)
  names = sorted(path.name for path in (tmp_path / "a").iterdir())
  assert len(names) > 3
  assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
  for file in names:
    one, other = ((tmp_path / x / file).read_bytes() for x in "ab")
    assert one == other


def linear(tensors, name, x):
  """A layer of torch: x times the transposed weight."""
  return x @ tensors[f"{name}.weight"].T


def close(one, other):
  np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_latent_attention_lies_as_released(v3):
  tensors, (_, params) = load_file(v3 / RELEASED), hf.load(v3)
  block = jax.tree.map(lambda leaf: leaf[1], params["moe"])
  x = np.random.default_rng(1).normal(size=32).astype(np.float32)
  name = "model.layers.2.self_attn"
  down = x @ block["qkv_down"]
  close(linear(tensors, f"{name}.q_a_proj", x), down[:12])
  close(linear(tensors, f"{name}.kv_a_proj_with_mqa", x), down[12:])
  for theirs, ours, latent in (
    ("q_b_proj", "q_up", x[:12]),
    ("kv_b_proj", "kv_up", x[:10]),
  ):
    heads = np.einsum("r,rnh->nh", latent, block[ours])
    close(linear(tensors, f"{name}.{theirs}", latent).reshape(3, -1), heads)
  values = x[:15].reshape(3, 5)
  out = np.einsum("nv,nvd->d", values, block["out"])
  close(linear(tensors, f"{name}.o_proj", values.ravel()), out)


def test_grouped_attention_lies_by_key_value_head(tmp_path):
  config = MODELS["qwen2"]
  params = draw(config)
  hf.save(tmp_path / "model", config, params)
  tensors = load_file(tmp_path / "model" / RELEASED)
  block = jax.tree.map(lambda leaf: leaf[2], params["dense"])
  x = np.random.default_rng(1).normal(size=32).astype(np.float32)
  name = "model.layers.2.self_attn"
  heads = np.einsum("d,dkgh->kgh", x, block["qkv"]) + block["qkv_bias"]
  for theirs, part in (
    ("q", heads[:, :2]),
    ("k", heads[:, 2]),
    ("v", heads[:, 3]),
  ):
    found = linear(tensors, f"{name}.{theirs}_proj", x)
    close(found + tensors[f"{name}.{theirs}_proj.bias"], part.ravel())
  values = x[:24].reshape(3, 2, 4)
  out = np.einsum("kgh,kghd->d", values, block["out"])
  close(linear(tensors, f"{name}.o_proj", values.ravel()), out)


def test_feed_forwards_lie_as_released(v3):
  tensors, (_, params) = load_file(v3 / RELEASED), hf.load(v3)
  x = np.random.default_rng(1).normal(size=32).astype(np.float32)
  moe, dense = params["moe"], params["dense"]
  for name, gate_up, down in (
    ("0.mlp", dense["gate_up"][0], dense["down"][0]),
    (
      "2.mlp.experts.3",
      moe["expert_gate_up"][1, 3],
      moe["expert_down"][1, 3],
    ),
    (
      "2.mlp.shared_experts",
      moe["shared_gate_up"][1],
      moe["shared_down"][1],
    ),
  ):
    name, hidden = f"model.layers.{name}", x[: len(down)]
    gate, up = np.einsum("D,DcF->cF", x, gate_up)
    close(linear(tensors, f"{name}.gate_proj", x), gate)
    close(linear(tensors, f"{name}.up_proj", x), up)
    close(linear(tensors, f"{name}.down_proj", hidden), hidden @ down)
  close(linear(tensors, "model.layers.1.mlp.gate", x), x @ moe["router"][0])
  bias = tensors["model.layers.2.mlp.gate.e_score_correction_bias"]
  np.testing.assert_array_equal(bias, moe["router_bias"][1])
  close(linear(tensors, "lm_head", x), x @ params["unembed"])
  np.testing.assert_array_equal(
    tensors["model.embed_tokens.weight"], params["embed"]
  )


def test_the_mtp_projection_reads_the_embedding_first(v3):
  """As released: eh_proj([enorm(embedding); hnorm(hidden)])."""
  tensors, (_, params) = load_file(v3 / RELEASED), hf.load(v3)
  released = tensors["model.layers.3.eh_proj.weight"]
  ours = params["mtp"]["project"][0]  # [hidden; embedding]
  np.testing.assert_array_equal(released[:, :32], ours[32:].T)
  np.testing.assert_array_equal(released[:, 32:], ours[:32].T)


def test_mtp_layers_repeat_embedding_and_head(v3):
  tensors = load_file(v3 / RELEASED)
  for own, shared in (
    ("embed_tokens.weight", "model.embed_tokens.weight"),
    ("shared_head.head.weight", "lm_head.weight"),
  ):
    np.testing.assert_array_equal(
      tensors.pop(f"model.layers.3.{own}"), tensors[shared]
    )
  save_file(tensors, v3 / RELEASED)
  hf.load(v3)  # Neither of them is needed.


def test_mtp_layers_are_dropped_on_request(v3):
  config, params = hf.load(v3)
  short, rest = hf.load(v3, mtp=False)
  assert short == replace(config, mtp_depth=0)
  assert_same(rest, {k: v for k, v in params.items() if k != "mtp"})


def test_a_promised_mtp_layer_that_is_not_there_at_all_is_none(v3):
  drop = lambda tensors: [
    tensors.pop(n) for n in [*tensors] if n.startswith("model.layers.3.")
  ]
  edit(v3, drop)
  config, params = hf.load(v3)
  assert config.mtp_depth == 0 and "mtp" not in params


def test_half_an_mtp_layer_is_an_error(v3):
  edit(v3, lambda tensors: tensors.pop("model.layers.3.hnorm.weight"))
  with pytest.raises(ValueError, match=r"layers\.3\.hnorm\.weight is missing"):
    hf.load(v3)


def test_a_tied_head_may_be_stored_too(tmp_path):
  config = MODELS["qwen2"]
  hf.save(tmp_path / "model", config, draw(config))
  edit(
    tmp_path / "model",
    lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}),
  )
  assert "unembed" not in hf.load(tmp_path / "model")[1]


@pytest.mark.parametrize("name", MODELS)
def test_a_slice_is_the_slice_of_the_whole(name, tmp_path, monkeypatch):
  monkeypatch.setattr(arrays, "JOB", 50)  # So that pieces are cut, too.
  config, rng = MODELS[name], np.random.default_rng(0)
  hf.save(tmp_path / "model", config, draw(config))
  _, lazy = hf.open_model(tmp_path / "model")
  _, params = hf.load(tmp_path / "model")

  def check(array, whole):
    for _ in range(5):
      index = []
      for n in whole.shape[: rng.integers(1, whole.ndim + 1)]:
        first = int(rng.integers(0, n + 1)) if n else 0
        last = int(rng.integers(first, n + 1))
        one = n and rng.integers(4) == 0
        index.append(min(first, n - 1) if one else slice(first, last))
      np.testing.assert_array_equal(array[tuple(index)], whole[tuple(index)])
    np.testing.assert_array_equal(array[()], whole)

  jax.tree.map(check, lazy, params)


def test_progress_ends_where_all_is_done(v3, tmp_path):
  seen = []
  tell = lambda done, total: seen.append((done, total))
  for sharding in (None, jax.sharding.SingleDeviceSharding(jax.devices()[0])):
    seen.clear()
    config, params = hf.load(v3, sharding=sharding, progress=tell)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert seen == sorted(seen) and seen[-1] == (size, size)
  seen.clear()
  hf.save(tmp_path / "b", config, params, progress=tell)
  assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] > size


def test_other_floats_are_rounded_to_the_nearest(tmp_path):
  config = MODELS["v3"]
  params = draw(config)
  hf.save(tmp_path / "a", config, params, dtype="bfloat16")
  tensors = load_file(tmp_path / "a" / RELEASED)
  kinds = {name: array.dtype.name for name, array in tensors.items()}
  bias = {name for name in kinds if name.endswith("e_score_correction_bias")}
  assert len(bias) == 3
  assert {kinds.pop(name) for name in bias} == {"float32"}
  assert {*kinds.values()} == {"bfloat16"}
  settings = json.loads((tmp_path / "a/config.json").read_text())
  assert settings["torch_dtype"] == "bfloat16"
  _, narrow = hf.load(tmp_path / "a", dtype="bfloat16")
  _, wide = hf.load(tmp_path / "a")

  def check(path, leaf, narrow, wide):
    exact = path[-1].key == "router_bias"
    rounded = leaf if exact else leaf.astype(ml_dtypes.bfloat16)
    assert narrow.dtype == rounded.dtype and wide.dtype == np.float32
    np.testing.assert_array_equal(narrow, rounded)
    np.testing.assert_array_equal(wide, rounded.astype(np.float32))

  jax.tree.map_with_path(check, params, narrow, wide)


SPELLINGS = [
  ("bfloat16", jnp.bfloat16),
  ("bfloat16", ml_dtypes.bfloat16),
  ("bfloat16", jnp.dtype("bfloat16")),
  ("float32", jnp.float32),
  ("float32", np.float32),
  ("float32", "f4"),
  ("float16", np.dtype(np.float16)),
]


@pytest.mark.parametrize(("name", "dtype"), SPELLINGS)
def test_a_dtype_is_whatever_jax_takes_for_one(v3, tmp_path, name, dtype):
  config, params = hf.load(v3, dtype=dtype)
  assert params["embed"].dtype.name == name
  assert hf.open_model(v3, dtype=dtype)[1]["embed"].dtype.name == name
  hf.save(tmp_path / "b", config, params, dtype=dtype)
  assert configs.released(config, dtype=dtype)["torch_dtype"] == name
  settings = json.loads((tmp_path / "b/config.json").read_text())
  assert settings["torch_dtype"] == name
  begun, _ = models.load(
    "pretrained", path=str(v3), dtype=dtype, compute_dtype=dtype
  )
  assert begun.compute_dtype == name
  assert begun == replace(config, compute_dtype=name)


@pytest.mark.parametrize(
  "dtype", ["float8_e4m3fn", "float64", "int8", jnp.int32, None, "nonsense"]
)
def test_parameters_are_of_no_other_dtype(v3, dtype):
  with pytest.raises(ValueError, match="compute_dtype .* is none of float32"):
    preset("tiny_llama", compute_dtype=dtype)
  with pytest.raises(ValueError, match="dtype .* is none of float32"):
    hf.load(v3, dtype=dtype)


def test_a_file_is_converted_without_being_loaded(v3, tmp_path):
  hf.save(tmp_path / "b", *hf.open_model(v3, dtype="bfloat16"))
  config, params = hf.load(v3)
  hf.save(tmp_path / "c", config, params, dtype="bfloat16")
  one, other = (tmp_path / name / RELEASED for name in "bc")
  assert one.read_bytes() == other.read_bytes()
