"""Speed and memory are what was there, in the units that are said."""

import jax
import jax.numpy as jnp
import pytest

from r1jax.runtime import metrics


def test_compiling_is_counted():
  before = metrics.machine()
  double = jax.jit(lambda x: 2 * x + 1)
  numbers = jnp.arange(7.0)
  first = metrics.machine()["perf/compilations"]
  double(numbers)
  second = metrics.machine()
  double(numbers)
  assert metrics.machine()["perf/compilations"] == second["perf/compilations"]
  assert second["perf/compilations"] == first + 1 > before["perf/compilations"]
  assert second["perf/compile_time"] > before["perf/compile_time"]


def test_memory_is_in_bytes(monkeypatch):
  assert 1e8 < metrics.machine()["perf/host_peak"] < 1e12

  class Device:
    def __init__(self, stats):
      self.memory_stats = lambda: stats

  devices = [Device(None), Device({"peak_bytes_in_use": 7}), Device({})]
  monkeypatch.setattr(jax, "local_devices", lambda: devices)
  assert metrics.machine()["perf/hbm_peak"] == 7
  monkeypatch.setattr(jax, "local_devices", lambda: devices[:1])
  assert "perf/hbm_peak" not in metrics.machine()


def test_throughput_is_per_second_and_device():
  numbers = metrics.throughput(
    tokens=1200, seconds=3.0, devices=4, flops=6e12, peak=1e12
  )
  assert numbers == {
    "perf/tokens_per_s": 400,
    "perf/tokens_per_s_per_device": 100,
    "perf/mfu": 0.5,
  }
  numbers = metrics.throughput(tokens=1, seconds=1.0, devices=1)
  assert "perf/mfu" not in numbers
  with pytest.raises(ValueError, match="the peak is 0"):
    metrics.throughput(tokens=1, seconds=1.0, devices=1, peak=0)
