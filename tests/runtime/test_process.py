"""What a command sets up in its process."""

import importlib.metadata
import os
import platform
import subprocess
import sys

import pytest

from r1jax.runtime import process

FAULTS = """
import resource, sys, threading
from r1jax.runtime import process

process.has_accelerator = lambda: sys.argv[1] != "keep"

# As importing JAX may: threads that allocate, and stay.
class Threads:
  def find_spec(self, name, path, target=None):
    if name == "jax":
      sys.meta_path.remove(self)
      for _ in range(3):
        threading.Thread(target=allocate, daemon=True).start()
      allocated.wait()

allocated = threading.Barrier(4)

def allocate():
  kept = [bytearray(5000) for _ in range(100)]
  allocated.wait()
  threading.Event().wait()

sys.meta_path.insert(0, Threads())
process.start()
import jax, jax.numpy as jnp

# 64 MiB that only the program itself sees.
work = jax.jit(lambda x: x @ x.T @ x)
x = jnp.ones((4096, 8))
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(12):  # The heap takes a while to find its shape.
  work(x).block_until_ready()
before = faults()
work(x).block_until_ready()
print(faults() - before)
"""


FLAG = "--xla_force_host_platform_device_count"
DEVICES = """
import sys
import jax
from r1jax.runtime import process
process.cores = lambda: int(sys.argv[1])
process.split_cores(int(sys.argv[2]))
print(jax.device_count())
"""


def devices(cores, most, **env):
  """How many a process has whose CPU has so many cores."""
  said = "XLA_FLAGS", "JAX_NUM_CPU_DEVICES"
  env |= {k: v for k, v in os.environ.items() if k not in said}
  done = subprocess.run(
    [sys.executable, "-c", DEVICES, str(cores), str(most)],
    capture_output=True,
    text=True,
    check=True,
    timeout=120,
    env=env,
  )
  return int(done.stdout)


def faults(mode):
  done = subprocess.run(
    [sys.executable, "-c", FAULTS, mode],
    capture_output=True,
    text=True,
    check=True,
    timeout=120,
  )
  return int(done.stdout)


@pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="only glibc can be told"
)
def test_memory_that_a_program_frees_is_there_for_the_next():
  pages = 2**26 // 4096
  assert faults("as it comes") > pages / 2
  assert faults("keep") < pages / 10


@pytest.mark.parametrize("has", [True, False])
def test_freed_memory_is_kept_where_the_cpu_computes(monkeypatch, has):
  done = []
  monkeypatch.setattr(process, "enable_compilation_cache", lambda: None)
  monkeypatch.setattr(process, "has_accelerator", lambda: has)
  monkeypatch.setattr(process, "keep_freed_memory", lambda: done.append(1))
  monkeypatch.setattr(process, "split_cores", done.append)
  process.start(cpu_devices=4)
  assert done == ([] if has else [1, 4])


@pytest.mark.parametrize(
  ("cores", "most", "found"), [(1, 4, 1), (2, 4, 2), (7, 4, 4), (7, 3, 2)]
)
def test_cores_become_devices(cores, most, found):
  assert devices(cores, most) == found


def test_who_says_how_many_devices_there_are_gets_them():
  assert devices(4, 4, JAX_NUM_CPU_DEVICES="3") == 3
  assert devices(4, 4, XLA_FLAGS=f"{FLAG}=5") == 5


def test_no_device_at_all_is_refused():
  with pytest.raises(ValueError, match="cpu_devices is 0"):
    process.split_cores(0)


def test_a_plugin_of_jax_is_an_accelerator(monkeypatch):
  monkeypatch.setattr(process.importlib.util, "find_spec", lambda name: None)
  for found in ([], ["cuda"]):
    monkeypatch.setattr(
      importlib.metadata, "entry_points", lambda group, found=found: found
    )
    assert process.has_accelerator() == bool(found)
