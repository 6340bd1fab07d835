"""Fixtures that tests of several rooms use."""

import json
import os
import pathlib
import signal
import subprocess
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # Golden numbers are the CPU's.
os.environ.setdefault("MPLBACKEND", "Agg")
# Most programs run once here: to compile them is what takes the time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import pytest

# Eight devices, of which most tests use one: `make_mesh(data=1)`.
jax.config.update("jax_num_cpu_devices", 8)

# A busy machine may be slow, which is not an error.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

ROOT = pathlib.Path(__file__).parent.parent
# Folders of tests that take long.
LONG = ("training", "models", "ops", "rollouts", "parallel")


def pytest_collection_modifyitems(items):
  """Runs long tests first, so that no worker waits for one at the end."""
  items.sort(key=lambda item: item.path.parent.name not in LONG)


@pytest.fixture
def without_nohup():
  """SIGHUP is as in a terminal, even where the tests run under nohup."""
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  yield
  signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True)
def optimize_if_marked(request):
  """Compiles as in a run for tests that are marked `optimized`."""
  if not request.node.get_closest_marker("optimized"):
    yield
    return
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def random_params():
  """`random_params(sizes)`: initial parameters of a model, from NumPy."""

  def make(sizes, seed=0):
    import jax
    import numpy as np

    from r1jax.models.weights import is_matrix, weights

    rng = np.random.default_rng(seed)

    def draw(path, weight):
      if is_matrix(path):
        numbers = rng.normal(0, sizes.init_scale, weight.shape)
      else:
        numbers = np.full(weight.shape, path[-1].key == "scale")
      return numbers.astype(np.float32)

    return jax.tree.map_with_path(draw, weights(sizes))

  return make


@pytest.fixture(scope="session")
def draw_params():
  """`draw_params(config, seed)`: random weights, none of them 0.

  Norms have scales other than 1 and biases other than 0.
  """

  def make(config, seed):
    import numpy as np

    from r1jax.models.weights import weights

    rng = np.random.default_rng(seed)

    def draw(path, weight):
      name = path[-1].key
      centre = 1.0 if name == "scale" else 0.0
      spread = 0.1 if name.endswith("bias") else 0.25
      return rng.normal(centre, spread, weight.shape).astype(np.float32)

    return jax.tree.map_with_path(draw, weights(config))

  return make


@pytest.fixture(scope="session")
def write_tokenizer():
  """Writes a byte-level Hugging Face tokenizer that knows R1-Zero's template.

  `write_tokenizer(directory, eos="<eos>")` returns the directory. "<eos>" is
  the only special token, even if `eos` names another.
  """

  def write(directory, eos="<eos>"):
    import tokenizers

    from r1jax.data.templates import R1_ZERO

    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = byte_level
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=480,
      special_tokens=["<eos>"],
      initial_alphabet=byte_level.alphabet(),
      show_progress=False,
    )
    model.train_from_iterator([R1_ZERO] * 9, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    model.save(str(directory / "tokenizer.json"))
    config = directory / "tokenizer_config.json"
    config.write_text(json.dumps(dict(eos_token=eos)))
    return directory

  return write


@pytest.fixture
def python():
  """Runs Python in the repository: `python("-m", "r1jax", "train", ...)`."""

  def run(*arguments, env=None, timeout=120, cwd=ROOT):
    return subprocess.run(
      [sys.executable, *map(str, arguments)],
      cwd=cwd,
      env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=timeout,
      check=False,
    )

  return run
