"""The layout of released checkpoints."""

import json
import math

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from trees import assert_same

from r1jax import hf
from r1jax.hf import arrays, layout
from r1jax.models.config import replace
from r1jax.models.presets import preset
from r1jax.models.weights import is_router_bias, weights

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
  """Random parameters, with the balancing bias in float32."""
  rng = np.random.default_rng(0)
  return jax.tree.map_with_path(
    lambda path, w: rng.normal(size=w.shape).astype(
      "float32" if is_router_bias(path) else FLOATS[dtype]
    ),
    weights(config),
  )


@pytest.fixture
def v3(tmp_path):
  """A directory with a DeepSeek-V3 in it."""
  config = MODELS["v3"]
  hf.save(tmp_path / "model", config, draw(config))
  return tmp_path / "model"


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


@pytest.mark.slow
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
def test_a_saved_model_loads_bit_for_bit(name, dtype, tmp_path):
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
  """A linear layer of torch."""
  return x @ tensors[f"{name}.weight"].T


def assert_close(one, other):
  np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_latent_attention_has_the_released_layout(v3):
  tensors, (_, params) = load_file(v3 / RELEASED), hf.load(v3)
  block = jax.tree.map(lambda leaf: leaf[1], params["moe"]["attention"])
  x = np.random.default_rng(1).normal(size=32).astype(np.float32)
  name = "model.layers.2.self_attn"
  down = x @ block["qkv_down"]
  assert_close(linear(tensors, f"{name}.q_a_proj", x), down[:12])
  assert_close(linear(tensors, f"{name}.kv_a_proj_with_mqa", x), down[12:])
  for theirs, ours, latent in (
    ("q_b_proj", "q_up", x[:12]),
    ("kv_b_proj", "kv_up", x[:10]),
  ):
    heads = np.einsum("r,rnh->nh", latent, block[ours])
    assert_close(
      linear(tensors, f"{name}.{theirs}", latent).reshape(3, -1), heads
    )
  values = x[:15].reshape(3, 5)
  out = np.einsum("nv,nvd->d", values, block["out"])
  assert_close(linear(tensors, f"{name}.o_proj", values.ravel()), out)


def test_grouped_attention_is_grouped_by_key_value_head(tmp_path):
  config = MODELS["qwen2"]
  params = draw(config)
  hf.save(tmp_path / "model", config, params)
  tensors = load_file(tmp_path / "model" / RELEASED)
  block = jax.tree.map(lambda leaf: leaf[2], params["dense"]["attention"])
  x = np.random.default_rng(1).normal(size=32).astype(np.float32)
  name = "model.layers.2.self_attn"
  heads = np.einsum("d,dkgh->kgh", x, block["qkv"]) + block["qkv_bias"]
  for theirs, part in (
    ("q", heads[:, :2]),
    ("k", heads[:, 2]),
    ("v", heads[:, 3]),
  ):
    found = linear(tensors, f"{name}.{theirs}_proj", x)
    assert_close(found + tensors[f"{name}.{theirs}_proj.bias"], part.ravel())
  values = x[:24].reshape(3, 2, 4)
  out = np.einsum("kgh,kghd->d", values, block["out"])
  assert_close(linear(tensors, f"{name}.o_proj", values.ravel()), out)


def test_feed_forwards_have_the_released_layout(v3):
  tensors, (_, params) = load_file(v3 / RELEASED), hf.load(v3)
  x = np.random.default_rng(1).normal(size=32).astype(np.float32)
  moe, dense = (params[name]["feed_forward"] for name in ("moe", "dense"))
  for name, gate_up, down in (
    ("0.mlp", dense["gate_up"][0], dense["down"][0]),
    (
      "2.mlp.experts.3",
      moe["expert_gate_up"][1, 3],
      moe["expert_down"][1, 3],
    ),
    (
      "2.mlp.shared_experts",
      moe["shared"]["gate_up"][1],
      moe["shared"]["down"][1],
    ),
  ):
    name, hidden = f"model.layers.{name}", x[: len(down)]
    gate, up = np.einsum("D,DcF->cF", x, gate_up)
    assert_close(linear(tensors, f"{name}.gate_proj", x), gate)
    assert_close(linear(tensors, f"{name}.up_proj", x), up)
    assert_close(linear(tensors, f"{name}.down_proj", hidden), hidden @ down)
  assert_close(
    linear(tensors, "model.layers.1.mlp.gate", x),
    x @ moe["router"]["weight"][0],
  )
  bias = tensors["model.layers.2.mlp.gate.e_score_correction_bias"]
  np.testing.assert_array_equal(bias, moe["router"]["bias"][1])
  assert_close(linear(tensors, "lm_head", x), x @ params["unembed"])
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


def test_a_tied_head_may_be_stored_too(tmp_path):
  config = MODELS["qwen2"]
  hf.save(tmp_path / "model", config, draw(config))
  tensors = load_file(tmp_path / "model" / RELEASED)
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
  save_file(tensors, tmp_path / "model" / RELEASED)
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
    exact = is_router_bias(path)
    rounded = leaf if exact else leaf.astype(ml_dtypes.bfloat16)
    assert narrow.dtype == rounded.dtype and wide.dtype == np.float32
    np.testing.assert_array_equal(narrow, rounded)
    np.testing.assert_array_equal(wide, rounded.astype(np.float32))

  jax.tree.map_with_path(check, params, narrow, wide)
