"""Several processes are one run: they compute, fail, stop and resume as one."""

import importlib.util
import pathlib

import jax
import pytest

from r1jax import checkpoint
from r1jax.data import tokenizer
from r1jax.models import convert
from r1jax.models.presets import preset


def beside(name):
  """A module of this folder, which is no package."""
  path = pathlib.Path(__file__).parent / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


job = beside("job")
pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def command(random_params, tmp_path_factory):
  """A run of as small a model as there is."""
  folder = tmp_path_factory.mktemp("job")
  config = preset(
    "tiny_qwen2", vocab_size=40, width=16, num_layers=1, dense_width=16
  )
  path = folder / "words" / "tokenizer.model"
  tokenizer.fit(["abcdefgh 0123456789?\n"] * 3, path, word_share=1.0)
  convert.save(
    folder / "base",
    config,
    random_params(config),
    tokenizer=path.parent,
    provenance={},
  )
  return job.write(folder, str(folder / "base"))


@pytest.fixture(scope="module")
def run(command, tmp_path_factory):
  """`run(processes, devices, workdir, *flags)`: a job, from start to end."""
  cache = str(tmp_path_factory.mktemp("xla"))

  def run(processes, devices, workdir, *flags, **env):
    env = (
      dict(
        JAX_COMPILATION_CACHE_DIR=cache, JAX_DISABLE_MOST_OPTIMIZATIONS="true"
      )
      | env
    )
    flags = [f"--workdir={workdir}", *flags]
    return job.finish(job.start([*command, *flags], processes, devices, **env))

  return run


def succeeded(ended):
  for code, _, errors in ended:
    assert code == 0, errors[-3000:]
  return ended


def assert_same_params(one, other):
  one, other = checkpoint.load_params(one), checkpoint.load_params(other)
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
    assert a.tobytes() == b.tobytes()


def test_two_processes_are_one_bit_for_bit(run, tmp_path):
  alone, together = tmp_path / "alone", tmp_path / "together"
  succeeded(run(1, 2, alone, "--config.num_steps=2"))
  _, (_, said, _) = succeeded(run(2, 1, together, "--config.num_steps=2"))
  assert job.rows(together) == job.rows(alone)
  assert_same_params(together, alone)
  completions = "completions.jsonl"
  assert (together / completions).read_bytes() == (
    alone / completions
  ).read_bytes()
  assert "report" not in said, "only the first host reports"
