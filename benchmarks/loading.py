"""The rate of loading a checkpoint, compared with copying its tensors.

    python -m benchmarks.loading

It writes a toy model in bfloat16, in shards, to a temporary directory. With the
shards in the page cache, it loads the model in bfloat16, and copies every
tensor of the shards into fresh memory. It prints JSON with both rates (bytes
per second), their ratio, and the peak memory of loading beyond the parameters.
"""

import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import jax
import ml_dtypes
import numpy as np

from r1jax import hf
from r1jax.hf.tensors import open_folder
from r1jax.models.config import ModelConfig
from r1jax.models.presets import preset
from r1jax.models.weights import is_router_bias, weights

# Models of about a gigabyte, with layers like those of the published models.
TOYS = {
  "qwen2": preset(
    "qwen2.5-math-7b", num_layers=2, vocab_size=16_384, max_length=4096
  ),
  "deepseek_v3": preset(
    "deepseek_v3",
    width=3584,
    num_layers=3,
    attention=dict(num_heads=32),
    dense_width=9216,
    vocab_size=16_384,
    experts=dict(
      num_routed=16,
      num_dense_layers=1,
      width=1024,
      num_groups=1,
      groups_per_token=1,
    ),
    mtp_depth=0,
  ),
}


def load_rate(config: ModelConfig, *, repeats: int = 3) -> dict[str, Any]:
  """Both rates, each the best of `repeats`, and the peak memory of loading."""
  with tempfile.TemporaryDirectory() as folder:
    directory = pathlib.Path(folder) / "model"
    hf.save(directory, config, _random(config), file_bytes=5e8)
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    copied, loaded, peaks = [], [], []
    for _ in range(repeats):  # In turns, so that both see the same load.
      copied.append(_seconds(lambda: _copy(directory)))
      before = _reset_peak()
      loaded.append(_seconds(lambda: hf.load(directory, dtype="bfloat16")))
      peaks.append(_memory("VmHWM") - before)
  return {
    "bytes": size,
    "copy_bytes_per_second": size / min(copied),
    "load_bytes_per_second": size / min(loaded),
    "ratio": min(copied) / min(loaded),
    "peak_bytes": max(peaks),
    "peak_beyond_parameters": max(peaks) - size,
  }


def _random(config: ModelConfig):
  """Random parameters in bfloat16; the balancing biases are float32."""
  rng = np.random.default_rng(0)

  def draw(path, weight):
    numbers = rng.standard_normal(weight.shape, np.float32)
    bias = is_router_bias(path)
    return numbers if bias else numbers.astype(ml_dtypes.bfloat16)

  return jax.tree.map_with_path(draw, weights(config))


def _copy(directory: pathlib.Path) -> dict[str, np.ndarray]:
  """A copy of every tensor."""
  return {
    name: np.array(tensor.read().view(f"u{tensor.dtype.itemsize}"))
    for name, tensor in open_folder(directory).items()
  }


def _seconds(work) -> float:
  began = time.perf_counter()
  result = work()
  seconds = time.perf_counter() - began
  del result
  return seconds


def _memory(field: str) -> int:
  """A field of /proc/self/status in bytes; 0 if the file does not exist."""
  status = pathlib.Path("/proc/self/status")
  if not status.is_file():
    return 0
  lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
  return int(lines[field].split()[0]) * 1024


def _reset_peak() -> int:
  """Resets the peak memory of the process; returns its current memory."""
  reset = pathlib.Path("/proc/self/clear_refs")
  if reset.is_file():
    reset.write_text("5")
  return _memory("VmRSS")


def main() -> int:
  """Measures all toy models, and prints JSON."""
  print(json.dumps({name: load_rate(toy) for name, toy in TOYS.items()}))
  return 0


if __name__ == "__main__":
  sys.exit(main())
