"""Conversion between `ModelConfig` and config.json of released checkpoints.

RoPE is read in two forms: `rope_theta` and `rope_scaling`, as in the released
files, and `rope_parameters`, as transformers 5 writes it. It is written in the
released form.
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

# Models of at least this many layers use `scan` and `remat="block"`, as the
# presets do.
SCAN_LAYERS = 16


def directory(path: str | os.PathLike) -> pathlib.Path:
  """The path of a directory; raises ValueError if it is not one."""
  folder = pathlib.Path(path)
  if folder.is_dir():
    return folder
  if folder.exists():
    raise ValueError(f"{folder} is a file; give the directory of a model")
  # Two parts look like OWNER/MODEL on Hugging Face.
  name = folder if len(folder.parts) == 2 else f"OWNER/{folder.name}"
  raise ValueError(
    f"{folder} is no directory; to download a model from Hugging Face: "
    f"hf download {name} --local-dir {folder}"
  )


def read(path: str | os.PathLike) -> ModelConfig:
  """The config of the model in a directory, from its config.json.

  Raises ValueError, with the file, the key and its value, for settings that are
  not supported or missing.
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
  """The JSON object in a file; an empty dict if there is no such file."""
  if not path.is_file():
    return {}
  try:
    value = json.loads(path.read_bytes())
  except ValueError as error:
    raise ValueError(f"{path} is not JSON: {error}") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path} holds no JSON object")
  return value


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes `value` as indented JSON."""
  text = json.dumps(value, indent=2, ensure_ascii=False)
  path.write_text(text + "\n", encoding="utf-8")


def parse(settings: Settings, path: str = "config.json") -> ModelConfig:
  """The config that `settings` describe; errors name the file `path`."""
  try:
    return _parse(_Reader(settings))
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def float8_block(folder: pathlib.Path) -> tuple[int, int] | None:
  """Rows and columns of the blocks that share a scale, if weights are float8.

  None if weights are not quantised. Raises ValueError for other quantisation.
  """
  reader = _Reader(settings(folder))
  if not reader.settings.get("quantization_config"):
    return None
  try:
    part = reader.part("quantization_config")
    part.expect({"quant_method": "fp8", "fmt": "e4m3"})
    block = part.settings.get("weight_block_size")
    is_pair = isinstance(block, list) and len(block) == 2
    if not is_pair or not all(type(n) is int and n > 0 for n in block):
      raise part.refusal("weight_block_size", "rows and columns of a block")
  except ValueError as error:
    raise ValueError(f"{folder / 'config.json'}: {error}") from None
  return tuple(block)


class _Reader:
  """Reads typed values from a JSON object; errors name the key and its value.

  `within` is the path of the object in the file, such as "rope_scaling.".
  """

  def __init__(self, settings: Settings, within: str = ""):
    self.settings = settings
    self._within = within

  def refusal(self, key: str, supported: str) -> ValueError:
    """The error for a value that is not one of the `supported`."""
    value = self.settings.get(key)
    return ValueError(
      f"{self._within}{key} is {value!r}; this reader takes {supported}"
    )

  def expect(self, values: Settings) -> None:
    """Raises ValueError for a key that is present with another value."""
    for key, value in values.items():
      if self.settings.get(key) not in (None, value):
        raise self.refusal(key, repr(value))

  def part(self, key: str) -> "_Reader":
    """A reader of the object under `key`."""
    if not isinstance(self.settings[key], dict):
      raise self.refusal(key, "an object")
    return _Reader(self.settings[key], f"{key}.")

  def fields(self, owner, names: Mapping[str, str], defaults: Settings):
    """Values for fields of the dataclass `owner`, of the types it declares.

    Args:
      owner: the dataclass.
      names: keys of the object by field.
      defaults: values by key, for keys that are absent or null.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(owner)}
    return {
      ours: self.value(theirs, kinds[ours], defaults.get(theirs))
      for ours, theirs in names.items()
    }

  def value(self, key: str, kind, default=None):
    """The value of a key: a bool, a float, an int, or None if `kind` allows it.

    `kind` is the type, or `int | None`. Raises ValueError for another type, and
    for an int below 1, or below 0 if it may be zero.
    """
    value = self.settings.get(key)
    value = default if value is None else value
    if isinstance(kind, types.UnionType):
      if value is None:
        return None
      kind = int
    if kind is float and type(value) is int:
      value = float(value)
    if type(value) is not kind:
      raise self.refusal(key, KINDS[kind])
    if kind is int and value < (0 if key in MAY_BE_ZERO else 1):
      raise self.refusal(key, "larger numbers")
    return value


def _parse(reader: _Reader) -> ModelConfig:
  names = reader.settings.get("architectures")
  if not isinstance(names, list) or len(names) != 1 or names[0] not in FAMILIES:
    raise reader.refusal("architectures", f"one of {', '.join(FAMILIES)}")
  family = FAMILIES[names[0]]
  reader.expect(FOREIGN | family.fixed)
  if {*(reader.settings.get("layer_types") or ())} - {"full_attention"}:
    raise reader.refusal("layer_types", "'full_attention' everywhere")
  defaults = DEFAULTS | family.fixed
  defaults["max_position_embeddings"] = family.default_length
  sizes = reader.fields(ModelConfig, MODEL, defaults)
  sizes["scan"] = sizes["num_layers"] >= SCAN_LAYERS
  sizes["remat"] = "block" if sizes["scan"] else "none"
  heads = reader.value("num_attention_heads", int)
  deepseek = family.model_type.startswith("deepseek")
  if deepseek:
    reader.expect({"num_key_value_heads": heads})
    sizes["attention"] = Latent(**reader.fields(Latent, LATENT, defaults))
    experts = reader.fields(Experts, EXPERTS, defaults)
    if family.model_type == "deepseek_v2":
      method = reader.settings.get("topk_method") or "greedy"
      if method not in ("greedy", "group_limited_greedy"):
        raise reader.refusal("topk_method", "'greedy', 'group_limited_greedy'")
      if method == "greedy":
        experts |= dict(num_groups=1, groups_per_token=1)
    sizes["experts"] = Experts(scores=family.fixed["scoring_func"], **experts)
  else:
    defaults["num_key_value_heads"] = heads
    defaults["head_dim"] = sizes["width"] // heads
    attention = reader.fields(Grouped, GROUPED, defaults)
    bias = family.model_type == "qwen2"
    sizes["attention"] = Grouped(bias=bias, **attention)
  if family.model_type == "deepseek_v3":
    sizes["mtp_depth"] = reader.value("num_nextn_predict_layers", int, 0)
  theta, scaling = _read_rope(reader, deepseek)
  return ModelConfig(rope_theta=theta, rope_scaling=scaling, **sizes)


def _read_rope(reader: _Reader, deepseek: bool):
  """The base of RoPE, theta, and its scaling or None."""
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
    # Then mscale must be given: implementations disagree on its default.
    defaults.pop("mscale")
  scaling = make(**rope.fields(make, names, defaults))
  if isinstance(scaling, Yarn) and (
    problem := _yarn_problem(scaling, deepseek)
  ):
    raise rope.refusal(*problem)
  return theta, scaling


def _yarn_problem(yarn: Yarn, deepseek: bool) -> tuple[str, str] | None:
  """A key for whose value implementations disagree, and the values they share.

  None if there is no such key.
  """
  if yarn.mscale_all_dim and not deepseek:
    return "mscale_all_dim", "0 outside of DeepSeek's models"
  if yarn.mscale_all_dim and not yarn.mscale:
    return "mscale", "no 0 beside mscale_all_dim"
  if yarn.mscale != 1.0 and not yarn.mscale_all_dim:
    return "mscale", "1 where mscale_all_dim is 0"
  return None


def architecture(config: ModelConfig) -> str:
  """The name of the released architecture that can express `config`.

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
  """The contents of config.json for `config`, with parameters of `dtype`.

  Without `auto_map`, as its Python files are not part of a checkpoint of ours,
  and without the ids of special tokens, which come from the tokenizer. Raises
  ValueError if no released architecture can express `config`.
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
  """The fields of `part` under their keys in config.json."""
  return {theirs: getattr(part, ours) for ours, theirs in names.items()}


def _write_rope(config: ModelConfig, latent: bool) -> dict[str, Any] | None:
  """The value of `rope_scaling`."""
  scaling = config.rope_scaling
  if scaling is None:
    return None
  if isinstance(scaling, Llama3):
    return _write(scaling, LLAMA3) | {"rope_type": "llama3"}
  if problem := _yarn_problem(scaling, latent):
    key, supported = problem
    value = getattr(scaling, key)
    raise ValueError(f"rope_scaling.{key} is {value}; readers take {supported}")
  return _write(scaling, YARN) | {"type": "yarn"}
