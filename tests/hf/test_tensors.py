"""Damaged files, and float8."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from r1jax import hf
from r1jax.hf import arrays
from r1jax.hf.tensors import stored
from r1jax.models.presets import preset

RELEASED = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = preset("tiny_deepseek", num_layers=2)
EXPERT = "model.layers.1.mlp.experts.4.up_proj.weight"


@pytest.fixture
def saved(tmp_path, random_params):
  """A directory with a model in one file."""
  hf.save(tmp_path / "model", CONFIG, random_params(CONFIG))
  return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path, random_params):
  """A directory with a model in several files."""
  hf.save(tmp_path / "model", CONFIG, random_params(CONFIG), file_bytes=500_000)
  return tmp_path / "model"


def edit_tensors(directory, change, file=RELEASED):
  tensors = {  # The library reads no float8 into NumPy.
    name: np.array(tensor.read())
    for name, tensor in stored(directory / file).items()
  }
  change(tensors)
  save_file(tensors, directory / file)


def assert_refused(directory, *texts):
  """Asserts that loading fails with one line that contains all `texts`."""
  with pytest.raises(ValueError) as error:
    hf.load(directory)
  for text in texts:
    assert text in str(error.value)
  assert "\n" not in str(error.value)


def test_a_missing_tensor_is_named(saved):
  edit_tensors(saved, lambda tensors: tensors.pop(EXPERT))
  assert_refused(saved, f"{EXPERT} is missing from {saved}", "(32, 128)")


def test_a_tensor_too_many_is_named(saved):
  extra = np.zeros(3, np.float32)
  edit_tensors(saved, lambda tensors: tensors.update(surprise=extra))
  assert_refused(saved, "unknown tensor surprise", RELEASED)


@pytest.mark.parametrize("name", ["self_attn.q_proj.weight", "mlp.gate.bias"])
def test_a_tensor_of_another_architecture_is_named(saved, name):
  name = f"model.layers.0.{name}"
  edit_tensors(
    saved, lambda tensors: tensors.update({name: np.zeros(3, np.float32)})
  )
  assert_refused(saved, name)


def test_a_tensor_of_another_shape_is_named(saved):
  wrong = np.zeros((128, 32), np.float32)  # Transposed.
  edit_tensors(saved, lambda tensors: tensors.update({EXPERT: wrong}))
  assert_refused(
    saved, f"{EXPERT} in {saved / RELEASED} is (128, 32), not (32, 128)"
  )


def test_a_tensor_that_holds_no_floats_is_named(saved):
  whole = np.zeros((32, 128), np.int32)
  edit_tensors(saved, lambda tensors: tensors.update({EXPERT: whole}))
  assert_refused(saved, EXPERT, "int32")


@pytest.mark.parametrize("kept", [0, 5, 100, -1, -1000])
def test_a_shard_cut_short_is_named(sharded, kept):
  file = (
    sharded / json.loads((sharded / INDEX).read_text())["weight_map"][EXPERT]
  )
  content = file.read_bytes()
  file.write_bytes(content[: kept if kept >= 0 else len(content) + kept])
  assert_refused(sharded, str(file), "download it again")


def test_a_shard_with_something_behind_it_is_named(saved):
  with open(saved / RELEASED, "ab") as stream:
    stream.write(b"more")
  assert_refused(saved, str(saved / RELEASED), "download it again")


@pytest.mark.parametrize(
  "header",
  [
    b"not JSON",
    b"[]",
    b'{"x": {"dtype": "F32", "shape": [2]}}',
    b'{"x": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}}',
    b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": ["0", 8]}}',
    b'{"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
    b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}',
    b'{"x": 3}',
  ],
)
def test_a_broken_header_raises_a_value_error(saved, header):
  body = len(header).to_bytes(8, "little") + header + bytes(8)
  (saved / RELEASED).write_bytes(body)
  assert_refused(saved, str(saved / RELEASED))


def test_a_shard_that_is_not_there_is_named(sharded):
  index = json.loads((sharded / INDEX).read_text())["weight_map"]
  (sharded / index[EXPERT]).unlink()
  assert_refused(sharded, index[EXPERT], "is missing", "download it")


def test_a_tensor_that_is_not_where_the_index_says_is_named(sharded):
  index = json.loads((sharded / INDEX).read_text())
  other = next(
    f for f in index["weight_map"].values() if f != index["weight_map"][EXPERT]
  )
  index["weight_map"][EXPERT] = other
  (sharded / INDEX).write_text(json.dumps(index))
  assert_refused(sharded, EXPERT, other)


def test_an_index_may_not_name_files_elsewhere(sharded):
  index = json.loads((sharded / INDEX).read_text())
  index["weight_map"][EXPERT] = "../other/model.safetensors"
  (sharded / INDEX).write_text(json.dumps(index))
  assert_refused(sharded, "is not a file name")


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_named(sharded, content):
  (sharded / INDEX).write_text(content)
  assert_refused(sharded, str(sharded / INDEX))


def test_a_tensor_in_two_shards_is_named(sharded):
  index = json.loads((sharded / INDEX).read_text())["weight_map"]
  tensor = load_file(sharded / index[EXPERT])[EXPERT]
  other = next(file for file in index.values() if file != index[EXPERT])
  edit_tensors(sharded, lambda tensors: tensors.update({EXPERT: tensor}), other)
  assert_refused(sharded, EXPERT, other, index[EXPERT])


def test_a_directory_without_weights_is_named(saved):
  (saved / RELEASED).unlink()
  assert_refused(saved, str(saved), RELEASED, INDEX)


def test_other_readers_read_what_we_write(sharded):
  index = json.loads((sharded / INDEX).read_text())["weight_map"]
  for name, file in index.items():
    with safe_open(sharded / file, "numpy") as theirs:
      assert theirs.metadata() == {"format": "pt"}
      np.testing.assert_array_equal(
        theirs.get_tensor(name), stored(sharded / file)[name].read()
      )


# DeepSeek-V3's README_WEIGHTS.md: a weight is its block's scale times what is
# stored; blocks at the lower and the right edge are smaller.
BLOCK = (12, 20)


def quantise(weight):
  """Float8 values, and the scale of each block."""
  rows, columns = weight.shape
  stored = np.zeros(weight.shape, ml_dtypes.float8_e4m3fn)
  scales = np.zeros((-(-rows // BLOCK[0]), -(-columns // BLOCK[1])), np.float32)
  for i, j in np.ndindex(scales.shape):
    at = (
      slice(i * BLOCK[0], (i + 1) * BLOCK[0]),
      slice(j * BLOCK[1], (j + 1) * BLOCK[1]),
    )
    scales[i, j] = np.abs(weight[at]).max() / 448
    stored[at] = (weight[at] / scales[i, j]).astype(stored.dtype)
  return stored, scales


def dequantise(stored, scales):
  weight = np.zeros(stored.shape, np.float32)
  for i, j in np.ndindex(stored.shape):
    scale = scales[i // BLOCK[0], j // BLOCK[1]]
    weight[i, j] = np.float32(stored[i, j]) * scale
  return weight


@pytest.fixture
def float8(saved):
  """A model with float8 projections, and their dequantised values."""
  tensors = load_file(saved / RELEASED)
  plain = dict(tensors)
  for name, array in plain.items():
    if re.search(r"(self_attn|mlp).*_proj\S*\.weight$", name):
      tensors[name], tensors[name + "_scale_inv"] = quantise(array)
      plain[name] = dequantise(tensors[name], tensors[name + "_scale_inv"])
  save_file(tensors, saved / RELEASED)
  said = dict(quant_method="fp8", fmt="e4m3", weight_block_size=BLOCK) | dict(
    activation_scheme="dynamic"
  )
  settings = json.loads((saved / "config.json").read_text())
  text = json.dumps(settings | {"quantization_config": said})
  (saved / "config.json").write_text(text)
  return saved, plain


def test_float8_is_scaled_by_its_blocks(float8, tmp_path, monkeypatch):
  monkeypatch.setattr(arrays, "JOB", 700)  # No multiple of a block's rows.
  directory, plain = float8
  hf.save(tmp_path / "b", *hf.open_model(directory, dtype="bfloat16"))
  found = load_file(tmp_path / "b" / RELEASED)
  assert found.keys() == plain.keys()
  assert "quantization_config" not in (tmp_path / "b/config.json").read_text()
  for name, array in plain.items():
    kind = np.float32 if name.endswith("_bias") else ml_dtypes.bfloat16
    assert found[name].dtype == kind
    np.testing.assert_array_equal(found[name], array.astype(kind))


def test_a_slice_of_float8_is_a_slice_of_the_whole(float8):
  directory, _ = float8
  _, lazy = hf.open_model(directory)
  _, params = hf.load(directory)
  part = (0, slice(1, 7), slice(5, 90), slice(1, 2), slice(3, 50))
  array, whole = (
    tree["moe"]["feed_forward"]["expert_gate_up"] for tree in (lazy, params)
  )
  np.testing.assert_array_equal(array[part], whole[part])
  part = (slice(0, 1), slice(1, 3), slice(7, 19), slice(50, 99))
  array, whole = (tree["moe"]["attention"]["out"] for tree in (lazy, params))
  np.testing.assert_array_equal(array[part], whole[part])


def test_float8_without_its_scales_is_an_error(float8):
  directory, _ = float8
  edit_tensors(directory, lambda tensors: tensors.pop(EXPERT + "_scale_inv"))
  assert_refused(directory, EXPERT + "_scale_inv", "is missing")


def test_float8_with_too_few_scales_is_an_error(float8):
  directory, _ = float8
  scales = np.ones((2, 7), np.float32)
  edit_tensors(
    directory, lambda tensors: tensors.update({EXPERT + "_scale_inv": scales})
  )
  assert_refused(
    directory, EXPERT + "_scale_inv", "float32[2, 7], not float32[3, 7]"
  )


def test_float8_that_the_config_does_not_know_of_is_an_error(float8):
  directory, _ = float8
  settings = json.loads((directory / "config.json").read_text())
  del settings["quantization_config"]
  (directory / "config.json").write_text(json.dumps(settings))
  assert_refused(directory, "is float8", "quantization_config")
