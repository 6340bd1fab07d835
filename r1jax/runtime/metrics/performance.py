"""Performance metrics: throughput, MFU, peak memory, compilations."""

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
  """Tokens per second in total and per device, and the MFU, by metric name.

  Args:
    tokens: number of sampled or read tokens.
    seconds: duration of the round.
    devices: number of devices over all hosts.
    flops: model FLOPs of the round.
    peak: nominal FLOPs per second of one device; None leaves out "perf/mfu".

  Raises ValueError if `peak` is not above 0.
  """
  rate = tokens / max(seconds, 1e-9)
  numbers = {
    "perf/tokens_per_s": rate,
    "perf/tokens_per_s_per_device": rate / devices,
  }
  if peak is not None:
    if not peak > 0:
      raise ValueError(
        f"the peak is {peak} FLOP/s; set it to that of a device, or to None"
      )
    numbers["perf/mfu"] = flops / max(seconds, 1e-9) / (peak * devices)
  return numbers


def machine() -> dict[str, Any]:
  """Peak memory and number of compilations so far, by metric name.

  Compilations are counted from the first call on. "perf/hbm_peak" is absent for
  devices without memory statistics, such as CPUs.
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
  """The peak memory of this process, in bytes."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak


@functools.cache
def _compiled() -> collections.Counter:
  """A counter of programs and seconds that JAX's monitoring updates."""
  counter = collections.Counter(
    {"perf/compilations": 0, "perf/compile_time": 0.0}
  )

  def count(name: str, seconds: float, **_) -> None:
    if name == _COMPILED:
      counter["perf/compilations"] += 1
      counter["perf/compile_time"] += seconds

  jax.monitoring.register_event_duration_secs_listener(count)
  return counter
