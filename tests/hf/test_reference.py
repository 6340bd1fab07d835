"""transformers and r1jax read each other's checkpoints, bit for bit."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from r1jax import hf
from r1jax.hf.tensors import open_folder
from r1jax.models.presets import preset

pytestmark = pytest.mark.reference

COMMON = dict(
  vocab_size=44, hidden_size=24, intermediate_size=20, num_hidden_layers=3
)
LATENT = dict(
  num_attention_heads=3,
  num_key_value_heads=3,
  q_lora_rank=12,
  kv_lora_rank=10,
  qk_nope_head_dim=6,
  qk_rope_head_dim=4,
  v_head_dim=5,
  moe_intermediate_size=7,
  n_routed_experts=6,
  num_experts_per_tok=2,
)
YARN = dict(
  rope_type="yarn",
  rope_theta=100.0,
  factor=4.0,
  original_max_position_embeddings=64,
  mscale=0.7,
  mscale_all_dim=0.7,
)
LLAMA3 = dict(
  rope_type="llama3",
  rope_theta=500.0,
  factor=8.0,
  original_max_position_embeddings=64,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
)
MODELS = {
  "v3": (
    "DeepseekV3Config",
    COMMON
    | LATENT
    | dict(first_k_dense_replace=1, n_group=3, topk_group=2, n_shared_experts=1)
    | dict(max_position_embeddings=256, rope_parameters=YARN),
  ),
  "v3 like moonlight": (
    "DeepseekV3Config",
    COMMON
    | LATENT
    | dict(first_k_dense_replace=2, n_group=1, topk_group=1, n_shared_experts=2)
    | dict(q_lora_rank=None, rms_norm_eps=1e-5, routed_scaling_factor=2.446),
  ),
  "v2": (
    "DeepseekV2Config",
    COMMON | LATENT | dict(first_k_dense_replace=1, q_lora_rank=None),
  ),
  "v2 in groups": (
    "DeepseekV2Config",
    COMMON
    | LATENT
    | dict(topk_method="group_limited_greedy", n_group=3, topk_group=2)
    | dict(max_position_embeddings=256, rope_parameters=YARN),
  ),
  "qwen2": (
    "Qwen2Config",
    COMMON | dict(num_attention_heads=6, num_key_value_heads=2),
  ),
  "qwen2 tied": (
    "Qwen2Config",
    COMMON
    | dict(num_attention_heads=3, num_key_value_heads=3)
    | dict(tie_word_embeddings=True),
  ),
  "llama": (
    "LlamaConfig",
    COMMON
    | dict(num_attention_heads=6, num_key_value_heads=3, head_dim=10)
    | dict(max_position_embeddings=256, rope_parameters=LLAMA3),
  ),
}


def random_model(name, dtype):
  """A model of transformers with random weights and buffers."""
  import torch
  import transformers

  kind, sizes = MODELS[name]
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(
    getattr(transformers, kind)(**sizes)
  )
  model = model.to(dtype)
  for module in model.modules():  # As released, whatever the others are.
    if hasattr(module, "e_score_correction_bias"):
      module.e_score_correction_bias = module.e_score_correction_bias.float()
  for tensor in model.state_dict().values():
    tensor.normal_()
  return model


def same_tensors(one, other):
  import torch

  assert one.keys() == other.keys()
  for name, tensor in one.items():
    assert tensor.dtype == other[name].dtype, name
    assert torch.equal(tensor, other[name]), name


def loaded(directory, dtype):
  """A model of transformers from a directory, and its loading report."""
  import transformers

  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=dtype, output_loading_info=True
  )
  return model, {key: value for key, value in info.items() if value}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_saved_models_load_again_and_in_transformers(name, dtype, tmp_path):
  import torch

  kind = getattr(torch, dtype)
  theirs = random_model(name, kind)
  theirs.save_pretrained(tmp_path / "theirs")
  config, params = hf.load(tmp_path / "theirs", dtype=dtype)
  assert config.mtp_depth == 0  # transformers keeps no such layers.
  hf.save(tmp_path / "ours", config, params, file_bytes=30_000)

  model, amiss = loaded(tmp_path / "ours", kind)
  assert not amiss
  same_tensors(theirs.state_dict(), model.state_dict())
  # In the files, too: transformers may fuse what it loads.
  released = load_file(tmp_path / "theirs/model.safetensors")
  ours = open_folder(tmp_path / "ours")
  assert released.keys() == ours.keys()
  for name, array in released.items():
    found = ours[name].read()
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
  # And what either config says is the same model.
  was, now = theirs.config.to_dict(), model.config.to_dict()
  differ = {key for key in was if was[key] != now[key]} - {
    "_name_or_path",
    "bos_token_id",  # Nothing says which tokens: there is no tokenizer.
    "eos_token_id",
    "head_dim",  # Of transformers itself, computed.
    "n_group",  # None is one group.
    "topk_group",
    "num_nextn_predict_layers",
    "sliding_window",
    "max_window_layers",
  }
  assert differ <= {"rope_parameters"}
  spelled = now["rope_parameters"]
  for key, value in was["rope_parameters"].items():
    assert spelled[key] == value


def test_mtp_layers_are_all_that_transformers_does_not_know(
  tmp_path, random_params
):
  config = preset("tiny_deepseek")
  params = random_params(config)
  hf.save(tmp_path / "ours", config, params)
  _, amiss = loaded(tmp_path / "ours", "float32")
  assert amiss.keys() <= {"unexpected_keys"}
  assert all(n.startswith("model.layers.4.") for n in amiss["unexpected_keys"])


def test_transformers_keeps_the_balancing_bias_in_float32(
  tmp_path, random_params
):
  config = preset("tiny_deepseek", mtp_depth=0)
  params = random_params(config)
  hf.save(tmp_path / "ours", config, params, dtype="bfloat16")
  model, amiss = loaded(tmp_path / "ours", "auto")
  assert not amiss
  kinds = {
    str(tensor.dtype): name for name, tensor in model.state_dict().items()
  }
  assert kinds.keys() == {"torch.bfloat16", "torch.float32"}
  bias = [
    n for n in model.state_dict() if n.endswith("e_score_correction_bias")
  ]
  assert kinds["torch.float32"] in bias


def test_the_tokenizer_is_copied(tmp_path, random_params, write_tokenizer):
  import transformers

  words = write_tokenizer(tmp_path / "words")
  settings = json.loads((words / "tokenizer_config.json").read_text())
  template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
  (words / "tokenizer_config.json").write_text(
    json.dumps(settings | {"chat_template": template})
  )
  config = preset("tiny_llama")
  params = random_params(config)
  hf.save(tmp_path / "ours", config, params, tokenizer=words)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
  text = "A conversation between User and Assistant."
  assert tokenizer.decode(tokenizer.encode(text)) == text
  chat = [dict(role="user", content="hello")]
  assert tokenizer.apply_chat_template(chat, tokenize=False) == "<hello>"
  model, amiss = loaded(tmp_path / "ours", "float32")
  assert not amiss
  eos = tokenizer.convert_tokens_to_ids("<eos>")
  assert model.config.eos_token_id == eos
  assert model.generation_config.eos_token_id == eos
  assert tokenizer.eos_token_id == eos


def test_the_shipped_model_loads_in_transformers():
  import importlib.resources

  base = importlib.resources.files("r1jax") / "base"
  model, amiss = loaded(str(base), "float32")
  assert amiss.keys() <= {"unexpected_keys"}
  _, params = hf.load(str(base))
  theirs = model.state_dict()["model.norm.weight"].numpy()
  np.testing.assert_array_equal(theirs, params["final_norm"]["scale"])
  assert jax.tree.all(jax.tree.map(lambda x: np.isfinite(x).all(), params))
