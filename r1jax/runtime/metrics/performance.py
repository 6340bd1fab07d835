"""How fast a run is, of what the machine could do, and what it holds."""

import collections
import functools
import resource
import sys
from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


def throughput(
  *,
  tokens: int,
  seconds: float | int,
  devices: int,
  flops: float | int = 0.0,
  peak: float | int | None = None,
) -> dict[str, float]:
  """The speed of a round: "perf/tokens_per_s", per device, and "perf/mfu".

  Args:
    tokens: that were sampled, or read.
    seconds: of the whole round.
    devices: that worked on it, of all hosts.
    flops: that the model needed for it.
    peak: FLOPs per second of one device, as its maker says; None leaves
      "perf/mfu" out.
  """
  rate = tokens / max(seconds, 1e-9)
  numbers = {
    "perf/tokens_per_s": rate,
    "perf/tokens_per_s_per_device": rate / devices,
  }
  if peak is not None:
    if not peak > 0:
      raise ValueError(
        f"the peak is {peak} FLOP/s; give what a device can do, or None"
      )
    numbers["perf/mfu"] = flops / max(seconds, 1e-9) / (peak * devices)
  return numbers


def machine() -> dict[str, Any]:
  """Memory at its largest and programs compiled, so far in this process.

  Compiling is counted from the first call on. A device without an account of
  its memory, as a CPU is, has no "perf/hbm_peak".
  """
  numbers = {"perf/host_peak": host_peak(), **_compiled()}
  peaks = [
    stats["peak_bytes_in_use"]
    for device in jax.local_devices()
    if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats
  ]
  if peaks:
    numbers["perf/hbm_peak"] = max(peaks)
  return numbers


def host_peak() -> int:
  """Bytes of memory that this process has held at most."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak


@functools.cache
def _compiled() -> collections.Counter:
  """Programs and seconds, counted by JAX's own monitoring from here on."""
  counter = collections.Counter(
    {"perf/compilations": 0, "perf/compile_time": 0.0}
  )

  def count(name: str, seconds: float, **_) -> None:
    if name == _COMPILED:
      counter["perf/compilations"] += 1
      counter["perf/compile_time"] += seconds

  jax.monitoring.register_event_duration_secs_listener(count)
  return counter
