"""Reading and writing config.json."""

import dataclasses
import json
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.hf import config as hf_config
from r1jax.models.config import (
  Experts,
  Grouped,
  Latent,
  Llama3,
  ModelConfig,
  Yarn,
)
from r1jax.models.presets import PRESETS, preset

# As DeepSeek-R1 was released, but for its tokens and its code.
R1 = json.loads("""{
  "architectures": ["DeepseekV3ForCausalLM"],
  "attention_bias": false, "attention_dropout": 0.0,
  "aux_loss_alpha": 0.001,
  "ep_size": 1,
  "first_k_dense_replace": 3,
  "hidden_act": "silu",
  "hidden_size": 7168,
  "initializer_range": 0.02,
  "intermediate_size": 18432,
  "kv_lora_rank": 512,
  "max_position_embeddings": 163840,
  "model_type": "deepseek_v3",
  "moe_intermediate_size": 2048,
  "moe_layer_freq": 1,
  "n_group": 8, "n_routed_experts": 256,
  "n_shared_experts": 1,
  "norm_topk_prob": true,
  "num_attention_heads": 128,
  "num_experts_per_tok": 8,
  "num_hidden_layers": 61, "num_key_value_heads": 128,
  "num_nextn_predict_layers": 1,
  "pretraining_tp": 1,
  "q_lora_rank": 1536,
  "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
  "rms_norm_eps": 1e-06,
  "rope_scaling": {
    "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
    "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
    "type": "yarn"
  },
  "rope_theta": 10000,
  "routed_scaling_factor": 2.5,
  "scoring_func": "sigmoid",
  "seq_aux": true,
  "tie_word_embeddings": false,
  "topk_group": 4,
  "topk_method": "noaux_tc",
  "torch_dtype": "bfloat16",
  "use_cache": true,
  "v_head_dim": 128,
  "vocab_size": 129280
}""")
QWEN = json.loads("""{
  "architectures": ["Qwen2ForCausalLM"],
  "attention_dropout": 0.0,
  "hidden_act": "silu",
  "hidden_size": 3584,
  "initializer_range": 0.02,
  "intermediate_size": 18944,
  "max_position_embeddings": 131072,
  "max_window_layers": 28,
  "model_type": "qwen2",
  "num_attention_heads": 28,
  "num_hidden_layers": 28, "num_key_value_heads": 4,
  "rms_norm_eps": 1e-06,
  "rope_theta": 10000,
  "sliding_window": 131072,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "use_cache": true,
  "use_mrope": false,
  "use_sliding_window": false,
  "vocab_size": 152064
}""")
LLAMA = json.loads("""{
  "architectures": ["LlamaForCausalLM"],
  "attention_bias": false, "attention_dropout": 0.0,
  "hidden_act": "silu",
  "hidden_size": 4096,
  "initializer_range": 0.02,
  "intermediate_size": 14336,
  "max_position_embeddings": 131072,
  "mlp_bias": false,
  "model_type": "llama",
  "num_attention_heads": 32,
  "num_hidden_layers": 32, "num_key_value_heads": 8,
  "pretraining_tp": 1,
  "rms_norm_eps": 1e-05,
  "rope_scaling": {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"
  },
  "rope_theta": 500000.0,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "use_cache": true,
  "vocab_size": 128256
}""")
RELEASED = {
  "deepseek_v3": R1,
  "r1-distill-qwen-7b": QWEN,
  "llama-3.1-8b": LLAMA,
}


def as_transformers_5(released):
  """A config as transformers 5 writes it."""
  new = dict(released)
  rope = dict(new.pop("rope_scaling", None) or {"rope_type": "default"})
  rope["rope_type"] = rope.pop("type", rope.get("rope_type"))
  rope["rope_theta"] = new.pop("rope_theta")
  new["dtype"] = new.pop("torch_dtype")
  return new | {"rope_parameters": rope}


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_config_is_that_of_the_preset(name):
  assert hf_config.parse(RELEASED[name]) == preset(name)
  assert hf_config.parse(as_transformers_5(RELEASED[name])) == preset(name)


@pytest.mark.parametrize("name", RELEASED)
def test_we_write_the_released_keys_and_values(name):
  written = hf_config.released(preset(name), dtype="bfloat16")
  assert json.loads(json.dumps(written)) == RELEASED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_comes_back(name):
  written = json.dumps(hf_config.released(preset(name), dtype="float32"))
  assert hf_config.parse(json.loads(written)) == preset(name)


def test_v2_uses_groups_only_with_a_group_limited_method():
  written = hf_config.released(PRESETS["deepseek_v2_lite"], dtype="bfloat16")
  assert written["topk_method"] == "greedy"
  grouped = hf_config.released(PRESETS["tiny_deepseek_v2"], dtype="bfloat16")
  assert grouped["topk_method"] == "group_limited_greedy"
  # Greedy choice looks at no groups, whatever is said of them.
  read = hf_config.parse(written | {"n_group": 8, "topk_group": 3})
  assert (read.experts.num_groups, read.experts.groups_per_token) == (1, 1)


def test_absent_keys_have_their_defaults():
  short = dict(R1)
  for key in (
    "num_nextn_predict_layers",
    "q_lora_rank",
    "max_position_embeddings",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "num_key_value_heads",
    "initializer_range",
    "scoring_func",
  ):
    del short[key]
  config = hf_config.parse(short | {"n_group": None, "topk_group": None})
  assert config.mtp_depth == 0 and config.attention.q_rank is None
  assert config.max_length == 4096 and config.rope_scaling is None
  assert config.rope_theta == 10_000.0 and not config.tied
  assert config.experts.num_groups == config.experts.groups_per_token == 1


def test_heads_may_have_a_size_of_their_own():
  config = hf_config.parse(LLAMA | {"head_dim": 96})
  assert config.attention.head_size == 96
  assert hf_config.released(config, dtype="float32")["head_dim"] == 96


REFUSED = {
  "architectures": ["MistralForCausalLM"],
  "hidden_act": "gelu",
  "attention_bias": True,
  "moe_layer_freq": 2,
  "scoring_func": "softmax",
  "topk_method": "greedy",
  "rope_interleave": False,
  "partial_rotary_factor": 0.5,
  "num_key_value_heads": 64,
  "vocab_size": "many",
  "hidden_size": 7168.5,
  "num_attention_heads": 0,
  "norm_topk_prob": None,
  "kv_lora_rank": None,
  "rope_scaling": {"type": "longrope"},
}


@pytest.mark.parametrize("key", REFUSED)
def test_unsupported_settings_are_refused_by_name(key):
  with pytest.raises(ValueError) as error:
    hf_config.parse(R1 | {key: REFUSED[key]}, "there/config.json")
  value = REFUSED[key]
  value = value["type"] if isinstance(value, dict) else value
  for text in ("there/config.json: ", key, repr(value)):
    assert text in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "released, key, value",
  [
    (QWEN, "use_sliding_window", True),
    (QWEN, "layer_types", ["full_attention", "sliding_attention"]),
    (LLAMA, "mlp_bias", True),
    (LLAMA, "attention_bias", True),
  ],
)
def test_each_family_refuses_settings_it_does_not_support(released, key, value):
  with pytest.raises(ValueError, match=key):
    hf_config.parse(released | {key: value})


@pytest.mark.parametrize(
  "key, value",
  [
    ("attention_factor", 1.2),
    ("factor", None),
    ("original_max_position_embeddings", None),
    ("partial_rotary_factor", 0.5),
    ("truncate", False),
    # Readers of these disagree.
    ("mscale", None),
    ("mscale", 0.0),
  ],
)
def test_yarn_with_ambiguous_settings_is_refused(key, value):
  scaling = R1["rope_scaling"] | {key: value}
  with pytest.raises(ValueError, match=rf"rope_scaling\.{key}"):
    hf_config.parse(R1 | {"rope_scaling": scaling})


def test_yarn_of_qwen_scales_no_softmax():
  yarn = {"type": "yarn", "factor": 4.0}
  yarn["original_max_position_embeddings"] = 32_768
  config = hf_config.parse(QWEN | {"rope_scaling": yarn})
  assert config.rope_scaling == Yarn(factor=4.0, original_length=32_768)
  with pytest.raises(ValueError, match="mscale_all_dim"):
    hf_config.parse(
      QWEN | {"rope_scaling": yarn | {"mscale": 1.0, "mscale_all_dim": 1.0}}
    )


@pytest.mark.parametrize(
  "overrides",
  [
    dict(experts=None),
    dict(
      experts=dataclasses.replace(
        preset("tiny_deepseek").experts, scores="softmax"
      )
    ),
  ],
)
def test_a_model_that_no_architecture_expresses_is_not_written(overrides):
  config = dataclasses.replace(preset("tiny_deepseek"), **overrides)
  with pytest.raises(ValueError, match="no released architecture"):
    hf_config.released(config, dtype="float32")


def test_a_directory_without_a_config_is_named(tmp_path):
  with pytest.raises(ValueError, match="holds no config.json"):
    hf_config.read(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(ValueError, match="is not JSON"):
    hf_config.read(tmp_path)


def write(directory: pathlib.Path, **quantization):
  text = json.dumps(R1 | {"quantization_config": quantization})
  (directory / "config.json").write_text(text)


def test_the_blocks_of_float8_are_read(tmp_path):
  write(tmp_path, quant_method="fp8", fmt="e4m3", weight_block_size=[128, 64])
  assert hf_config.float8_block(tmp_path) == (128, 64)
  write(tmp_path)
  assert hf_config.float8_block(tmp_path) is None


@pytest.mark.parametrize(
  "key, value",
  [("quant_method", "awq"), ("fmt", "e5m2"), ("weight_block_size", 128)],
)
def test_other_ways_to_quantise_are_refused(tmp_path, key, value):
  said = dict(quant_method="fp8", fmt="e4m3", weight_block_size=[128, 128])
  write(tmp_path, **said | {key: value})
  with pytest.raises(ValueError, match=rf"quantization_config\.{key}"):
    hf_config.float8_block(tmp_path)


small = st.integers(1, 8)
number = st.floats(0.5, 1e6).map(lambda x: round(x, 3))
yarn = st.builds(
  Yarn,
  factor=number,
  original_length=small,
  beta_fast=number,
  beta_slow=number,
)
llama3 = st.builds(
  Llama3, factor=number, original_length=small, low=number, high=number
)


@st.composite
def grouped(draw):
  heads = draw(small)
  return dict(
    attention=Grouped(
      num_heads=heads * draw(small),
      num_kv_heads=heads,
      head_size=2 * draw(small),
      bias=draw(st.booleans()),
    ),
    rope_scaling=draw(st.none() | yarn | llama3),
  )


@st.composite
def latent(draw):
  v3 = draw(st.booleans())
  groups, size = draw(small), draw(small)
  per_token = draw(st.integers(1, groups))
  all_dim = draw(st.floats(0.1, 2))
  return dict(
    attention=Latent(
      num_heads=draw(small),
      q_rank=draw(st.none() | small),
      kv_rank=draw(small),
      nope_size=draw(small),
      rope_size=2 * draw(small),
      value_size=draw(small),
    ),
    experts=Experts(
      num_routed=groups * size,
      num_shared=draw(st.integers(0, 2)),
      num_dense_layers=draw(st.integers(0, 1)),
      per_token=draw(st.integers(1, size * per_token)),
      width=draw(small),
      scores="sigmoid" if v3 else "softmax",
      renormalise=v3 and draw(st.booleans()),
      scale=draw(number),
      num_groups=groups,
      groups_per_token=per_token,
    ),
    mtp_depth=draw(st.integers(0, 2)) if v3 else 0,
    rope_scaling=draw(
      st.none()
      | llama3
      | yarn
      | yarn.map(
        lambda y: dataclasses.replace(y, mscale=0.7, mscale_all_dim=all_dim)
      )
    ),
  )


@st.composite
def configs(draw):
  layers = draw(small)
  return ModelConfig(
    vocab_size=draw(small),
    width=draw(small),
    num_layers=layers,
    dense_width=draw(small),
    norm_epsilon=draw(st.floats(1e-8, 1e-3)),
    rope_theta=draw(number),
    max_length=draw(small),
    tied=draw(st.booleans()),
    init_scale=draw(st.floats(0.001, 1)),
    **draw(grouped() | latent()),
  )


@settings(deadline=None, max_examples=200)
@given(configs(), st.booleans())
def test_any_model_is_read_back_from_either_form_of_rope(config, new):
  written = hf_config.released(config, dtype="bfloat16")
  written = as_transformers_5(written) if new else written
  assert hf_config.parse(json.loads(json.dumps(written))) == config
