"""Saving a model, and loading it onto several devices."""

import hashlib
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from r1jax import hf
from r1jax.hf import layout
from r1jax.models.presets import preset

RELEASED = "model.safetensors"
V3 = preset("tiny_deepseek")
LLAMA = preset("tiny_llama")


@pytest.fixture
def v3(tmp_path, random_params):
  """A directory with a DeepSeek-V3 in it."""
  hf.save(tmp_path / "model", V3, random_params(V3))
  return tmp_path / "model"


def test_every_device_gets_its_part(v3):
  _, params = hf.load(v3)
  device = jax.devices()[0]
  one = jax.sharding.SingleDeviceSharding(device)
  for sharding in (one, jax.tree.map(lambda _: one, params)):
    _, placed = hf.load(v3, sharding=sharding)
    assert all(
      isinstance(leaf, jax.Array) and leaf.sharding == one
      for leaf in jax.tree.leaves(placed)
    )
    jax.tree.map(np.testing.assert_array_equal, placed, params)


SHARDED = """
import sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from r1jax import hf

mesh = jax.make_mesh((2, 2), ("x", "y"))
place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
source, target = sys.argv[1:]
config, whole = hf.load(source)
replicated = jax.tree.map(lambda leaf: place(), whole)
replicated["embed"] = place("x", "y")
replicated["unembed"] = place("y")
attention, moe = (replicated["moe"][x] for x in ("attention", "feed_forward"))
moe["expert_gate_up"] = place("x", "y", None, None)
moe["expert_down"] = place(None, "x", None, "y")
attention["kv_up"] = place(None, "x", None, None)
attention["out"] = place(None, None, None, ("x", "y"))
replicated["mtp"]["project"] = place(None, "x", "y")
_, params = hf.load(source, sharding=replicated)
for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(whole)):
  np.testing.assert_array_equal(np.asarray(one), other)
jax.tree.map(lambda leaf, s: (leaf.sharding == s) or 1 / 0, params, replicated)
hf.save(target, config, params)
"""


def test_a_model_over_four_devices_comes_back(tmp_path, python, random_params):
  config = preset("tiny_deepseek", num_layers=3)  # Two of them of experts.
  hf.save(tmp_path / "a", config, random_params(config))
  flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
  done = python(
    "-c",
    SHARDED,
    tmp_path / "a",
    tmp_path / "b",
    env=flags | {"JAX_PLATFORMS": "cpu"},
  )
  assert done.returncode == 0, done.stderr
  one, other = (tmp_path / name / RELEASED for name in "ab")
  assert one.read_bytes() == other.read_bytes()


def test_shards_hold_no_more_than_asked(tmp_path, random_params):
  config = V3
  hf.save(tmp_path / "model", config, random_params(config), file_bytes=300_000)
  index = json.loads((tmp_path / f"model/{RELEASED}.index.json").read_text())
  files = sorted({*index["weight_map"].values()})
  count = len(files)
  assert files == [
    f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)
  ]
  total = 0
  for file in files:
    tensors = load_file(tmp_path / "model" / file)
    assert {index["weight_map"][name] for name in tensors} == {file}
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size <= 300_000
    total += size
  assert index["metadata"] == {"total_size": total}
  assert index["weight_map"].keys() == layout.by_tensor(V3).keys()


def test_parameters_must_be_those_of_the_config(tmp_path, random_params):
  config = V3
  params = random_params(config)
  for change, name in (
    (dict(unembed=params["embed"]), r"unembed is \(512, 128\)"),
    (dict(surprise=params["embed"]), "surprise"),
    (dict(final_norm=None), r"final_norm.* is missing"),
  ):
    with pytest.raises(ValueError, match=name):
      hf.save(tmp_path / "model", config, params | change)
  assert not any(tmp_path.iterdir())


def test_a_model_replaces_only_a_model(v3, tmp_path, random_params):
  config = LLAMA
  hf.save(v3, config, random_params(config))
  assert hf.load(v3)[0] == config
  assert [path.name for path in tmp_path.iterdir()] == ["model"]
  run = tmp_path / "run"
  run.mkdir()
  (run / "config.json").write_text('{"loop": "grpo"}')
  with pytest.raises(ValueError, match="is not the directory of a model"):
    hf.save(run, config, random_params(config))
  assert [path.name for path in run.iterdir()] == ["config.json"]


def test_a_failed_save_leaves_the_old_model(v3, tmp_path, random_params):
  before = {path.name: path.read_bytes() for path in v3.iterdir()}
  config = LLAMA

  def stop(done, total):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    hf.save(v3, config, random_params(config), progress=stop)
  assert {path.name: path.read_bytes() for path in v3.iterdir()} == before
  assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_tokenizer_and_provenance_are_saved_with_the_weights(
  tmp_path, random_params
):
  words = tmp_path / "words"
  words.mkdir()
  (words / "tokenizer.json").write_text(
    json.dumps(
      {
        "added_tokens": [
          {"id": 7, "content": "<s>"},
          {"id": 9, "content": "</s>"},
        ]
      }
    )
  )
  (words / "tokenizer_config.json").write_text(
    json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
  )
  (words / "chat_template.jinja").write_text("{{ messages }}")
  (words / "tokenizer.tmp").write_text("half")
  config = LLAMA
  hf.save(
    tmp_path / "model",
    config,
    random_params(config),
    tokenizer=words,
    provenance=dict(step=3),
  )
  assert {path.name for path in (tmp_path / "model").iterdir()} == {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "provenance.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
  }
  read = lambda name: json.loads((tmp_path / "model" / name).read_text())
  tokens = dict(bos_token_id=7, eos_token_id=9)
  assert read("config.json").items() >= tokens.items()
  assert read("generation_config.json").items() >= tokens.items()
  digest = hashlib.sha256((tmp_path / "model" / RELEASED).read_bytes())
  assert read("provenance.json") == {
    "model.safetensors sha256": digest.hexdigest(),
    "step": 3,
  }
  # From there they go on, several EOS and all.
  said = dict(temperature=0.6, eos_token_id=[9, 8])
  (tmp_path / "model/generation_config.json").write_text(json.dumps(said))
  settings = read("config.json") | dict(eos_token_id=None)
  (tmp_path / "model/config.json").write_text(json.dumps(settings))
  hf.save(
    tmp_path / "b", config, random_params(config), tokenizer=tmp_path / "model"
  )
  read = lambda name: json.loads((tmp_path / "b" / name).read_text())
  assert read("generation_config.json") == said
  assert read("config.json")["eos_token_id"] == [9, 8]


def test_a_directory_without_a_tokenizer_is_refused(tmp_path, random_params):
  config = LLAMA
  with pytest.raises(ValueError, match="holds no tokenizer.json"):
    hf.save(tmp_path / "b", config, random_params(config), tokenizer=tmp_path)
  assert not any(tmp_path.iterdir())
