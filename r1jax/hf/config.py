"""ModelConfig <-> config.json of the released checkpoints.

Two spellings are read: the released one (`rope_theta`, `rope_scaling`) and that
of transformers 5 (`rope_parameters`). The released one is written.
"""

import dataclasses
import json
import os
import pathlib
import types
from collections.abc import Mapping
from typing import Any

from r1jax.hf.architectures import (
  DEFAULTS,
  EXPERTS,
  FAMILIES,
  FOREIGN,
  GROUPED,
  KINDS,
  LATENT,
  LLAMA3,
  MAY_BE_ZERO,
  MODEL,
  ROPES,
  YARN,
  Family,
  Settings,
)
from r1jax.models.config import (
  Experts,
  Grouped,
  Latent,
  Llama3,
  ModelConfig,
  Yarn,
  float_name,
)

# Layers from which on depth is scanned, and blocks made again, as in presets.
DEPTH_OF_SCAN = 16


def directory(path: str | os.PathLike) -> pathlib.Path:
  """A path to a directory; raises ValueError, with what to do, for others."""
  folder = pathlib.Path(path)
  if folder.is_dir():
    return folder
  if folder.exists():
    raise ValueError(f"{folder} is a file; give the directory of a model")
  name = folder if len(folder.parts) == 2 else f"OWNER/{folder.name}"
  raise ValueError(
    f"{folder} is no directory; to download a model from Hugging Face: "
    f"hf download {name} --local-dir {folder}"
  )


def read(path: str | os.PathLike) -> ModelConfig:
  """The model that config.json in a directory describes.

  Raises ValueError, with the file, the key and its value, for what this package
  does not implement and for what is missing.
  """
  folder = directory(path)
  return parse(settings(folder), str(folder / "config.json"))


def settings(folder: pathlib.Path) -> dict[str, Any]:
  """The contents of config.json in a directory."""
  if not (folder / "config.json").is_file():
    raise ValueError(
      f"{folder} holds no config.json; give a model's directory in Hugging "
      "Face layout"
    )
  return read_json(folder / "config.json")


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a file; an empty one if there is no such file."""
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_bytes())
  except ValueError as error:
    raise ValueError(f"{path} is not JSON: {error}") from None
  if not isinstance(found, dict):
    raise ValueError(f"{path} holds no JSON object")
  return found


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes `value`, indented."""
  text = json.dumps(value, indent=2, ensure_ascii=False)
  path.write_text(text + "\n", encoding="utf-8")


def parse(settings: Settings, path: str = "config.json") -> ModelConfig:
  """The model that `settings`, found in the file `path`, describe."""
  try:
    return _parse(_Reader(settings))
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def float8_block(folder: pathlib.Path) -> tuple[int, int] | None:
  """Rows and columns that share a scale, where weights are float8; or None.

  Raises ValueError for weights that are quantised in another way.
  """
  reader = _Reader(settings(folder))
  if not reader.settings.get("quantization_config"):
    return None
  try:
    found = reader.part("quantization_config")
    for key, value in (("quant_method", "fp8"), ("fmt", "e4m3")):
      if found.settings.get(key) not in (None, value):
        raise found.refusal(key, repr(value))
    block = found.settings.get("weight_block_size")
    if not (
      isinstance(block, list)
      and len(block) == 2
      and all(type(n) is int and n > 0 for n in block)
    ):
      raise found.refusal("weight_block_size", "rows and columns of a block")
  except ValueError as error:
    raise ValueError(f"{folder / 'config.json'}: {error}") from None
  return tuple(block)


class _Reader:
  """Reads fields of ours under keys of theirs, and says what is wrong."""

  def __init__(self, settings: Settings, within: str = ""):
    self.settings = settings
    self._within = within

  def refusal(self, key: str, wanted: str) -> ValueError:
    """The error of a key whose value is not what is wanted."""
    found = self.settings.get(key)
    return ValueError(
      f"{self._within}{key} is {found!r}; this reader takes {wanted}"
    )

  def part(self, key: str) -> "_Reader":
    """A reader of the object under `key`."""
    if not isinstance(self.settings[key], dict):
      raise self.refusal(key, "an object")
    return _Reader(self.settings[key], f"{key}.")

  def fields(self, owner, names: Mapping[str, str], defaults: Settings):
    """Fields of the dataclass `owner`, each of its own type."""
    kinds = {field.name: field.type for field in dataclasses.fields(owner)}
    return {
      ours: self.value(theirs, kinds[ours], defaults.get(theirs))
      for ours, theirs in names.items()
    }

  def value(self, key: str, kind, default=None):
    """A bool, an int or a float; None only where `kind` allows it."""
    found = self.settings.get(key)
    found = default if found is None else found
    if isinstance(kind, types.UnionType):
      if found is None:
        return None
      kind = int
    if kind is float and type(found) is int:
      found = float(found)
    if type(found) is not kind:
      raise self.refusal(key, KINDS[kind])
    if kind is int and found < (0 if key in MAY_BE_ZERO else 1):
      raise self.refusal(key, "larger numbers")
    return found


def _parse(reader: _Reader) -> ModelConfig:
  named = reader.settings.get("architectures")
  if not isinstance(named, list) or len(named) != 1 or named[0] not in FAMILIES:
    raise reader.refusal("architectures", f"one of {', '.join(FAMILIES)}")
  family = FAMILIES[named[0]]
  for key, value in (FOREIGN | family.fixed).items():
    if reader.settings.get(key) not in (None, value):
      raise reader.refusal(key, repr(value))
  if {*(reader.settings.get("layer_types") or ())} - {"full_attention"}:
    raise reader.refusal("layer_types", "'full_attention' everywhere")
  deepseek = family.model_type.startswith("deepseek")
  defaults = DEFAULTS | {"max_position_embeddings": family.default_length}
  sizes = reader.fields(ModelConfig, MODEL, defaults)
  sizes["scan"] = sizes["num_layers"] >= DEPTH_OF_SCAN
  sizes["remat"] = "block" if sizes["scan"] else "none"
  sizes["rope_theta"], sizes["rope_scaling"] = _read_rope(reader, deepseek)
  if deepseek:
    sizes["attention"] = _read_latent(reader)
    sizes["experts"] = _read_experts(reader, family)
  else:
    sizes["attention"] = _read_grouped(reader, family)
  if family.model_type == "deepseek_v3":
    sizes["mtp_depth"] = reader.value("num_nextn_predict_layers", int, 0)
  return ModelConfig(**sizes)


def _read_latent(reader: _Reader) -> Latent:
  attention = reader.fields(Latent, LATENT, {})
  heads = attention["num_heads"]
  if reader.settings.get("num_key_value_heads") not in (None, heads):
    raise reader.refusal("num_key_value_heads", f"num_attention_heads, {heads}")
  return Latent(**attention)


def _read_grouped(reader: _Reader, family: Family) -> Grouped:
  heads = reader.value("num_attention_heads", int)
  size = reader.value("hidden_size", int) // heads
  defaults = {"num_key_value_heads": heads, "head_dim": size}
  attention = reader.fields(Grouped, GROUPED, defaults)
  return Grouped(bias=family.model_type == "qwen2", **attention)


def _read_experts(reader: _Reader, family: Family) -> Experts:
  fields = reader.fields(Experts, EXPERTS, DEFAULTS | family.fixed)
  if family.model_type == "deepseek_v2":
    method = reader.settings.get("topk_method") or "greedy"
    if method not in ("greedy", "group_limited_greedy"):
      raise reader.refusal("topk_method", "'greedy', 'group_limited_greedy'")
    if method == "greedy":
      fields |= dict(num_groups=1, groups_per_token=1)
  return Experts(scores=family.fixed["scoring_func"], **fields)


def _read_rope(reader: _Reader, deepseek: bool):
  """The base of RoPE, and how it is scaled."""
  theta = reader.value("rope_theta", float, 10_000.0)
  keys = ("rope_scaling", "rope_parameters")
  key = next((key for key in keys if reader.settings.get(key)), None)
  if key is None:
    return theta, None
  rope = reader.part(key)
  theta = rope.value("rope_theta", float, theta)
  spelling = "rope_type" if rope.settings.get("rope_type") else "type"
  kind = rope.settings.get(spelling) or "default"
  if kind != "default" and kind not in ROPES:
    raise rope.refusal(spelling, f"'default', {', '.join(map(repr, ROPES))}")
  make, names = ROPES.get(kind, (None, {}))
  known = {"type", "rope_type", "rope_theta", *names.values()}
  neutral = {"partial_rotary_factor": 1.0, "truncate": True}
  for other, value in rope.settings.items():
    if other not in known and value not in (None, neutral.get(other)):
      raise rope.refusal(other, f"no such key for type {kind!r}")
  if make is None:
    return theta, None
  defaults = {
    names[field.name]: field.default
    for field in dataclasses.fields(make)
    if field.default is not dataclasses.MISSING
  }
  if rope.settings.get("mscale_all_dim"):
    defaults.pop("mscale")  # Without it, its readers disagree.
  scaling = make(**rope.fields(make, names, defaults))
  if isinstance(scaling, Yarn) and (
    problem := _yarn_problem(scaling, deepseek)
  ):
    raise rope.refusal(*problem)
  return theta, scaling


def _yarn_problem(yarn: Yarn, deepseek: bool) -> tuple[str, str] | None:
  """A key on which readers of YaRN disagree, and what they agree on."""
  if yarn.mscale_all_dim and not deepseek:
    return "mscale_all_dim", "0 outside of DeepSeek's models"
  if yarn.mscale_all_dim and not yarn.mscale:
    return "mscale", "no 0 beside mscale_all_dim"
  if yarn.mscale != 1.0 and not yarn.mscale_all_dim:
    return "mscale", "1 where mscale_all_dim is 0"
  return None


def architecture(config: ModelConfig) -> str:
  """The released architecture that `config` is an instance of.

  Raises ValueError if there is none.
  """
  c, experts = config, config.experts
  if isinstance(c.attention, Latent):
    if experts is None:
      problem = "latent attention without experts"
    elif experts.biased:
      return "DeepseekV3ForCausalLM"
    elif experts.renormalise:
      problem = "softmax scores that are renormalised"
    elif c.mtp_depth:
      problem = "softmax scores with MTP"
    else:
      return "DeepseekV2ForCausalLM"
  elif experts is not None:
    problem = "grouped attention with experts"
  elif c.mtp_depth:
    problem = "grouped attention with MTP"
  else:
    return "Qwen2ForCausalLM" if c.attention.bias else "LlamaForCausalLM"
  raise ValueError(f"no released architecture has {problem}")


def released(config: ModelConfig, *, dtype: Any) -> dict[str, Any]:
  """config.json of `config`, in the released spelling.

  Left out are `auto_map`, whose files we do not have, and the tokens, which are
  the tokenizer's. Raises ValueError if no released architecture is like it.
  """
  name = architecture(config)
  family, c = FAMILIES[name], config
  latent = isinstance(c.attention, Latent)
  settings = {"architectures": [name], "model_type": family.model_type}
  settings |= family.fixed | family.unread
  settings["torch_dtype"] = float_name(dtype)
  settings |= _write(c, MODEL) | {"rope_theta": c.rope_theta}
  if latent:
    settings |= _write(c.attention, LATENT) | _write(c.experts, EXPERTS)
    settings["num_key_value_heads"] = c.attention.num_heads
  else:
    settings |= _write(c.attention, GROUPED)
    if c.attention.head_size * c.attention.num_heads == c.width:
      del settings["head_dim"]
  if family.model_type == "deepseek_v3":
    settings["num_nextn_predict_layers"] = c.mtp_depth
  if family.model_type == "deepseek_v2":
    grouped = c.experts.num_groups > 1
    settings["topk_method"] = "group_limited_greedy" if grouped else "greedy"
  if family.model_type == "qwen2":
    settings |= {"sliding_window": c.max_length, "use_mrope": False}
    settings["max_window_layers"] = c.num_layers
  if c.rope_scaling is not None or family.model_type != "qwen2":
    settings["rope_scaling"] = _write_rope(c, latent)
  return dict(sorted(settings.items()))


def _write(part, names: Mapping[str, str]) -> dict[str, Any]:
  return {theirs: getattr(part, ours) for ours, theirs in names.items()}


def _write_rope(config: ModelConfig, latent: bool) -> dict[str, Any] | None:
  scaling = config.rope_scaling
  if scaling is None:
    return None
  if isinstance(scaling, Llama3):
    return _write(scaling, LLAMA3) | {"rope_type": "llama3"}
  if problem := _yarn_problem(scaling, latent):
    key, wanted = problem
    value = getattr(scaling, key)
    raise ValueError(f"rope_scaling.{key} is {value}; readers take {wanted}")
  return _write(scaling, YARN) | {"type": "yarn"}
