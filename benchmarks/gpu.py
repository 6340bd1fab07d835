"""Decoding and updates at the sizes of Qwen2.5-1.5B, on one large GPU.

    python -m benchmarks.gpu

It uses random weights, bfloat16 activations, float32 master weights, and the
functions of the training loop. The time of decoding, prefill included, is
compared with the time to read all weights and each row's cache once per token
at the memory bandwidth. Updates are reported as MFU. It counts the model FLOPs
of all tokens in the rows, forward and backward, with logits of sampled tokens
only and causal attention; rematerialisation does not count. --width and
--layers scale the model down for smaller machines.
"""

import statistics
import sys

import jax
import jax.numpy as jnp

from benchmarks import command, timing
from benchmarks import grpo as step
from benchmarks.grpo import Endless, Size
from r1jax.models import flops, transformer
from r1jax.models.config import ModelConfig
from r1jax.models.presets import PRESETS, preset
from r1jax.parallel.mesh import make_mesh
from r1jax.rollouts.engine import make_engine

NAME = "qwen2.5-math-1.5b"
# Nominal bfloat16 FLOP and bytes per second, by `device_kind`.
PEAKS = {"NVIDIA H200": (989e12, 4.8e12)}


def gpu(
  *,
  width: int = 1536,
  layers: int = 28,
  batch: int = 256,
  group_size: int = 8,
  prompt: int = 1536,
  completion: int = 1024,
  rows: int = 16,
  row_width: int = 4096,
  microbatch_rows: int = 16,
  steps: int = 3,
) -> dict:
  """Decoding speed relative to memory bandwidth, and MFU of the update.

  Args:
    width: of the model.
    layers: of the model.
    batch: number of completions that are decoded at once.
    group_size: completions per prompt.
    prompt: tokens of a prompt in decoding.
    completion: tokens of a completion in decoding.
    rows: packed rows of the update, with one group in each.
    row_width: tokens of a row, of which an eighth is the prompt.
    microbatch_rows: rows that go through the model at once.
    steps: timed steps, after two for warm-up.
  """
  if batch % group_size:
    raise ValueError(f"group_size {group_size} does not divide batch {batch}")
  sizes = sized(width, layers)
  peak = peaks()
  print("decoding ...", file=sys.stderr, flush=True)
  decoding = Size(batch // group_size, group_size, prompt, completion)
  decoded = decode(sizes, decoding, steps, peak)
  print("updating ...", file=sys.stderr, flush=True)
  prompt_part = max(2, row_width // 8)
  updating = Size(
    rows,
    group_size,
    prompt_part,
    (row_width - prompt_part + 1) // group_size,
  )
  if updating.completion < 1:
    raise ValueError(f"no group of {group_size} fits a row_width {row_width}")
  return {
    "machine": peak | {"device": jax.devices()[0].device_kind},
    "model": NAME if sizes == sized() else f"{NAME}, scaled",
    "parameters": parameters(sizes),
    "decode": decoded,
    "update": update(sizes, updating, microbatch_rows, steps, peak),
  }


def sized(width: int = 1536, layers: int = 28) -> ModelConfig:
  """The config of the model, scaled to this width and depth."""
  full = PRESETS[NAME]
  return preset(
    NAME,
    width=width,
    num_layers=layers,
    dense_width=full.dense_width * width // full.width,
    compute_dtype="bfloat16",
  )


def peaks() -> dict:
  """The peak rates of the machine; measured if no nominal figures are known."""
  nominal = PEAKS.get(jax.devices()[0].device_kind)
  arithmetic, memory = nominal or (
    timing.matmul_rate(timing.PEAK_ROWS, dtype="bfloat16"),
    timing.memory_rate(),
  )
  return {
    "nominal": nominal is not None,
    "peak_tflops": round(arithmetic / 1e12, 4),
    "memory_gb_per_s": round(memory / 1e9, 2),
  }


def parameters(sizes: ModelConfig) -> int:
  """The number of weights in matmuls of a token, unembedding included."""
  return (flops.of_token(sizes) + flops.of_logits(sizes)) // 2


def decode(sizes: ModelConfig, size: Size, steps: int, peak: dict) -> dict:
  """The seconds of a generation, and the share of the memory bandwidth."""
  mesh, model = make_mesh(data=1), transformer.Transformer(sizes)
  engine = make_engine(
    model,
    Endless(sizes.vocab_size),
    mesh,
    (),
    **step.settings(size, rows={}).sampling,
  )
  params = jax.jit(lambda key: transformer.init(model, key))(jax.random.key(0))

  prompts = step.draw(sizes, size, 0)
  generate = lambda: engine(
    engine.prepare(params), prompts, size.group_size, seed=0, round=0
  )
  for _ in range(2):
    generate()
  taken = statistics.median(timing.seconds(generate) for _ in range(steps))
  item = jnp.dtype(sizes.compute_dtype).itemsize
  token = sizes.num_layers * sizes.cache_size * item
  # The cache of a row grows by one token per step.
  context = size.prompt + (size.completion - 1) / 2
  rows = size.prompts * size.group_size
  moved = item * parameters(sizes) + rows * context * token
  floor = size.completion * moved / (peak["memory_gb_per_s"] * 1e9)
  prefill = step.work(sizes, size).prefill / (peak["peak_tflops"] * 1e12)
  return size._asdict() | {
    "batch": rows,
    "mean_context": context,
    "generation_s": round(taken, 4),
    "tokens_per_s": round(size.sampled / taken),
    "memory_floor_s": round(floor, 4),
    "prefill_floor_s": round(prefill, 4),
    "share_of_memory_rate": round(floor / taken, 3),
  }


def update(
  sizes: ModelConfig,
  size: Size,
  microbatch_rows: int,
  steps: int,
  peak: dict,
) -> dict:
  """The seconds of an update on full rows, and its MFU."""
  rows = step.rows_of(size, size.group_size, microbatch_rows)
  running = step.train(sizes, size, rows)
  for _ in range(2):
    next(running)
  taken = statistics.median(next(running)["update_s"] for _ in range(steps))
  tokens = size.prompts * (size.prompt - 1) + size.sampled
  rate = 3 * step.work(sizes, size).forward / taken
  return size._asdict() | {
    "rows": rows,
    "update_s": round(taken, 4),
    "tokens": tokens,
    "tokens_per_s": round(tokens / taken),
    "tflops_per_s": round(rate / 1e12, 4),
    "mfu": round(rate / (peak["peak_tflops"] * 1e12), 3),
    "peak_memory_bytes": memory(),
  }


def memory() -> int:
  """The peak memory of the device in bytes, or of the process if unknown."""
  stats = jax.devices()[0].memory_stats() or {}
  return stats.get("peak_bytes_in_use", timing.peak_memory())


if __name__ == "__main__":
  command.run(gpu)
