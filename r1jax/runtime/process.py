"""Process setup: compilation cache, CPU devices and memory allocator."""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib

# Parameters of glibc's `mallopt` (<malloc.h>), and their values.
MALLOC_OPTIONS = {
  -8: 1,  # M_ARENA_MAX: one heap for all threads.
  -3: 2**29,  # M_MMAP_THRESHOLD: the heap serves blocks of up to 512 MiB.
  -1: 2**31 - 1,  # M_TRIM_THRESHOLD: the heap may keep 2 GiB of free memory.
}


def start(cpu_devices: int = 1) -> None:
  """Sets up the process before JAX initializes its devices.

  It enables the compilation cache. Without an accelerator it also configures
  the memory allocator, and splits the CPU into up to `cpu_devices` devices; see
  `split_cores`.
  """
  # The allocator comes first: importing JAX starts threads, and a heap that one
  # of them has by then keeps nothing.
  on_cpu = not has_accelerator()
  if on_cpu:
    keep_freed_memory()
  enable_compilation_cache()
  if on_cpu:
    split_cores(cpu_devices)


def enable_compilation_cache() -> None:
  """Caches compiled programs on disk, so that later starts are fast."""
  import jax

  folder = os.environ.get(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(os.path.expanduser("~"), ".cache", "r1jax", "xla"),
  )
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def versions() -> dict[str, str]:
  """The version of JAX, and a checksum of this package's source files."""
  import jax

  digest = hashlib.sha256()
  folder = pathlib.Path(__file__).parents[1]
  for file in sorted(folder.rglob("*.py")):
    digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
  return {"r1jax": digest.hexdigest()[:12], "jax": jax.__version__}


def has_accelerator() -> bool:
  """Whether a JAX plugin for an accelerator is installed."""
  return bool(
    importlib.metadata.entry_points(group="jax_plugins")
    or importlib.util.find_spec("libtpu")
  )


def split_cores(max_devices: int) -> None:
  """Splits the CPU into devices, a power of two of at most `max_devices`.

  A mesh with `data=-1` then splits rows over them. A small matmul is faster on
  one core than on two that wait for each other, but every device has its own
  copy of the weights. It does nothing if the environment sets the number of
  devices (`JAX_NUM_CPU_DEVICES`, `XLA_FLAGS`), if JAX has computed already, or
  in a job of several processes.
  """
  import jax

  if max_devices < 1:
    raise ValueError(f"cpu_devices is {max_devices}; it must be at least 1")
  flag = "xla_force_host_platform_device_count"
  configured = flag in os.environ.get("XLA_FLAGS", "")
  configured |= jax.config.jax_num_cpu_devices > 0
  if not configured and not jax.distributed.is_initialized():
    count = 1 << min(cores(), max_devices).bit_length() - 1
    with contextlib.suppress(RuntimeError):  # JAX has its devices already.
      jax.config.update("jax_num_cpu_devices", count)


def cores() -> int:
  """The number of CPU cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def keep_freed_memory() -> None:
  """Makes glibc's malloc keep freed memory; does nothing without glibc.

  Call it before other threads allocate: a thread's own heap stays as it is.

  An XLA program on the CPU allocates its temporaries as one block and frees it
  at the end. By default, glibc returns such a block to the kernel, and the next
  run gets new pages: 74,000 page faults, and a twelfth of the CPU time, in a
  training step of 0.4 s.
  """
  libc = ctypes.CDLL(None)
  if hasattr(libc, "gnu_get_libc_version"):
    for parameter, value in MALLOC_OPTIONS.items():
      libc.mallopt(parameter, value)
