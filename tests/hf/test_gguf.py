"""GGUF files: config, tensors and tokenizer, as released files have them."""

import pathlib

import jax
import numpy as np
import pytest

from r1jax import hf
from r1jax.data import tokenizer as tokenizers
from r1jax.hf import gguf_files
from r1jax.models.presets import preset
from r1jax.tools import convert

gguf = pytest.importorskip("gguf")
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
OUTER = {value: key for key, value in gguf_files.OUTER.items()}
INNER = {value: key for key, value in gguf_files.INNER.items()}
TEXT = "Hello, world! It's 1234 o'clock.\n\n  你好 <|end|> naïve"


def config_of(family):
  """A tiny model whose rows are as long as a block of 32 numbers needs."""
  return preset(
    f"tiny_{family}",
    vocab_size=300,
    width=64,
    num_layers=2,
    dense_width=96,
    attention=dict(num_heads=4, num_kv_heads=2, head_size=16),
    rope_scaling=None,
  )


def vocabulary():
  """Byte-level tokens, some merges and two special tokens."""
  from r1jax.tools.serve.pieces import byte_characters

  tokens = sorted(byte_characters())
  merges = ["l l", "H e", "ll o", "He llo", "o r", "Ġ w", "1 2", "3 4"]
  tokens += [merge.replace(" ", "") for merge in merges]
  special = ["<|end|>", "<|user|>"]
  tokens += special + [f"[{i}]" for i in range(300 - len(tokens) - 2)]
  types = [3 if token in special else 1 for token in tokens]
  return tokens, types, merges


def write(path, family, config, params, kind="F32", pre="qwen2", **changes):
  """Writes released tensors as llama.cpp's converter does."""
  folder = path.parent / "released"
  hf.save(folder, config, params)
  from safetensors.numpy import load_file

  released = load_file(folder / "model.safetensors")
  name = "llama" if family == "llama" else "qwen2"
  a = config.attention
  values = {
    "embedding_length": config.width,
    "block_count": config.num_layers,
    "feed_forward_length": config.dense_width,
    "attention.head_count": a.num_heads,
    "attention.head_count_kv": a.num_kv_heads,
    "context_length": config.max_length,
  } | changes
  writer = gguf.GGUFWriter(path, values.pop("architecture", name))
  for key, value in values.items():
    if isinstance(value, str):
      writer.add_string(f"{name}.{key}", value)
    elif value is not None:
      writer.add_uint32(f"{name}.{key}", value)
  writer.add_float32(
    f"{name}.attention.layer_norm_rms_epsilon", config.norm_epsilon
  )
  writer.add_float32(f"{name}.rope.freq_base", config.rope_theta)
  tokens, types, merges = vocabulary()
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(tokens)
  writer.add_token_types(types)
  writer.add_token_merges(merges)
  writer.add_eos_token_id(tokens.index("<|end|>"))
  writer.add_chat_template("{{ messages[0].content }}<|user|>")
  quantised = gguf.GGMLQuantizationType[kind]
  for tensor, value in released.items():
    if tensor in OUTER:
      target = OUTER[tensor]
    else:
      _, _, layer, rest = tensor.split(".", 3)
      part, _, ending = rest.rpartition(".")
      target = f"blk.{layer}.{INNER[part]}.{ending}"
      heads = {"attn_q": a.num_heads, "attn_k": a.num_kv_heads}
      if family == "llama" and INNER[part] in heads:
        # As the converter permutes: halves of a head become neighbours.
        shape = (heads[INNER[part]], 2, a.head_size // 2, -1)
        value = value.reshape(shape).swapaxes(1, 2).reshape(value.shape)
    if value.ndim == 2 and kind != "F32":
      writer.add_tensor(
        target,
        gguf.quants.quantize(value, quantised),
        raw_dtype=quantised,
      )
    else:
      writer.add_tensor(target, value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture(scope="module")
def make(tmp_path_factory, random_params):
  def make(family="llama", **options):
    config = config_of(family)
    params = random_params(config)
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    return config, params, write(path, family, config, params, **options)

  return make


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_file_holds_the_released_model(make, family):
  config, params, path = make(family)
  found, loaded = hf.load(path)
  assert found == config
  jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_quantised_tensors_are_near_the_exact_ones(make, kind):
  """As near as the bits of the kind allow, and not exactly equal."""
  _, params, path = make(kind=kind)
  _, loaded = hf.load(path)
  steps = {"F16": 1e-3, "BF16": 8e-3, "Q8_0": 8e-3}
  step = steps.get(kind, 0.07 if "5" in kind else 0.14)

  def near(one, other):
    error = np.abs(one - other).max()
    assert error <= step * np.abs(other).max()
    return error

  errors = jax.tree.leaves(jax.tree.map(near, loaded, params))
  assert max(errors) > 0


def test_a_part_of_a_tensor_is_read_alone(make):
  _, _, path = make(kind="Q4_0")
  for name in ("model.layers.1.self_attn.q_proj.weight", "lm_head.weight"):
    tensor = gguf_files.open_file(path)[name]
    whole = tensor.read(tuple(slice(0, n) for n in tensor.shape))
    part = tensor.read((slice(3, 21), slice(5, 40)))
    np.testing.assert_array_equal(part, whole[3:21, 5:40])


@pytest.mark.parametrize("pre", [*gguf_files.SPLITS])
def test_its_tokenizer_spells_any_text(make, tmp_path, pre):
  _, _, path = make(pre=pre)
  gguf_files.write_tokenizer(path, tmp_path)
  tokenizer = tokenizers.load(str(tmp_path))
  tokens, _, _ = vocabulary()
  ids = tokenizer.encode("Hello 1234")
  split = {"qwen2": list("1234"), "digits": list("1234")}.get(
    gguf_files.SPLITS[pre], ["12", "34"] if "llama" not in pre else None
  )
  names = [tokens[i] for i in ids]
  assert names[0] == "Hello"
  if split:
    assert names[-len(split) :] == split
  assert tokenizer.eos_ids == (tokens.index("<|end|>"),)
  plain = TEXT.replace("<|end|>", "")
  assert tokenizer.decode(tokenizer.encode(plain)) == plain
  assert "<|user|>" in tokenizer.chat_template


def test_convert_writes_it_in_hugging_face_layout(make, tmp_path):
  config, params, path = make("qwen2")
  source = convert.find(path, dtype=None, mtp=True)
  target = tmp_path / "model"
  hf.save(target, source.config, source.params, tokenizer=source.tokenizer)
  found, loaded = hf.load(target)
  assert found == config
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  assert tokenizers.load(str(target)).encode("Hello")
  assert hf.content_hash(path) != hf.content_hash(target)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(architecture="mamba"), "architecture 'mamba'; read are llama, qwen2"),
    ({"block_count": None}, "has no key llama.block_count"),
    ({"rope.scaling.type": "yarn"}, "rope.scaling.type 'yarn' is not read"),
  ],
)
def test_what_is_not_read_is_named(make, options, message):
  *_, path = make(**options)
  with pytest.raises(ValueError, match=message):
    hf.load(path)


def test_another_tokenizer_is_named(make, tmp_path):
  *_, path = make(pre="tekken")
  with pytest.raises(ValueError, match="'tekken' are not read"):
    gguf_files.write_tokenizer(path, tmp_path)


def test_a_file_that_is_none_is_named(make, tmp_path):
  broken = tmp_path / "broken.gguf"
  broken.write_bytes(b"GGUF" + bytes(20))
  with pytest.raises(ValueError, match="cut short or no GGUF"):
    hf.load(broken)
  with pytest.raises(ValueError, match="nothing.gguf is no file"):
    hf.load(pathlib.Path("nothing.gguf"))
