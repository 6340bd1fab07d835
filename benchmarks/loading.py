"""How fast a checkpoint is loaded, beside copying its tensors.

    python -m benchmarks.loading

Writes a toy model in bfloat16, in shards, to a temporary directory; once they
are in the page cache, loads it in bfloat16, and copies every tensor of the same
shards into fresh memory. Prints JSON: both rates, in bytes per second, their
ratio, and the most memory that loading took beyond the parameters themselves.
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
from r1jax.models.weights import is_weight, weights

# A gigabyte or so each; layers like those of the published models.
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
  """Both rates, the best of `repeats` each, and the memory of loading."""
  with tempfile.TemporaryDirectory() as folder:
    directory = pathlib.Path(folder) / "model"
    hf.save(directory, config, _random(config), file_bytes=5e8)
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    copied, loaded, peaks = [], [], []
    for _ in range(repeats):  # In turns, so that both meet the same machine.
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
  """Bits of any kind, made fast; the balancing biases are float32."""
  rng = np.random.default_rng(0)

  def draw(path, weight):
    numbers = rng.standard_normal(weight.shape, np.float32)
    bias = path[-1].key == "router_bias"
    return numbers if bias else numbers.astype(ml_dtypes.bfloat16)

  return jax.tree.map_with_path(draw, weights(config), is_leaf=is_weight)


def _copy(directory: pathlib.Path) -> dict[str, np.ndarray]:
  """Every tensor in memory of its own."""
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
  """A number of bytes of /proc/self/status; 0 where there is no such file."""
  status = pathlib.Path("/proc/self/status")
  if not status.is_file():
    return 0
  lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
  return int(lines[field].split()[0]) * 1024


def _reset_peak() -> int:
  """The memory of now, from which on the peak is counted."""
  reset = pathlib.Path("/proc/self/clear_refs")
  if reset.is_file():
    reset.write_text("5")
  return _memory("VmRSS")


def main() -> int:
  """Measures every toy, and prints JSON."""
  print(json.dumps({name: load_rate(toy) for name, toy in TOYS.items()}))
  return 0


if __name__ == "__main__":
  sys.exit(main())
