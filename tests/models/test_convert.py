"""Checkpoints in the released layout of DeepSeek-V3, there and back."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from r1jax.models import convert
from r1jax.models.config import preset
from r1jax.models.weights import is_weight, weights

# Names as in DeepSeek-V3's model.safetensors.index.json; sizes of the toy:
# width 32, 3 heads, ranks 12 and 10, head sizes 6 + 4 and 5.
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
  "mlp.gate.weight": (5, 32),
  "mlp.gate.e_score_correction_bias": (5,),
  "mlp.shared_experts.gate_proj.weight": (14, 32),
  "mlp.shared_experts.up_proj.weight": (14, 32),
  "mlp.shared_experts.down_proj.weight": (32, 14),
} | {
  f"mlp.experts.{e}.{name}_proj.weight": shape
  for e in range(5)
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
RELEASED = {
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


@pytest.fixture
def saved(toy, tmp_path):
  """A directory with the toy in it."""
  tokenizer = tmp_path / "words"
  tokenizer.mkdir()
  (tokenizer / "tokenizer.model").write_bytes(b"words")
  (tokenizer / "tokenizer.tmp").write_bytes(b"half")
  convert.save(
    tmp_path / "model",
    toy.config,
    toy.params,
    tokenizer=tokenizer,
    provenance=dict(step=3),
  )
  return tmp_path / "model"


def test_names_and_shapes_are_those_of_the_release(toy):
  tensors = dict(convert.to_tensors(toy.config, toy.params))
  assert {name: array.shape for name, array in tensors.items()} == RELEASED
  for array in tensors.values():
    assert array.dtype == np.float32 and array.flags.c_contiguous


def test_a_saved_model_comes_back_bit_for_bit(toy, saved):
  config, params = convert.load(str(saved))
  assert config == toy.config
  jax.tree.map(np.testing.assert_array_equal, params, toy.params)
  assert jax.tree.structure(params) == jax.tree.structure(toy.params)


@pytest.mark.parametrize(
  "sizes",
  [
    dict(mtp_depth=0),
    dict(num_layers=2, num_dense_layers=2),
    dict(num_layers=2, num_dense_layers=0, num_shared_experts=1),
  ],
)
def test_models_of_other_parts_come_back_too(sizes):
  small = dict(width=8, num_heads=2, num_experts=2, vocab_size=11)
  config = preset("tiny_deepseek", **small | sizes)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda w: rng.normal(size=w.shape).astype(np.float32),
    weights(config),
    is_leaf=is_weight,
  )
  tensors = dict(convert.to_tensors(config, params))
  back = convert.from_tensors(config, tensors)
  assert not tensors
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_matrices_are_stored_output_first(toy):
  tensors = dict(convert.to_tensors(toy.config, toy.params))
  params = toy.params
  x = np.random.default_rng(0).normal(size=32).astype(np.float32)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  attention = "model.layers.2.self_attn"
  latent = x[:12]
  queries = tensors[f"{attention}.q_b_proj.weight"] @ latent
  block = jax.tree.map(lambda leaf: leaf[1], params["moe"])
  close(queries.reshape(3, 10), np.einsum("r,rnh->nh", latent, block["q_up"]))
  heads = x[:15].reshape(3, 5)
  close(
    tensors[f"{attention}.o_proj.weight"] @ x[:15],
    np.einsum("nh,nhd->d", heads, block["out"]),
  )
  gate_up = block["gate_up"][3]
  expert = "model.layers.2.mlp.experts.3"
  close(tensors[f"{expert}.gate_proj.weight"] @ x, x @ gate_up[:, :7])
  close(tensors[f"{expert}.up_proj.weight"] @ x, x @ gate_up[:, 7:])
  close(
    tensors["model.layers.1.mlp.gate.weight"] @ x,
    x @ params["moe"]["router"][0],
  )


def test_the_mtp_projection_reads_the_embedding_first(toy):
  """As released: eh_proj([enorm(embedding); hnorm(hidden)])."""
  tensors = dict(convert.to_tensors(toy.config, toy.params))
  released = tensors["model.layers.3.eh_proj.weight"]
  ours = toy.params["mtp"]["project"]  # [hidden; embedding]
  np.testing.assert_array_equal(released[:, :32], ours[32:].T)
  np.testing.assert_array_equal(released[:, 32:], ours[:32].T)


def test_the_mtp_block_shares_embedding_and_head(toy):
  tensors = dict(convert.to_tensors(toy.config, toy.params))
  for own, shared in (
    ("embed_tokens.weight", "model.embed_tokens.weight"),
    ("shared_head.head.weight", "lm_head.weight"),
  ):
    np.testing.assert_array_equal(
      tensors[f"model.layers.3.{own}"], tensors[shared]
    )


def test_config_json_says_what_other_readers_need(saved, toy):
  settings = json.loads((saved / "config.json").read_text())
  expected = dict(
    architectures=["DeepseekV3ForCausalLM"],
    model_type="deepseek_v3",
    hidden_size=32,
    num_hidden_layers=3,
    first_k_dense_replace=1,
    num_attention_heads=3,
    num_key_value_heads=3,
    q_lora_rank=12,
    kv_lora_rank=10,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=5,
    intermediate_size=24,
    moe_intermediate_size=7,
    n_routed_experts=5,
    n_shared_experts=2,
    num_experts_per_tok=2,
    routed_scaling_factor=2.5,
    scoring_func="sigmoid",
    topk_method="noaux_tc",
    norm_topk_prob=True,
    num_nextn_predict_layers=1,
    rope_theta=100.0,
    rms_norm_eps=1e-6,
    vocab_size=40,
  )
  assert settings.items() >= expected.items()


def test_beside_it_lie_the_tokenizer_and_where_it_came_from(saved):
  names = {path.name for path in saved.iterdir()}
  assert names == {
    "config.json",
    "model.safetensors",
    "provenance.json",
    "tokenizer.model",
  }
  provenance = json.loads((saved / "provenance.json").read_text())
  assert provenance["step"] == 3
  assert len(provenance["model.safetensors sha256"]) == 64


def test_a_model_that_is_not_there_is_said_to_be_missing(tmp_path):
  with pytest.raises(ValueError, match="holds no config.json"):
    convert.load(str(tmp_path))


def edit(directory, change):
  tensors = load_file(directory / "model.safetensors")
  change(tensors)
  save_file(tensors, directory / "model.safetensors")


def test_a_missing_tensor_is_named(saved):
  name = "model.layers.2.mlp.experts.4.up_proj.weight"
  edit(saved, lambda tensors: tensors.pop(name))
  with pytest.raises(ValueError, match=f"{name} is missing"):
    convert.load(str(saved))


def test_a_tensor_too_many_is_named(saved):
  extra = np.zeros(3, np.float32)
  edit(saved, lambda tensors: tensors.update(surprise=extra))
  with pytest.raises(ValueError, match="unknown tensor surprise"):
    convert.load(str(saved))


def test_a_tensor_of_another_shape_is_named(saved):
  name = "model.layers.0.self_attn.kv_b_proj.weight"
  wrong = np.zeros((10, 33), np.float32)  # Transposed, too.
  edit(saved, lambda tensors: tensors.update({name: wrong}))
  with pytest.raises(
    ValueError, match=rf"{name} is \(10, 33\), not \(33, 10\)"
  ):
    convert.load(str(saved))


def test_smaller_floats_are_read_as_float32(saved, toy):
  name = "model.layers.1.mlp.gate.weight"
  edit(saved, lambda t: t.update({name: t[name].astype(np.float16)}))
  _, params = convert.load(str(saved))
  router = params["moe"]["router"]
  assert router.dtype == np.float32
  np.testing.assert_allclose(router, toy.params["moe"]["router"], rtol=1e-3)


@pytest.mark.parametrize(
  "key, value",
  [
    ("architectures", ["LlamaForCausalLM"]),
    ("scoring_func", "softmax"),
    ("n_group", 8),
    ("rope_scaling", {"type": "yarn"}),
  ],
)
def test_another_architecture_is_refused(saved, key, value):
  path = saved / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
  with pytest.raises(ValueError, match=key):
    convert.load(str(saved))


def test_a_size_that_config_json_leaves_out_is_named(saved):
  path = saved / "config.json"
  settings = json.loads(path.read_text())
  del settings["kv_lora_rank"]
  path.write_text(json.dumps(settings))
  with pytest.raises(ValueError, match="kv_lora_rank"):
    convert.load(str(saved))


def test_the_counts_by_part_add_up(toy):
  sizes = convert.sizes(toy.config)
  assert sizes["total"] == sum(
    leaf.size for leaf in jax.tree.leaves(toy.params)
  )
  assert sizes["total"] == sum(n for k, n in sizes.items() if k != "total")
  assert convert.describe(toy.config) == dataclasses.asdict(toy.config)
