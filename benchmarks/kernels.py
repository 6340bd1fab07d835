"""The kernels and their plain forms, beside peers and the machine's ceilings.

    python -m benchmarks.kernels

Numbers come first: every op is compared with float64. Then every op is timed,
forward and with its gradients, in each of its implementations that the device
has, and in those of others: cuDNN, JAX's splash attention, megablox and
`ragged_dot`. Rates count the FLOPs that the results need: causal attention is
half of a square, and what an implementation computes twice counts once. The
ceilings are the rates of a large matmul and of a copy on the same device.

Families of measurements run one after the other, most valuable first, each in a
process of its own with a deadline. What a family has measured by then is kept:
every row is printed as it is measured, and the last line of output holds all of
them. Without an accelerator the sizes are toys, and the times say nothing.
"""

import contextlib
import functools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import command, gpu, timing
from benchmarks.grpo import Size
from r1jax import ops
from r1jax.models.presets import preset
from r1jax.ops import grouped

Row = dict[str, Any]

# The name of each family, and the seconds that it may take by default.
FAMILIES = {"numbers": 100, "attention": 200, "grouped": 120, "steps": 160}
# (name, heads N, key/value heads K, H, Hv)
ATTENTION = (
  ("DeepSeek-V3", 16, 16, 192, 128),
  ("Qwen2.5-7B", 28, 4, 128, 128),
)
# (name, rows M, groups G, width D, expert width F)
GROUPED = (
  ("DeepSeek-V3", 16_384, 16, 7168, 2048),
  ("Moonlight", 16_384, 64, 2048, 1408),
)
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}  # Relative norm of an error.
REPEATS = 5


def kernels(*, family: str = "", deadline: float = 1.0) -> dict:
  """All measurements by family, and why one has ended early.

  Args:
    family: measures this one alone, in this process: "numbers", "attention",
      "grouped" or "steps".
    deadline: factor of the seconds that a family may take.
  """
  if family:
    if family not in FAMILIES:
      raise ValueError(f"family {family!r} is none of {', '.join(FAMILIES)}")
    for row in MEASURES[family]():
      print(json.dumps(row), flush=True)
    return {"device": jax.devices()[0].device_kind}
  result = {}
  for name, seconds in FAMILIES.items():
    print(f"{name} ...", file=sys.stderr, flush=True)
    result[name] = collect(name, seconds * deadline)
  return result


def collect(family: str, seconds: float) -> dict:
  """The rows that a family prints in a process of its own by its deadline."""
  began = time.monotonic()
  process = subprocess.Popen(
    [sys.executable, "-m", "benchmarks.kernels", f"--family={family}"],
    stdout=subprocess.PIPE,
    text=True,
  )
  alarm = threading.Timer(seconds, process.kill)
  alarm.start()
  rows = []
  with process:
    for line in process.stdout:
      with contextlib.suppress(ValueError):  # A line that was cut.
        row = json.loads(line)
        if "op" in row:
          rows.append(row)
          print(describe(row), file=sys.stderr, flush=True)
  alarm.cancel()
  code, taken = process.returncode, time.monotonic() - began
  ended = ""
  if code:
    ended = f"exit code {code}"
    if taken >= seconds:
      ended = f"not finished after {seconds:.0f} s"
  return {"rows": rows, "seconds": round(taken, 1), "ended_early": ended}


def describe(row: Row) -> str:
  """A row as a line of text."""
  return "  " + "  ".join(f"{key} {value}" for key, value in row.items())


def is_accelerated() -> bool:
  """Whether the sizes are those of large models."""
  return jax.default_backend() != "cpu"


def implementations() -> list[str]:
  """Our implementations of an op on this device, as its argument `impl`."""
  backend = jax.default_backend()
  return {"tpu": ["pallas", "xla"], "cpu": ["interpret", "xla"]}.get(
    backend, ["xla"]
  )


def numbers() -> Iterator[Row]:
  """Errors against float64, with NaN in all that no result may depend on."""
  rng = np.random.default_rng()  # Other numbers every time.
  texts = (70, 1, 129, 100)
  for dtype, bound in TOLERANCE.items():
    for impl in implementations():
      for name, values in (
        ("attention", attention_error(rng, texts, dtype, impl)),
        ("grouped", grouped_error(rng, (100, 0, 3, 130), dtype, impl)),
      ):
        error = round(max(values), 9)
        yield dict(
          op=name, impl=impl, dtype=dtype, error=error, ok=bool(error < bound)
        )


def attention_error(rng, texts, dtype: str, impl: str) -> list[float]:
  """Relative errors of the output and of each gradient in one packed row."""
  T, K, G, H, Hv = sum(texts), 2, 2, 48, 32
  shapes = (1, T, K, G, H), (1, T, K, H), (1, T, K, Hv), (1, T, K, G, Hv)
  *arrays, d_out = (jnp.asarray(rng.normal(size=s), dtype) for s in shapes)
  k_start = jnp.asarray(np.repeat(np.cumsum((0, *texts[:-1])), texts)[None])
  limits = dict(k_start=k_start, prefix_end=jnp.zeros_like(k_start))
  run = lambda *a: ops.packed_attention(*a, scale=0.2, impl=impl, **limits)[0]
  got = with_gradients(run, d_out, *arrays)
  with jax.enable_x64(True):
    q, k, v, d = (jnp.asarray(x, jnp.float64) for x in (*arrays, d_out))
    token = jnp.arange(T)
    seen = (k_start[0, :, None] <= token) & (token <= token[:, None])

    def exact(q, k, v):
      scores = 0.2 * jnp.einsum("btkgh,bskh->bkgts", q, k)
      weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
      return jnp.einsum("bkgts,bskh->btkgh", weights, v)

    wanted = with_gradients(exact, d, q, k, v)
    return [relative(*pair) for pair in zip(got, wanted)]


def with_gradients(fn: Callable, d_out: jax.Array, *arrays: jax.Array) -> tuple:
  """The output of a function, and the gradients of its arguments."""

  @jax.jit
  def run(d_out, *arrays):
    out, pull = jax.vjp(fn, *arrays)
    return out, *pull(d_out)

  with jax.default_matmul_precision("highest"):
    return run(d_out, *arrays)


def grouped_error(rng, sizes, dtype: str, impl: str) -> list[float]:
  """Relative errors of a grouped matmul and its gradients; unused rows NaN."""
  used, M, D, F = sum(sizes), sum(sizes) + 23, 96, 160
  draw = lambda *shape: np.asarray(rng.normal(size=shape), np.float32)
  x, weights, d_out = draw(M, D), draw(len(sizes), D, F), draw(M, F)
  x[used:] = np.nan
  d_out[used:] = np.nan
  x, weights, d_out = (jnp.asarray(a, dtype) for a in (x, weights, d_out))
  run = lambda x, w: grouped.grouped_matmul(x, w, jnp.asarray(sizes), impl=impl)
  out, d_x, d_weights = with_gradients(run, d_out, x, weights)
  x, weights, d_out = (np.float64(a) for a in (x, weights, d_out))
  group = np.repeat(np.arange(len(sizes)), sizes)
  exact = np.einsum("md,mdf->mf", x[:used], weights[group])
  exact_d_x = np.einsum("mf,mdf->md", d_out[:used], weights[group])
  exact_d_weights = np.stack(
    [
      x[:used][group == g].T @ d_out[:used][group == g]
      for g in range(len(sizes))
    ]
  )
  pairs = (
    (out[:used], exact),
    (d_x[:used], exact_d_x),
    (d_weights, exact_d_weights),
  )
  return [relative(got, wanted) for got, wanted in pairs]


def relative(got: Any, expected: Any) -> float:
  """The norm of the error over the norm of what is expected."""
  got, expected = np.float64(got), np.float64(expected)
  return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def attention() -> Iterator[Row]:
  """Causal attention of one text per row in bfloat16."""
  yield from ceilings()
  lengths = (4096, 8192) if is_accelerated() else (256,)
  tokens = 16_384 if is_accelerated() else 256
  for name, N, K, H, Hv in ATTENTION:
    for T in lengths:
      B, G = tokens // T, N // K
      shapes = (B, T, K, G, H), (B, T, K, H), (B, T, K, Hv)
      arrays = [draw(i, shape) for i, shape in enumerate(shapes)]
      pair = B * N * T * T  # FLOPs per number of a head: 2 / 2.
      flops = {
        "forward": pair * (H + Hv),
        "with gradients": pair * ((H + Hv) + (3 * H + 2 * Hv)),
      }
      sides = {f"r1jax {impl}": ours(impl) for impl in implementations()}
      sides |= attention_peers(B, T, N, H, Hv)
      shape = f"{name} B{B} T{T} N{N} K{K} H{H} Hv{Hv}"
      yield from timed("attention", shape, sides, arrays, flops)


def ours(impl: str) -> Callable:
  """Our causal attention of whole rows."""

  def run(q, k, v):
    zeros = jnp.zeros(q.shape[:2], jnp.int32)
    limits = dict(k_start=zeros, prefix_end=zeros)
    return ops.packed_attention(q, k, v, scale=0.1, impl=impl, **limits)[0]

  return run


def attention_peers(B, T, N, H, Hv) -> dict[str, Callable]:
  """Attention by others, of the same arguments."""
  join = lambda x: x.reshape(B, T, N, x.shape[-1])
  peers = {}
  if jax.default_backend() == "gpu" and H == Hv:
    # cuDNN's gradient wants equal head sizes in the versions that JAX pins.
    peers["cuDNN"] = lambda q, k, v: jax.nn.dot_product_attention(
      join(q), k, v, scale=0.1, is_causal=True, implementation="cudnn"
    )
  if jax.default_backend() == "tpu":
    from jax.experimental.pallas.ops.tpu.splash_attention import (
      splash_attention_kernel as splash,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
      splash_attention_mask as masks,
    )

    mask = masks.MultiHeadMask([masks.CausalMask((T, T))] * N)
    kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1)

    def run(q, k, v):
      heads = lambda x: jnp.repeat(x, N // x.shape[2], 2).swapaxes(1, 2)
      return jax.vmap(kernel)(heads(join(q)) * 0.1, heads(k), heads(v))

    peers["splash attention"] = run
  return peers


def grouped_matmuls() -> Iterator[Row]:
  """Rows of experts with even loads, in bfloat16."""
  yield from ceilings()
  for name, M, G, D, F in GROUPED:
    if not is_accelerated():
      M, D, F = 256, 64, 128
    x, weights = draw(0, (M, D)), draw(1, (G, D, F))
    sizes = jnp.full(G, M // G, jnp.int32)
    flops = {"forward": 2 * M * D * F, "with gradients": 6 * M * D * F}
    sides = {
      f"r1jax {impl}": functools.partial(grouped.grouped_matmul, impl=impl)
      for impl in implementations()
    }
    sides["ragged_dot"] = jax.lax.ragged_dot
    if jax.default_backend() == "tpu":
      from jax.experimental.pallas.ops.tpu.megablox import gmm

      sides["megablox"] = functools.partial(
        gmm, preferred_element_type=jnp.bfloat16
      )
    shape = f"{name} M{M} G{G} D{D} F{F}"
    yield from timed("grouped matmul", shape, sides, [x, weights], flops, sizes)


def steps() -> Iterator[Row]:
  """Updates of whole models: dense, and with many small experts."""
  peak = gpu.peaks()
  full = is_accelerated()
  size = Size(16, 8, 512, 448) if full else Size(2, 2, 8, 8)
  tiny = dict(vocab_size=64, width=32, num_layers=2)
  models = {
    "Qwen2.5-1.5B": gpu.sized() if full else gpu.sized(32, 2),
    "many small experts": preset(
      "tiny_deepseek",
      compute_dtype="bfloat16",
      **dict(
        width=1024,
        num_layers=12,
        experts=dict(width=512, num_routed=64, per_token=6),
      )
      if full
      else tiny,
    ),
  }
  for name, config in models.items():
    row = gpu.update(config, size, 4 if full else 2, 3, peak)
    keys = ("update_s", "tokens_per_s", "tflops_per_s", "mfu")
    yield dict(op="update", shape=name) | {key: row[key] for key in keys}


def draw(seed: int, shape: tuple[int, ...]) -> jax.Array:
  """Normal numbers in bfloat16."""
  return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def timed(
  op: str,
  shape: str,
  sides: dict[str, Callable],
  arrays: list[jax.Array],
  flops: dict[str, float],
  *constants: jax.Array,
) -> Iterator[Row]:
  """A row for each implementation, forward and with its gradients.

  Args:
    op: for the rows.
    shape: for the rows.
    sides: the implementations by name.
    arrays: their arguments, of which gradients are taken.
    flops: what the results need, "forward" and "with gradients".
    *constants: further arguments.
  """
  first, *_ = sides.values()
  out = jax.eval_shape(first, *arrays, *constants)
  d_out = draw(9, out.shape)
  for what, count in flops.items():
    for label, side in sides.items():

      def gradients(d_out, *arrays, side=side):
        out, pull = jax.vjp(lambda *a: side(*a, *constants), *arrays)
        return out, pull(d_out.reshape(out.shape).astype(out.dtype))

      fn, inputs = jax.jit(gradients), [d_out, *arrays]
      if what == "forward":
        fn, inputs = jax.jit(side), [*arrays, *constants]
      row = dict(op=op, shape=shape, what=what, impl=label)
      try:
        seconds = measure(fn, inputs)
      except Exception as error:  # An implementation may lack a shape.
        yield row | dict(failed=" ".join(str(error).split())[:200])
        continue
      yield row | dict(
        milliseconds=round(1e3 * seconds, 4),
        tflops_per_s=round(count / seconds / 1e12, 4),
      )


def measure(fn: Callable, arrays: list[jax.Array]) -> float:
  """The median seconds of a call, of several, after one that compiles."""
  run = lambda: jax.block_until_ready(fn(*arrays))
  run()
  return float(np.median([timing.seconds(run) for _ in range(REPEATS)]))


def ceilings() -> Iterator[Row]:
  """What the device does at most: a large matmul, and a copy."""
  rows, size = (8192, 8192) if is_accelerated() else (256, 256)
  rate = timing.matmul_rate(rows, size, dtype="bfloat16")
  yield dict(op="matmul", tflops_per_s=round(rate / 1e12, 4))
  copied = timing.memory_rate(2**30 if is_accelerated() else 2**24)
  yield dict(op="copy", gb_per_s=round(copied / 1e9, 2))


MEASURES = {
  "numbers": numbers,
  "attention": attention,
  "grouped": grouped_matmuls,
  "steps": steps,
}


if __name__ == "__main__":
  command.run(kernels)
