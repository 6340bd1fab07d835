"""How fast we are, and a peer on the same machine in the same run.

    python -m r1jax.tools.benchmark model

`model`: decoding at batch 64 and training of a tiny Qwen2 and a tiny
DeepSeek-V3, beside transformers with the same weights (`r1jax[reference]`).
Prints one JSON object: sizes, rates, and what share of the machine's own matmul
rate they are. Runs of the two sides alternate; every number is a median.
"""

import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from r1jax.models import ops, transformer
from r1jax.models.cache import empty_cache
from r1jax.models.config import Experts, Grouped, Latent, ModelConfig
from r1jax.models.weights import sizes
from r1jax.tools import peers

DECODE = dict(rows=64, prompt_tokens=32, tokens=128)
TRAIN = dict(rows=8, tokens=256)
REPEATS = 5
PAUSE = 0.5  # Seconds: threads of the side before spin on for a while.

COMMON = dict(
  vocab_size=512,
  width=256,
  num_layers=4,
  dense_width=1024,
  norm_epsilon=1e-6,
  rope_theta=10_000.0,
  max_length=4096,
)
MODELS = {
  "qwen2": ModelConfig(
    attention=Grouped(num_heads=4, num_kv_heads=2, head_size=64, bias=True),
    **COMMON,
  ),
  "deepseek_v3": ModelConfig(
    attention=Latent(
      num_heads=4,
      q_rank=128,
      kv_rank=64,
      nope_size=32,
      rope_size=32,
      value_size=32,
    ),
    experts=Experts(
      num_routed=8,
      num_shared=1,
      num_dense_layers=1,
      per_token=2,
      width=256,
      scores="sigmoid",
      renormalise=True,
      scale=2.5,
    ),
    **COMMON,
  ),
}


def model() -> dict:
  """Rates of both sides, in tokens per second, and of the machine."""
  report = {
    "machine": {"cores": os.cpu_count(), "backend": jax.default_backend()}
    | {f"matmul_{n}_gflops": matmul_rate(n) / 1e9 for n in (2048, 64)},
    "versions": {"jax": jax.__version__} | peers.versions(),
    "decode": DECODE,
    "train": TRAIN,
  }
  for name, config in MODELS.items():
    print(f"measuring {name} ...", file=sys.stderr)
    report[name] = compare(name, config, report["machine"])
  return report


def compare(name: str, config: ModelConfig, machine: dict) -> dict:
  """One architecture, both sides in turns."""
  params = transformer.init(transformer.Transformer(config), jax.random.key(0))
  peer = peers.build(config, params)
  report = {"parameters": sizes(config)["total"]}
  for kind, ours, theirs, settings, peak in (
    ("decode", decoder(config, params), peer.decode, DECODE, 64),
    ("train", trainer(config, params), peer.train, TRAIN, 2048),
  ):
    mine, other = in_turns(
      functools.partial(ours, **settings), functools.partial(theirs, **settings)
    )
    tokens = settings["rows"] * settings["tokens"]
    flops = flops_per_token(config) * (3 if kind == "train" else 1)
    share = flops * tokens / mine / (machine[f"matmul_{peak}_gflops"] * 1e9)
    report[kind] = {
      "tokens_per_second": round(tokens / mine),
      "peer_tokens_per_second": round(tokens / other),
      "ratio": round(other / mine, 2),
      "share_of_matmul_rate": round(share, 3),
    }
  return report


def decoder(config: ModelConfig, params) -> Callable:
  """`run(rows, prompt_tokens, tokens)` decodes greedily."""
  network = transformer.Transformer(config)

  @functools.partial(
    jax.jit, static_argnames=("rows", "prompt_tokens", "tokens")
  )
  def generate(params, prompts, *, rows, prompt_tokens, tokens):
    params = transformer.unstack(network, params)
    cache = empty_cache(config, rows, prompt_tokens + tokens)
    hidden, cache = transformer.extend(network, params, prompts, cache)
    pick = lambda hidden: jnp.argmax(
      transformer.logits(network, params, hidden), axis=-1
    ).astype(jnp.int32)

    def step(t, carry):
      token, cache, out = carry
      hidden, cache = transformer.extend(network, params, token[:, None], cache)
      return pick(hidden[:, 0]), cache, out.at[:, t].set(token)

    start = pick(hidden[:, -1]), cache, jnp.zeros((rows, tokens), jnp.int32)
    return jax.lax.fori_loop(0, tokens, step, start)[2]

  def run(rows, prompt_tokens, tokens):
    prompts = draw(config, rows, prompt_tokens)
    sizes = dict(rows=rows, prompt_tokens=prompt_tokens, tokens=tokens)
    return np.asarray(generate(params, jnp.asarray(prompts), **sizes))

  return run


def trainer(config: ModelConfig, params) -> Callable:
  """`run(rows, tokens)` makes the gradient of the mean cross-entropy."""
  network = transformer.Transformer(config)

  @jax.jit
  def gradient(params, tokens):
    def loss(params):
      hidden = transformer.forward(
        network, params, transformer.pack_rows(tokens)
      ).hidden[:, :-1]
      logprobs, _ = ops.linear_logprobs(
        hidden, transformer.unembed(params), tokens[:, 1:]
      )
      return -logprobs.mean()

    return jax.value_and_grad(loss)(params)

  def run(rows, tokens):
    batch = jnp.asarray(draw(config, rows, tokens))
    return jax.block_until_ready(gradient(params, batch))

  return run


def draw(config: ModelConfig, rows: int, tokens: int) -> np.ndarray:
  """Random tokens [B, T], the same for both sides."""
  rng = np.random.default_rng(0)
  return rng.integers(0, config.vocab_size, (rows, tokens), np.int32)


def in_turns(*sides: Callable) -> list[float]:
  """Median seconds of each side; they run one after the other, repeatedly."""
  for side in sides:
    side()  # Compiles.
  times = [[] for _ in sides]
  for _ in range(REPEATS):
    for side, taken in zip(sides, times):
      time.sleep(PAUSE)
      start = time.perf_counter()
      side()
      taken.append(time.perf_counter() - start)
  return [statistics.median(taken) for taken in times]


def matmul_rate(rows: int, size: int = 2048, calls: int = 10) -> float:
  """FLOP per second of [rows, size] @ [size, size] in float32."""
  x, w = jnp.ones((rows, size)), jnp.ones((size, size))
  many = jax.jit(
    lambda x, w: jax.lax.fori_loop(0, calls, lambda _, x: x @ w * 1e-3, x)
  )
  (seconds,) = in_turns(lambda: many(x, w).block_until_ready())
  return 2 * rows * size**2 * calls / seconds


def flops_per_token(config: ModelConfig) -> int:
  """Of the matmuls with weights, forward: two per weight that a token uses."""
  counts = sizes(config)
  used = counts["total"] - counts["embed"]
  if config.experts:
    e = config.experts
    one = 3 * config.width * e.width
    used -= config.num_moe_layers * (e.num_routed - e.per_token) * one
  return 2 * used


BENCHMARKS = {"model": model}


def main(argv):
  """Runs one benchmark by name."""
  if len(argv) != 2 or argv[1] not in BENCHMARKS:
    sys.exit(f"usage: benchmark {{{','.join(BENCHMARKS)}}}")
  print(json.dumps(BENCHMARKS[argv[1]](), indent=2))


if __name__ == "__main__":
  app.run(main)
