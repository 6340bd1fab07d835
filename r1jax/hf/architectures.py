"""The keys of config.json in each of the released architectures."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from r1jax.models.config import Llama3, Yarn

Settings = Mapping[str, Any]  # What config.json holds.

# Fields of our config classes, and their keys in config.json.
MODEL = {
  "vocab_size": "vocab_size",
  "width": "hidden_size",
  "num_layers": "num_hidden_layers",
  "dense_width": "intermediate_size",
  "norm_epsilon": "rms_norm_eps",
  "max_length": "max_position_embeddings",
  "tied": "tie_word_embeddings",
  "init_scale": "initializer_range",
}
LATENT = {
  "num_heads": "num_attention_heads",
  "q_rank": "q_lora_rank",
  "kv_rank": "kv_lora_rank",
  "nope_size": "qk_nope_head_dim",
  "rope_size": "qk_rope_head_dim",
  "value_size": "v_head_dim",
}
GROUPED = {
  "num_heads": "num_attention_heads",
  "num_kv_heads": "num_key_value_heads",
  "head_size": "head_dim",
}
EXPERTS = {
  "num_routed": "n_routed_experts",
  "num_shared": "n_shared_experts",
  "num_dense_layers": "first_k_dense_replace",
  "per_token": "num_experts_per_tok",
  "width": "moe_intermediate_size",
  "renormalise": "norm_topk_prob",
  "scale": "routed_scaling_factor",
  "num_groups": "n_group",
  "groups_per_token": "topk_group",
}
YARN = {
  "factor": "factor",
  "original_length": "original_max_position_embeddings",
  "beta_fast": "beta_fast",
  "beta_slow": "beta_slow",
  "mscale": "mscale",
  "mscale_all_dim": "mscale_all_dim",
}
LLAMA3 = {
  "factor": "factor",
  "original_length": "original_max_position_embeddings",
  "low": "low_freq_factor",
  "high": "high_freq_factor",
}
ROPES = {"yarn": (Yarn, YARN), "llama3": (Llama3, LLAMA3)}

# Values for keys that are absent or null.
DEFAULTS = {
  "tie_word_embeddings": False,
  "initializer_range": 0.02,
  "n_shared_experts": 0,
  "n_group": 1,
  "topk_group": 1,
}
MAY_BE_ZERO = {
  "first_k_dense_replace",
  "n_shared_experts",
  "num_nextn_predict_layers",
}
KINDS = {int: "an integer", float: "a number", bool: "true or false"}
# Keys that we write for other readers. They do not affect what we compute.
UNREAD = {"attention_dropout": 0.0, "use_cache": True}
UNREAD_DEEPSEEK = UNREAD | {
  "aux_loss_alpha": 0.001,
  "pretraining_tp": 1,
  "seq_aux": True,
}


class Family(NamedTuple):
  """What is specific to the config.json of one architecture."""

  model_type: str
  default_length: int  # Where max_position_embeddings is absent.
  fixed: Settings  # Keys for which we support only this value.
  unread: Settings  # See UNREAD.


FIXED = {"hidden_act": "silu"}
FIXED_DEEPSEEK = FIXED | {"attention_bias": False, "moe_layer_freq": 1}
FAMILIES = {
  "DeepseekV3ForCausalLM": Family(
    "deepseek_v3",
    4096,
    FIXED_DEEPSEEK | {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    UNREAD_DEEPSEEK | {"ep_size": 1},
  ),
  "DeepseekV2ForCausalLM": Family(
    "deepseek_v2",
    2048,
    # norm_topk_prob is not supported: implementations disagree on whether
    # renormalised scores are also scaled.
    FIXED_DEEPSEEK | {"scoring_func": "softmax", "norm_topk_prob": False},
    UNREAD_DEEPSEEK,
  ),
  "Qwen2ForCausalLM": Family(
    "qwen2", 32_768, FIXED | {"use_sliding_window": False}, UNREAD
  ),
  "LlamaForCausalLM": Family(
    "llama",
    2048,
    FIXED | {"attention_bias": False, "mlp_bias": False},
    UNREAD | {"pretraining_tp": 1},
  ),
}
# Keys that must have this value if present, in every family. Never written.
FOREIGN = {
  "rope_interleave": True,
  "partial_rotary_factor": 1.0,
  "mlp_bias": False,
  "use_mrope": False,
}
