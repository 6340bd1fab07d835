"""`python -m r1jax convert` on directories, on runs, and on neither."""

import json

import jax
import numpy as np
import pytest

from benchmarks import loading
from r1jax import hf
from r1jax.models.presets import preset
from r1jax.runtime import checkpoint
from r1jax.runtime.workdir import claim
from r1jax.tools import convert

CONFIG = preset("tiny_deepseek", vocab_size=480)


@pytest.fixture
def params(random_params):
  return random_params(CONFIG)


@pytest.fixture
def words(tmp_path, write_tokenizer):
  return write_tokenizer(tmp_path / "words")


def run_of(tmp_path, loop, tree, **config):
  """The workdir of a run that saved `tree`."""
  workdir = tmp_path / "run"
  claim(workdir, dict(loop=loop, **config))
  checkpoint.save(workdir, 7, tree)
  return workdir


def assert_same(directory, config, params):
  found, read = hf.load(directory)
  assert found == config
  jax.tree.map(np.testing.assert_array_equal, read, params)
  assert jax.tree.structure(read) == jax.tree.structure(params)


def provenance(directory):
  return json.loads((directory / "provenance.json").read_text())


def test_a_directory_becomes_one_of_another_dtype(
  tmp_path, params, words, python
):
  source, target = tmp_path / "a", tmp_path / "b"
  hf.save(source, CONFIG, params, tokenizer=words, provenance=dict(step=3))
  done = python(
    "-m",
    "r1jax",
    "convert",
    f"--source={source}",
    f"--target={target}",
    "--dtype=bfloat16",
    "--shard_gigabytes=0.001",
    "--nomtp",
  )
  assert done.returncode == 0, done.stderr
  said, *_, last = done.stdout.splitlines()
  assert "DeepseekV3ForCausalLM" in said and "parameters" in said
  assert "of bfloat16, with a tokenizer" in last
  assert (target / "tokenizer.json").exists()
  assert (target / "model.safetensors.index.json").exists()
  assert provenance(target)["step"] == 3
  assert len(provenance(target)) == 1 + len([*target.glob("*.safetensors")])
  config, read = hf.load(target, dtype="bfloat16")
  assert config.mtp_depth == 0
  read, params = (x["moe"]["attention"]["out"] for x in (read, params))
  np.testing.assert_array_equal(read, params.astype(read.dtype))


def test_the_dtype_is_that_of_the_source_unless_another_is_asked(
  tmp_path, params
):
  for dtype in ("float32", "bfloat16"):
    hf.save(tmp_path / "a", CONFIG, params, dtype=dtype)
    source = convert.find(tmp_path / "a", dtype=None, mtp=True)
    assert source.params["embed"].dtype.name == dtype


def test_a_supervised_run_becomes_a_directory(tmp_path, params, words):
  workdir = run_of(
    tmp_path,
    "sft",
    dict(params=params, step=7),
    model=dict(
      name="fresh", preset_name="tiny_deepseek", vocab_size=480, seed=0
    ),
  )
  (words).rename(workdir / "tokenizer")
  source = convert.find(workdir, dtype=None, mtp=True)
  assert source.tokenizer == workdir / "tokenizer"
  assert source.provenance["step"] == 7
  assert source.provenance["config"]["loop"] == "sft"
  hf.save(tmp_path / "model", source.config, source.params)
  assert_same(tmp_path / "model", CONFIG, params)


@pytest.mark.parametrize("begun", ["pretrained", "fresh"])
def test_a_run_of_reinforcement_becomes_a_directory(
  begun, tmp_path, params, words, python
):
  hf.save(tmp_path / "base", CONFIG, params)
  model = dict(
    pretrained=dict(path=str(tmp_path / "base")),
    fresh=dict(preset_name="tiny_deepseek", vocab_size=480, seed=0),
  )[begun]
  learned = jax.tree.map(lambda leaf: leaf + 1, params)
  workdir = run_of(
    tmp_path,
    "grpo",
    dict(train=dict(params=learned), reference=params),
    model=dict(name=begun, **model),
    tokenizer=dict(path=str(words)),
  )
  done = python(
    "-m",
    "r1jax",
    "convert",
    f"--source={workdir}",
    f"--target={tmp_path / 'model'}",
  )
  assert done.returncode == 0, done.stderr
  assert_same(tmp_path / "model", CONFIG, learned)
  assert (tmp_path / "model/tokenizer.json").exists()
  assert provenance(tmp_path / "model")["step"] == 7


def test_what_cannot_be_converted_is_said(tmp_path, params):
  hf.save(tmp_path / "model", CONFIG, params)
  (tmp_path / "model/model.safetensors").write_bytes(b"short")
  (tmp_path / "empty").mkdir()
  run_of(tmp_path, "measure", dict(params=params))
  for name, text in (
    ("model", "cut short"),
    ("empty", "neither the workdir of a run"),
    ("run", "'measure'"),
  ):
    with pytest.raises(ValueError, match=text):
      convert.find(tmp_path / name, dtype=None, mtp=True)


def test_an_error_is_one_line_unless_it_is_debugged(tmp_path, python):
  flags = f"--source={tmp_path}", f"--target={tmp_path / 'new'}"
  done = python("-m", "r1jax", "convert", *flags)
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: {tmp_path} is neither")
  assert len(done.stderr.splitlines()) == 1
  done = python("-m", "r1jax", "convert", flags[1], "--debug")
  assert done.returncode == 2
  assert "Traceback" in done.stderr
  assert done.stderr.splitlines()[-1].startswith("error: --source is not set")


def test_the_rate_of_loading_is_beside_that_of_copying():
  rate = loading.load_rate(preset("tiny_deepseek"), repeats=1)
  assert rate["bytes"] > 1_000_000
  copied, loaded = rate["copy_bytes_per_second"], rate["load_bytes_per_second"]
  np.testing.assert_allclose(rate["ratio"], loaded / copied)
