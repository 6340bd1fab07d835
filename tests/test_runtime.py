"""What a command sets up in its process."""

import importlib.metadata
import platform
import subprocess
import sys

import pytest

from r1jax import runtime

FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
from r1jax import runtime
if sys.argv[1] == "keep":
  runtime.keep_freed_memory()
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
  monkeypatch.setattr(runtime, "enable_compilation_cache", lambda: None)
  monkeypatch.setattr(runtime, "has_accelerator", lambda: has)
  monkeypatch.setattr(runtime, "keep_freed_memory", lambda: done.append(1))
  runtime.start()
  assert bool(done) == (not has)


def test_a_plugin_of_jax_is_an_accelerator(monkeypatch):
  monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
  for found in ([], ["cuda"]):
    monkeypatch.setattr(
      importlib.metadata, "entry_points", lambda group, found=found: found
    )
    assert runtime.has_accelerator() == bool(found)
