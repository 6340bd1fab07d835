"""DeepSeek-V3 checkpoints in Hugging Face layout <-> parameters.

config.json  model.safetensors  tokenizer.*  provenance.json
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from r1jax.models.config import ModelConfig
from r1jax.models.weights import is_weight, weights
from r1jax.types import Params

ARCHITECTURE = "DeepseekV3ForCausalLM"

CONFIG_KEYS = {  # Ours: the name in config.json.
  "vocab_size": "vocab_size",
  "width": "hidden_size",
  "num_layers": "num_hidden_layers",
  "num_dense_layers": "first_k_dense_replace",
  "num_heads": "num_attention_heads",
  "q_rank": "q_lora_rank",
  "kv_rank": "kv_lora_rank",
  "nope_size": "qk_nope_head_dim",
  "rope_size": "qk_rope_head_dim",
  "value_size": "v_head_dim",
  "dense_width": "intermediate_size",
  "expert_width": "moe_intermediate_size",
  "num_experts": "n_routed_experts",
  "num_shared_experts": "n_shared_experts",
  "experts_per_token": "num_experts_per_tok",
  "routed_scale": "routed_scaling_factor",
  "rope_theta": "rope_theta",
  "norm_epsilon": "rms_norm_eps",
  "mtp_depth": "num_nextn_predict_layers",
  "init_scale": "initializer_range",
}
FIXED = {  # What this architecture always does; needed by other readers.
  "architectures": [ARCHITECTURE],
  "model_type": "deepseek_v3",
  "hidden_act": "silu",
  "attention_bias": False,
  "tie_word_embeddings": False,
  "scoring_func": "sigmoid",
  "topk_method": "noaux_tc",
  "norm_topk_prob": True,
  "n_group": 1,
  "topk_group": 1,
  "moe_layer_freq": 1,
  "rope_scaling": None,
  "torch_dtype": "float32",
}
BLOCK_NAMES = {  # Of one layer; matrices are stored transposed.
  "attention_norm": "input_layernorm",
  "q_down": "self_attn.q_a_proj",
  "q_norm": "self_attn.q_a_layernorm",
  "q_up": "self_attn.q_b_proj",
  "kv_down": "self_attn.kv_a_proj_with_mqa",
  "kv_norm": "self_attn.kv_a_layernorm",
  "kv_up": "self_attn.kv_b_proj",
  "out": "self_attn.o_proj",
  "feed_forward_norm": "post_attention_layernorm",
}
MTP_NAMES = {
  "hidden_norm": "hnorm",
  "embed_norm": "enorm",
  "project": "eh_proj",
  "final_norm": "shared_head.norm",
}


def save(
  directory: pathlib.Path,
  config: ModelConfig,
  params: Params,
  *,
  tokenizer: pathlib.Path,
  provenance: Mapping[str, Any],
) -> None:
  """Writes a model, its tokenizer's files, and how it came to be."""
  from safetensors.numpy import save_file

  directory.mkdir(parents=True, exist_ok=True)
  tensors = dict(to_tensors(config, params))
  save_file(tensors, directory / "model.safetensors", {"format": "pt"})
  digest = hashlib.sha256((directory / "model.safetensors").read_bytes())
  names = {v: getattr(config, k) for k, v in CONFIG_KEYS.items()}
  heads = {"num_key_value_heads": config.num_heads}
  _write_json(directory / "config.json", FIXED | names | heads)
  _write_json(
    directory / "provenance.json",
    {"model.safetensors sha256": digest.hexdigest()} | dict(provenance),
  )
  for file in tokenizer.iterdir():
    if file.name.startswith("tokenizer") and not file.suffix == ".tmp":
      shutil.copy(file, directory / file.name)


def load(directory: str) -> tuple[ModelConfig, Params]:
  """The config and the parameters (NumPy, float32) in `directory`.

  Raises ValueError for another architecture, or for a tensor that is missing,
  left over or of another shape.
  """
  from safetensors.numpy import load_file

  path = pathlib.Path(directory)
  if not (path / "config.json").exists():
    raise ValueError(
      f"{path} holds no config.json; give a model's directory in Hugging Face "
      "layout"
    )
  settings = json.loads((path / "config.json").read_text())
  for key, value in FIXED.items():
    if key != "torch_dtype" and settings.get(key) != value:
      raise ValueError(
        f"{path}/config.json: {key} is {settings.get(key)!r}; this reader "
        f"knows {value!r}"
      )
  for theirs in CONFIG_KEYS.values():
    if theirs not in settings:
      raise ValueError(f"{path}/config.json does not say {theirs}")
  config = ModelConfig(
    **{ours: settings[theirs] for ours, theirs in CONFIG_KEYS.items()}
  )
  tensors = load_file(path / "model.safetensors")
  params = from_tensors(config, tensors)
  if tensors:
    raise ValueError(f"{path}: unknown tensor {sorted(tensors)[0]}")
  return config, params


def to_tensors(
  config: ModelConfig, params: Params
) -> Iterator[tuple[str, np.ndarray]]:
  """The released names and layouts, one tensor at a time."""
  params = jax.tree.map(np.asarray, params)
  yield "model.embed_tokens.weight", params["embed"]
  yield "lm_head.weight", _flip(params["unembed"], 1)
  yield "model.norm.weight", params["final_norm"]
  for layer, block in enumerate(_blocks(config, params)):
    yield from _block_to(f"model.layers.{layer}", block)
  if config.mtp_depth:
    prefix = f"model.layers.{config.num_layers}"
    for ours, theirs in MTP_NAMES.items():
      yield f"{prefix}.{theirs}.weight", _flip(_halves(ours, params["mtp"]), 1)
    yield f"{prefix}.embed_tokens.weight", params["embed"].copy()
    yield f"{prefix}.shared_head.head.weight", _flip(params["unembed"], 1)
    yield from _block_to(prefix, params["mtp"]["block"])


def from_tensors(config: ModelConfig, tensors: dict) -> Params:
  """The tree of parameters; takes from `tensors` what it uses."""
  shapes = weights(config)

  def take(name, like):
    if name not in tensors:
      raise ValueError(f"tensor {name} is missing")
    array, axis = tensors.pop(name), _inputs(like)
    wanted = (
      (math.prod(like.shape[axis:]), math.prod(like.shape[:axis]))
      if len(like.shape) > 1
      else like.shape
    )
    if array.shape != wanted:
      raise ValueError(f"{name} is {array.shape}, not {wanted}")
    return np.ascontiguousarray(array.T, np.float32).reshape(like.shape)

  params = {
    "embed": take(
      "model.embed_tokens.weight",
      shapes["embed"]._replace(shape=shapes["embed"].shape[::-1]),
    ).T.copy(),
    "unembed": take("lm_head.weight", shapes["unembed"]),
    "final_norm": take("model.norm.weight", shapes["final_norm"]),
  }
  layer = 0
  for group in ("dense", "moe"):
    if group not in shapes:
      continue
    like = jax.tree.map(
      lambda w: w._replace(shape=w.shape[1:], axes=w.axes[1:]),
      shapes[group],
      is_leaf=is_weight,
    )
    count = next(iter(shapes[group].values())).shape[0]
    blocks = []
    for _ in range(count):
      blocks.append(_block_from(f"model.layers.{layer}", like, take))
      layer += 1
    params[group] = jax.tree.map(lambda *x: np.stack(x), *blocks)
  if config.mtp_depth:
    prefix, like = f"model.layers.{config.num_layers}", shapes["mtp"]
    mtp = {
      ours: take(f"{prefix}.{theirs}.weight", like[ours])
      for ours, theirs in MTP_NAMES.items()
    }
    mtp["project"] = _halves("project", mtp)
    for copy in ("embed_tokens", "shared_head.head"):
      tensors.pop(f"{prefix}.{copy}.weight", None)
    params["mtp"] = mtp | {"block": _block_from(prefix, like["block"], take)}
  return params


def _blocks(config: ModelConfig, params: Params) -> Iterator[Params]:
  counts = {"dense": config.num_dense_layers, "moe": config.num_moe_layers}
  for group, count in counts.items():
    for i in range(count):
      yield jax.tree.map(lambda x, i=i: x[i], params[group])


def _block_to(prefix: str, block: Params) -> Iterator[tuple[str, np.ndarray]]:
  for ours, theirs in BLOCK_NAMES.items():
    array = block[ours]
    yield f"{prefix}.{theirs}.weight", _flip(array, _inputs_of(ours))
  if "router" not in block:
    yield from _mlp_to(f"{prefix}.mlp", block["gate_up"], block["down"])
    return
  yield f"{prefix}.mlp.gate.weight", _flip(block["router"], 1)
  yield f"{prefix}.mlp.gate.e_score_correction_bias", block["router_bias"]
  for e, pair in enumerate(zip(block["gate_up"], block["down"], strict=True)):
    yield from _mlp_to(f"{prefix}.mlp.experts.{e}", *pair)
  shared = block["shared_gate_up"], block["shared_down"]
  yield from _mlp_to(f"{prefix}.mlp.shared_experts", *shared)


def _block_from(prefix: str, like: dict, take) -> Params:
  block = {
    ours: take(f"{prefix}.{theirs}.weight", like[ours])
    for ours, theirs in BLOCK_NAMES.items()
  }
  mlp = f"{prefix}.mlp"
  if "router" not in like:
    return block | _mlp_from(mlp, like["gate_up"], like["down"], take)
  block["router"] = take(f"{mlp}.gate.weight", like["router"])
  block["router_bias"] = take(
    f"{mlp}.gate.e_score_correction_bias", like["router_bias"]
  )
  one = lambda w: w._replace(shape=w.shape[1:])
  parts = [
    _mlp_from(
      f"{mlp}.experts.{e}", one(like["gate_up"]), one(like["down"]), take
    )
    for e in range(like["down"].shape[0])
  ]
  block |= jax.tree.map(lambda *x: np.stack(x), *parts)
  shared = _mlp_from(
    f"{mlp}.shared_experts", like["shared_gate_up"], like["shared_down"], take
  )
  return block | {f"shared_{name}": w for name, w in shared.items()}


def _mlp_to(prefix, gate_up, down) -> Iterator[tuple[str, np.ndarray]]:
  gate, up = np.split(gate_up, 2, axis=-1)
  for name, array in (("gate", gate), ("up", up), ("down", down)):
    yield f"{prefix}.{name}_proj.weight", _flip(array, 1)


def _mlp_from(prefix, gate_up, down, take) -> dict:
  half = gate_up._replace(shape=(gate_up.shape[0], gate_up.shape[1] // 2))
  gate, up = (take(f"{prefix}.{n}_proj.weight", half) for n in ("gate", "up"))
  return {
    "gate_up": np.concatenate([gate, up], axis=-1),
    "down": take(f"{prefix}.down_proj.weight", down),
  }


def _flip(array: np.ndarray, inputs: int) -> np.ndarray:
  """[in..., out...] as the released [out, in]; vectors as they are."""
  if array.ndim == 1:
    return array
  rows = int(np.prod(array.shape[:inputs]))
  return np.ascontiguousarray(array.reshape(rows, -1).T)


def _inputs_of(name: str) -> int:
  """Leading dimensions that are inputs: heads and their size, for `out`."""
  return 2 if name == "out" else 1


def _inputs(like) -> int:
  return 2 if like.axes[:1] == ("heads",) else 1


def _halves(name: str, mtp: Params) -> np.ndarray:
  """Ours joins [hidden; embedding], the release [embedding; hidden]."""
  array = mtp[name]
  return np.roll(array, len(array) // 2, axis=0) if name == "project" else array


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sizes(config: ModelConfig) -> dict[str, int]:
  """Number of parameters by top-level name, and their "total"."""
  counts = {
    name: sum(
      int(np.prod(w.shape)) for w in jax.tree.leaves(entry, is_leaf=is_weight)
    )
    for name, entry in weights(config).items()
  }
  return counts | {"total": sum(counts.values())}


def describe(config: ModelConfig) -> dict[str, Any]:
  """The config as plain values."""
  return dataclasses.asdict(config)
