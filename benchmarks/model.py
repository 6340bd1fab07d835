"""Decoding and training of tiny models, compared with transformers.

    python -m benchmarks.model

It measures decoding at batch 64 and training of a tiny Qwen2 and a tiny
DeepSeek-V3, here and in transformers with the same weights
(`r1jax[reference]`). It reports sizes, rates, and the share of the machine's
matmul rate. Runs of the two sides alternate, and every number is a median. Both
sides use all cores; ours are devices of a mesh that splits the rows.
"""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks import command, peers, timing
from r1jax.models import cache as caches
from r1jax.models import flops, transformer
from r1jax.models.config import Experts, Grouped, Latent, ModelConfig
from r1jax.models.weights import sizes
from r1jax.parallel import sharding
from r1jax.parallel.mesh import make_mesh

DECODE = dict(rows=64, prompt_tokens=32, tokens=128)
TRAIN = dict(rows=8, tokens=256)
GROWTH = 32  # Tokens by which our cache grows; that of transformers grows by 1.

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
  """The rates of both sides in tokens per second, and those of the machine."""
  report = {
    "machine": timing.machine(),
    "versions": {"jax": jax.__version__} | peers.versions(),
    "decode": DECODE,
    "train": TRAIN,
  }
  for name, config in MODELS.items():
    print(f"measuring {name} ...", file=sys.stderr)
    report[name] = compare(name, config, report["machine"])
  return report


def compare(name: str, config: ModelConfig, machine: dict) -> dict:
  """The rates of both sides for one architecture, measured in turns."""
  params = transformer.init(transformer.Transformer(config), jax.random.key(0))
  peer = peers.build(config, params)
  report = {"parameters": sizes(config)["total"]}
  for kind, ours, theirs, settings, peak in (
    ("decode", decoder(config, params), peer.decode, DECODE, 64),
    ("train", trainer(config, params), peer.train, TRAIN, 2048),
  ):
    mine, other = timing.in_turns(
      functools.partial(ours, **settings), functools.partial(theirs, **settings)
    )
    tokens = settings["rows"] * settings["tokens"]
    work = flops.of_token(config) + flops.of_logits(config)
    work *= tokens * (3 if kind == "train" else 1)
    share = work / mine / (machine[f"matmul_{peak}_gflops"] * 1e9)
    report[kind] = {
      "tokens_per_second": round(tokens / mine),
      "peer_tokens_per_second": round(tokens / other),
      "ratio": round(other / mine, 2),
      "share_of_matmul_rate": round(share, 3),
    }
  return report


def decoder(config: ModelConfig, params) -> Callable:
  """A function run(rows, prompt_tokens, tokens) that decodes greedily."""
  network = transformer.Transformer(config)

  @functools.partial(
    jax.jit, static_argnames=("rows", "prompt_tokens", "tokens")
  )
  def generate(params, prompts, *, rows, prompt_tokens, tokens):
    params = transformer.unstack(network, params)
    cache = caches.empty(config, rows, prompt_tokens)
    cache = caches.shard_constraint(cache)
    hidden, cache = transformer.extend(network, params, prompts, cache)
    pick = lambda hidden: jnp.argmax(
      transformer.logits(params, hidden), axis=-1
    ).astype(jnp.int32)

    def step(t, carry):
      token, cache, out = carry
      hidden, cache = transformer.extend(network, params, token[:, None], cache)
      return pick(hidden[:, 0]), cache, out.at[:, t].set(token)

    token, out = pick(hidden[:, -1]), jnp.zeros((rows, tokens), jnp.int32)
    for start in range(0, tokens, GROWTH):
      stop = min(start + GROWTH, tokens)
      cache = caches.grow(cache, prompt_tokens + stop)
      carry = token, caches.shard_constraint(cache), out
      token, cache, out = jax.lax.fori_loop(start, stop, step, carry)
    return out

  placed = everywhere(params)

  def run(rows, prompt_tokens, tokens):
    sizes = dict(rows=rows, prompt_tokens=prompt_tokens, tokens=tokens)
    with on_mesh(placed, draw(config, rows, prompt_tokens)) as arguments:
      return np.asarray(generate(*arguments, **sizes))

  return run


def trainer(config: ModelConfig, params) -> Callable:
  """A function run(rows, tokens): the gradient of the mean cross-entropy."""
  network = transformer.Transformer(config)

  @jax.jit
  def gradient(params, tokens):
    def loss(params):
      hidden = transformer.forward(
        network, params, transformer.pack_rows(tokens)
      ).hidden[:, :-1]
      logprobs, _ = transformer.logprobs(params, hidden, tokens[:, 1:])
      return -logprobs.mean()

    return jax.value_and_grad(loss)(params)

  placed = everywhere(params)

  def run(rows, tokens):
    with on_mesh(placed, draw(config, rows, tokens)) as arguments:
      return jax.block_until_ready(gradient(*arguments))

  return run


def mesh_for(*counts: int) -> Mesh:
  """A mesh of the most devices over which all these numbers of rows divide."""
  return make_mesh(data=math.gcd(jax.device_count(), *counts))


def everywhere(params) -> Callable[[Mesh], Any]:
  """A function that replicates the weights on a mesh, once per mesh."""
  return functools.cache(lambda mesh: sharding.replicate(mesh, params))


@contextlib.contextmanager
def on_mesh(placed: Callable[[Mesh], Any], rows: np.ndarray) -> Iterator[tuple]:
  """A block with weights and rows on a mesh over which the rows divide."""
  mesh = mesh_for(len(rows))
  with jax.set_mesh(mesh):
    yield placed(mesh), sharding.rows_to_device(mesh, rows)


def draw(config: ModelConfig, rows: int, tokens: int) -> np.ndarray:
  """Random tokens [B, T], the same for both sides."""
  rng = np.random.default_rng(0)
  return rng.integers(0, config.vocab_size, (rows, tokens), np.int32)


if __name__ == "__main__":
  command.run(model)
