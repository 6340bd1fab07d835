"""Timing of functions, and the peak rates of the machine."""

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

REPEATS = 5
PAUSE = 0.5  # Seconds between sides; threads of the last one spin for a while.
PEAK_ROWS, DECODE_ROWS = 2048, 64  # Rows of the matmuls that are measured.


def machine() -> dict:
  """The machine, and its float32 matmul rates in GFLOP per second."""
  return {
    "cores": os.cpu_count(),
    "backend": jax.default_backend(),
    "load_average": round(os.getloadavg()[0], 1),
  } | {
    f"matmul_{rows}_gflops": round(matmul_rate(rows) / 1e9, 1)
    for rows in (PEAK_ROWS, DECODE_ROWS)
  }


def in_turns(*sides: Callable) -> list[float]:
  """The median seconds of each side; the sides run alternately."""
  for side in sides:
    side()  # Compiles.
  times = [[] for _ in sides]
  for _ in range(REPEATS):
    for side, taken in zip(sides, times):
      time.sleep(PAUSE)
      taken.append(seconds(side))
  return [statistics.median(taken) for taken in times]


def seconds(work: Callable) -> float:
  """The seconds that `work()` takes."""
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


def matmul_rate(
  rows: int, size: int = 2048, calls: int = 10, dtype: str = "float32"
) -> float:
  """The FLOP per second of [rows, size] @ [size, size]."""
  x, w = jnp.ones((rows, size), dtype), jnp.ones((size, size), dtype)
  many = jax.jit(
    lambda x, w: jax.lax.fori_loop(0, calls, lambda _, x: x @ w * 1e-3, x)
  )
  (taken,) = in_turns(lambda: many(x, w).block_until_ready())
  return 2 * rows * size**2 * calls / taken


def memory_rate(size: int = 2**28) -> float:
  """The bytes per second of reading one array and writing another."""
  x = jnp.ones(size // 4)
  add = jax.jit(lambda x: x + 1)
  (taken,) = in_turns(lambda: add(x).block_until_ready())
  return 2 * size / taken


def peak_memory() -> int:
  """The peak memory of this process in bytes."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak * (1 if sys.platform == "darwin" else 1024)
