"""Models in GGUF files: their config, tensors and tokenizer in released form.

GGUF is the format of llama.cpp and Ollama; the `gguf` package reads its header
and its quantised blocks. Files of the architectures "llama" and "qwen2" are
read, with tokenizers of the kind "gpt2" (byte-level BPE).
"""

import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from r1jax.hf.config import write_json
from r1jax.hf.tensors import NamedTensors

SUFFIX = ".gguf"
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# Keys of config.json, and those of GGUF after the name of the architecture.
SETTINGS = {
  "hidden_size": "embedding_length",
  "num_hidden_layers": "block_count",
  "intermediate_size": "feed_forward_length",
  "num_attention_heads": "attention.head_count",
  "num_key_value_heads": "attention.head_count_kv",
  "max_position_embeddings": "context_length",
  "rms_norm_eps": "attention.layer_norm_rms_epsilon",
  "rope_theta": "rope.freq_base",
}
OUTER = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
}
INNER = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
CONTROL, USER_DEFINED = 3, 4  # Types of tokens that are never split.
# How texts are split before BPE, by the names of llama.cpp.
NUMBERS = {"qwen2": r"\p{N}", "llama-bpe": r"\p{N}{1,3}"}
WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
  "default": "gpt-2",
  "gpt-2": "gpt-2",
  "smollm": "digits",
  "qwen2": "qwen2",
  "deepseek-r1-qwen": "qwen2",
  "llama-bpe": "llama-bpe",
  "llama3": "llama-bpe",
}


def is_gguf(path: str | pathlib.Path) -> bool:
  """Whether a path names a GGUF file."""
  return pathlib.Path(path).suffix == SUFFIX


def settings(path: pathlib.Path) -> dict[str, Any]:
  """What config.json would hold for the model in a file.

  Raises ValueError for an architecture that is not read, and for a key that is
  missing.
  """
  fields, tensors = _open(path)
  name = fields.get("general.architecture")
  if name not in ARCHITECTURES:
    raise ValueError(
      f"{path} holds the architecture {name!r}; read are "
      f"{', '.join(ARCHITECTURES)}"
    )
  found: dict[str, Any] = {"architectures": [ARCHITECTURES[name]]}
  for key, other in SETTINGS.items():
    if f"{name}.{other}" not in fields:
      raise ValueError(f"{path} has no key {name}.{other}; download it again")
    value = fields[f"{name}.{other}"]
    # A float has 32 bits there: the shortest decimal number is what was meant.
    exact = float(str(np.float32(value)))
    found[key] = exact if isinstance(value, float) else value
  scaling = fields.get(f"{name}.rope.scaling.type", "none")
  if scaling != "none":
    raise ValueError(f"{path}: rope.scaling.type {scaling!r} is not read")
  if "rope_freqs.weight" in tensors:
    raise ValueError(
      f"{path} scales its positions by a table (rope_freqs), which is not read"
    )
  if f"{name}.attention.key_length" in fields:
    found["head_dim"] = fields[f"{name}.attention.key_length"]
  found["vocab_size"] = int(tensors["token_embd.weight"].shape[1])
  found["tie_word_embeddings"] = "output.weight" not in tensors
  for key in ("bos", "eos"):
    found[f"{key}_token_id"] = fields.get(f"tokenizer.ggml.{key}_token_id")
  return found


class Block(NamedTuple):
  """A tensor in quantised or plain blocks, read in float32."""

  file: pathlib.Path
  shape: tuple[int, ...]
  name: str  # In the file.
  rows: np.ndarray | None  # The row of the file for each row; None: the same.

  dtype = np.dtype(np.float32)

  def read(self, index: tuple[slice, ...]) -> np.ndarray:
    """The part at `index`. Whole rows are decoded."""
    from gguf import quants

    tensor = _open(self.file)[1][self.name]
    rows, *columns = index
    wanted = tensor.data[rows if self.rows is None else self.rows[rows]]
    values = quants.dequantize(wanted, tensor.tensor_type)
    return np.asarray(values, np.float32)[(slice(None), *columns)]


def open_file(path: pathlib.Path) -> NamedTensors:
  """The tensors of a file, by their released names.

  Raises ValueError for a tensor that has no released name.
  """
  fields, tensors = _open(path)
  made = {}
  for name, tensor in tensors.items():
    shape = tuple(int(n) for n in reversed(tensor.shape))
    made[_released(path, name)] = Block(
      path, shape, name, _order(fields, name, shape)
    )
  return made


def _released(path: pathlib.Path, name: str) -> str:
  """The released name of a tensor."""
  if name in OUTER:
    return OUTER[name]
  head, _, rest = name.partition(".")
  layer, _, rest = rest.partition(".")
  part, _, kind = rest.rpartition(".")
  if head != "blk" or not layer.isdigit() or part not in INNER:
    raise ValueError(f"{path}: unknown tensor {name}")
  return f"model.layers.{layer}.{INNER[part]}.{kind}"


def _order(fields, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
  """The row in the file of every row of queries and keys of Llama.

  llama.cpp rotates neighbours, and the released weights the halves of a head:
  row 2 j + i of a head in the file is row i size / 2 + j of the release.
  """
  part = name.split(".")[-2]
  counts = {"attn_q": "head_count", "attn_k": "head_count_kv"}
  if fields["general.architecture"] != "llama" or part not in counts:
    return None
  heads = fields[f"llama.attention.{counts[part]}"]
  rows = np.arange(shape[0]).reshape(heads, -1, 2)
  return rows.swapaxes(1, 2).reshape(-1)


def write_tokenizer(path: pathlib.Path, folder: pathlib.Path) -> None:
  """Writes the tokenizer and the chat template of a file, in released form.

  Raises ValueError for a kind of tokenizer that is not read.
  """
  import tokenizers as hf
  from tokenizers import decoders, models, normalizers, pre_tokenizers

  fields, _ = _open(path)
  field = lambda name, default=None: fields.get(
    f"tokenizer.ggml.{name}", default
  )
  kind, split = field("model"), field("pre", "default")
  if kind != "gpt2" or split not in SPLITS:
    raise ValueError(
      f"{path}: tokenizers of the kind {kind!r} with splits {split!r} are not "
      f"read, but 'gpt2' with {', '.join(SPLITS)}; give --tokenizer=DIRECTORY"
    )
  tokens, types = field("tokens"), field("token_type")
  merges = [tuple(merge.split(" ", 1)) for merge in field("merges")]
  split = SPLITS[split]
  model = models.BPE(
    {token: i for i, token in enumerate(tokens)},
    merges,
    ignore_merges=split == "llama-bpe",
  )
  made = hf.Tokenizer(model)
  bytes_of = functools.partial(pre_tokenizers.ByteLevel, add_prefix_space=False)
  if split in NUMBERS:
    pattern = WORDS.replace("NUMBERS", NUMBERS[split])
    made.pre_tokenizer = pre_tokenizers.Sequence(
      [
        pre_tokenizers.Split(hf.Regex(pattern), "isolated"),
        bytes_of(use_regex=False),
      ]
    )
  elif split == "digits":
    made.pre_tokenizer = pre_tokenizers.Sequence(
      [pre_tokenizers.Digits(individual_digits=True), bytes_of()]
    )
  else:
    made.pre_tokenizer = bytes_of()
  if split == "qwen2":
    made.normalizer = normalizers.NFC()
  made.decoder = decoders.ByteLevel()
  made.add_special_tokens(
    [
      hf.AddedToken(token, normalized=False, special=True)
      for token, type in zip(tokens, types)
      if type == CONTROL
    ]
  )
  made.add_tokens(
    [
      hf.AddedToken(token, normalized=False)
      for token, type in zip(tokens, types)
      if type == USER_DEFINED
    ]
  )
  made.save(str(folder / "tokenizer.json"))
  names = {
    f"{key}_token": tokens[number]
    for key in ("bos", "eos")
    if (number := field(f"{key}_token_id")) is not None
  }
  config = {"tokenizer_class": "PreTrainedTokenizerFast"} | names
  config["add_bos_token"] = bool(field("add_bos_token", False))
  if template := fields.get("tokenizer.chat_template"):
    config["chat_template"] = template
  write_json(folder / "tokenizer_config.json", config)


@functools.lru_cache(maxsize=2)
def _open(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """The fields and the tensors of a file, which stays mapped."""
  try:
    import gguf
  except ImportError:
    raise ValueError(
      f"{path} needs the package gguf; run: pip install 'r1jax[gguf]'"
    ) from None
  if not path.is_file():
    raise ValueError(f"{path} is no file")
  try:
    reader = gguf.GGUFReader(path)
  except Exception as error:  # It raises almost anything.
    raise ValueError(
      f"{path} is cut short or no GGUF ({error}); download it again"
    ) from None
  fields = {name: field.contents() for name, field in reader.fields.items()}
  return fields, {tensor.name: tensor for tensor in reader.tensors}
