"""Loading a model: dtypes, slices, shardings, errors."""

import json
import pathlib
import re
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import load_file, save_file
from trees import assert_same

from r1jax import hf
from r1jax.hf import config as configs
from r1jax.hf import layout, loading
from r1jax.hf.tensors import Stored, write
from r1jax.models.config import replace
from r1jax.models.presets import preset
from r1jax.models.weights import logical_axes
from r1jax.parallel import sharding
from r1jax.parallel.mesh import make_mesh
from r1jax.tools import convert
from r1jax.training import models

RELEASED = "model.safetensors"
CONFIG = preset("tiny_deepseek", num_layers=3)


@pytest.fixture
def v3(tmp_path, random_params):
  """A directory with a DeepSeek-V3 in it."""
  hf.save(tmp_path / "model", CONFIG, random_params(CONFIG))
  return tmp_path / "model"


def edit_tensors(directory, change, file=RELEASED):
  tensors = load_file(directory / file)
  change(tensors)
  save_file(tensors, directory / file)


SPELLINGS = [
  ("bfloat16", jnp.bfloat16),
  ("bfloat16", ml_dtypes.bfloat16),
  ("bfloat16", jnp.dtype("bfloat16")),
  ("float32", jnp.float32),
  ("float32", np.float32),
  ("float32", "f4"),
  ("float16", np.dtype(np.float16)),
]


@pytest.mark.parametrize(
  "name",
  [
    "model.layers.2.self_attn.rotary_emb.inv_freq",
    "model.layers.3.self_attn.rotary_emb.inv_freq",  # Of the MTP layer.
    "model.rotary_emb.inv_freq",
    "model.layers.0.self_attn.rotary_emb.cos_cached",
  ],
)
@pytest.mark.parametrize("mtp", [True, False])
def test_buffers_of_older_checkpoints_are_ignored(v3, name, mtp):
  expected = hf.load(v3, mtp=mtp)
  for dtype in (np.float32, np.int64):
    buffer = np.ones(2, dtype)
    edit_tensors(v3, lambda t, buffer=buffer: t.update({name: buffer}))
    config, params = hf.load(v3, mtp=mtp)
    assert config == expected[0]
    assert_same(params, expected[1])
  edit_tensors(
    v3, lambda t: t.update({name.replace("rotary", "other"): buffer})
  )
  with pytest.raises(ValueError, match="unknown tensor .*other_emb"):
    hf.load(v3)


def test_mtp_layers_are_dropped_on_request(v3):
  config, params = hf.load(v3)
  short, rest = hf.load(v3, mtp=False)
  assert short == replace(config, mtp_depth=0)
  assert_same(rest, {k: v for k, v in params.items() if k != "mtp"})


def test_an_announced_mtp_layer_without_tensors_is_dropped(v3):
  drop = lambda tensors: [
    tensors.pop(n) for n in [*tensors] if n.startswith("model.layers.3.")
  ]
  edit_tensors(v3, drop)
  config, params = hf.load(v3)
  assert config.mtp_depth == 0 and "mtp" not in params


def test_half_an_mtp_layer_is_an_error(v3):
  edit_tensors(v3, lambda tensors: tensors.pop("model.layers.3.hnorm.weight"))
  with pytest.raises(ValueError, match=r"layers\.3\.hnorm\.weight is missing"):
    hf.load(v3)


def test_progress_ends_at_the_total(v3, tmp_path):
  seen = []
  record = lambda done, total: seen.append((done, total))
  for place in (None, SingleDeviceSharding(jax.devices()[0])):
    seen.clear()
    config, params = hf.load(v3, sharding=place, progress=record)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert seen == sorted(seen) and seen[-1] == (size, size)
  seen.clear()
  hf.save(tmp_path / "b", config, params, progress=record)
  assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] > size


@pytest.mark.parametrize(("name", "dtype"), SPELLINGS)
def test_a_dtype_is_whatever_jax_takes_for_one(v3, tmp_path, name, dtype):
  config, params = hf.load(v3, dtype=dtype)
  assert params["embed"].dtype.name == name
  assert hf.open_model(v3, dtype=dtype)[1]["embed"].dtype.name == name
  hf.save(tmp_path / "b", config, params, dtype=dtype)
  assert configs.released(config, dtype=dtype)["torch_dtype"] == name
  settings = json.loads((tmp_path / "b/config.json").read_text())
  assert settings["torch_dtype"] == name
  begun, _ = models.load(
    "pretrained", path=str(v3), dtype=dtype, compute_dtype=dtype
  )
  assert begun.compute_dtype == name
  assert begun == replace(config, compute_dtype=name)


@pytest.mark.parametrize(
  "dtype", ["float8_e4m3fn", "float64", "int8", jnp.int32, None, "nonsense"]
)
def test_parameters_are_of_no_other_dtype(v3, dtype):
  with pytest.raises(ValueError, match="compute_dtype .* is none of float32"):
    preset("tiny_llama", compute_dtype=dtype)
  with pytest.raises(ValueError, match="dtype .* is none of float32"):
    hf.load(v3, dtype=dtype)


def test_a_file_is_converted_without_being_loaded(v3, tmp_path):
  hf.save(tmp_path / "b", *hf.open_model(v3, dtype="bfloat16"))
  config, params = hf.load(v3)
  hf.save(tmp_path / "c", config, params, dtype="bfloat16")
  one, other = (tmp_path / name / RELEASED for name in "bc")
  assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
  ("path", "command"),
  [
    ("DeepSeek-R1-Distill-Qwen-1.5B", "hf download OWNER/DeepSeek-R1-Distill"),
    ("Qwen/Qwen2.5-Math-7B", "hf download Qwen/Qwen2.5-Math-7B --local-dir"),
    ("/nowhere/models/mine", "hf download OWNER/mine --local-dir /nowhere"),
  ],
)
@pytest.mark.parametrize(
  "read",
  [
    configs.read,
    hf.load,
    hf.open_model,
    lambda path: models.load("pretrained", path=path),
    lambda path: models.architecture("pretrained", path=path),
    lambda path: convert.find(pathlib.Path(path), dtype=None, mtp=True),
  ],
)
def test_a_name_that_is_no_directory_says_how_to_download_it(
  read, path, command
):
  with pytest.raises(ValueError, match=f"{path} is no directory") as error:
    read(path)
  assert command in str(error.value) and "\n" not in str(error.value)


def test_a_file_is_not_a_directory(tmp_path):
  (tmp_path / "model.safetensors").write_bytes(b"")
  with pytest.raises(ValueError, match=r"model\.safetensors is a file"):
    hf.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("chunk", [loading.CHUNK, 90_000])
def test_a_process_reads_what_its_devices_hold_once(v3, monkeypatch, chunk):
  """Whatever the sharding is, in as many parts as host memory asks for."""
  monkeypatch.setattr(loading, "CHUNK", chunk)
  read, sizes = Stored.read, []

  def spy(self, index=()):
    part = read(self, index)
    sizes.append(part.size)
    return part

  monkeypatch.setattr(Stored, "read", spy)
  _, whole = hf.load(v3)
  once = sum(sizes)
  assert once == sum(leaf.size for leaf in jax.tree.leaves(whole))
  mesh = make_mesh(data=2, fsdp=2, expert=2)
  split = sharding.tree_shardings(mesh, logical_axes(CONFIG), whole)
  sizes.clear()
  held, read_part = [], loading.LazyArray.read

  def spy_part(self, *args):
    held.append(read_part(self, *args))
    return held[-1]

  monkeypatch.setattr(loading.LazyArray, "read", spy_part)
  with jax.set_mesh(mesh):
    _, params = hf.load(v3, sharding=split)
  assert max(part.nbytes for part in held) <= chunk
  jax.tree.map(np.testing.assert_array_equal, params, whole)
  assert sum(sizes) == once
  assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, params, split))
  assert not params["embed"].is_fully_replicated


class InMemory:
  """A tensor that is not in a file."""

  file = pathlib.Path("memory")

  def __init__(self, array):
    self.shape, self.dtype, self._array = array.shape, array.dtype, array

  def read(self, index):
    return self._array[index]


def test_any_source_of_named_tensors_can_be_read(v3, monkeypatch):
  expected = hf.load(v3)
  source = {
    name: InMemory(array) for name, array in load_file(v3 / RELEASED).items()
  }
  (v3 / RELEASED).unlink()
  monkeypatch.setattr(loading, "open_folder", lambda folder, block: source)
  config, params = hf.load(v3)
  assert config == expected[0]
  assert_same(params, expected[1])


def write_released_v3(directory, width, expert_width, block, **sizes):
  """DeepSeek-V3's tensors, narrower, with float8 projections as released."""
  config = preset(
    "deepseek_v3",
    vocab_size=32 * width,
    width=width,
    attention=dict(
      num_heads=16,
      q_rank=width // 4,
      kv_rank=width // 8,
      nope_size=16,
      rope_size=8,
      value_size=16,
    ),
    dense_width=2 * width,
    experts=dict(width=expert_width) | sizes.pop("experts", {}),
    **sizes,
  )
  directory.mkdir()
  settings = configs.released(config, dtype="bfloat16")
  settings["quantization_config"] = dict(
    quant_method="fp8", fmt="e4m3", weight_block_size=block
  )
  configs.write_json(directory / "config.json", settings)
  tensors = {}
  for name, pieces in layout.by_tensor(config).items():
    shape, dtype = pieces[0].shape, ml_dtypes.bfloat16
    if re.search(r"(self_attn|mlp).*_proj\S*\.weight$", name):
      scales = tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
      dtype = ml_dtypes.float8_e4m3fn
      tensors[name + "_scale_inv"] = jax.ShapeDtypeStruct(scales, np.float32)
    tensors[name] = jax.ShapeDtypeStruct(shape, dtype)

  def draw(name):
    """Random bits that are finite numbers in the dtype of the tensor."""
    like, rng = tensors[name], np.random.default_rng(zlib.crc32(name.encode()))
    if like.dtype == np.float32:
      return rng.random(like.shape, np.float32)
    size = like.dtype.itemsize
    bits = rng.integers(0, 2 ** (8 * size - 2), like.shape, f"uint{8 * size}")
    return bits.view(like.dtype)

  write(directory, tensors, draw, file_bytes=5e8)
  return config


FEWER = dict(num_layers=6, experts=dict(num_routed=16))


@pytest.mark.parametrize(
  "size, width, expert_width, block, sizes",
  [
    (1.7e6, 64, 16, (12, 20), FEWER),
    # All tensors of the released files, and a 200th of their 688 GB.
    pytest.param(688e9 / 200, 512, 144, (128, 128), {}, marks=pytest.mark.soak),
  ],
)
def test_a_released_v3_is_read_into_shards(
  tmp_path, size, width, expert_width, block, sizes
):
  made = write_released_v3(
    tmp_path / "model", width, expert_width, block, **sizes
  )
  files = sum(f.stat().st_size for f in (tmp_path / "model").glob("*.safe*"))
  assert files == pytest.approx(size, rel=0.1)
  config, arrays = hf.open_model(tmp_path / "model", dtype="bfloat16")
  assert config == replace(made, scan=config.scan, remat=config.remat)
  mesh = make_mesh(data=1, fsdp=2, expert=4)
  axes = logical_axes(config)
  placed = hf.read(arrays, sharding.tree_shardings(mesh, axes, arrays))
  for array, lazy in zip(jax.tree.leaves(placed), jax.tree.leaves(arrays)):
    whole = lazy[()]
    for shard in array.addressable_shards:
      part = np.asarray(shard.data)
      assert part.tobytes() == whole[shard.index].tobytes()
  experts = placed["moe"]["feed_forward"]["expert_gate_up"]
  assert experts.sharding.shard_shape(experts.shape)[1] * 4 == experts.shape[1]
