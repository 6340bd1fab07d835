"""What every command sets up in its process before it computes."""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib

# Of glibc's <malloc.h>, and what each is set to.
KEEPING = {
  -8: 1,  # M_ARENA_MAX: one heap for all threads.
  -3: 2**29,  # M_MMAP_THRESHOLD: blocks of up to 512 MiB come from it.
  -1: 2**31 - 1,  # M_TRIM_THRESHOLD: so much of it may be free at its end.
}


def start(cpu_devices: int = 1) -> None:
  """Keeps compiled programs on disk, and sets up a CPU that computes.

  That keeps memory that is freed, and has up to `cpu_devices` devices; see
  `split_cores`. It must come before JAX looks for its devices.
  """
  enable_compilation_cache()
  if not has_accelerator():
    keep_freed_memory()
    split_cores(cpu_devices)


def enable_compilation_cache() -> None:
  """Keeps compiled programs on disk, so that the next start is quick."""
  import jax

  folder = os.environ.get(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(os.path.expanduser("~"), ".cache", "r1jax", "xla"),
  )
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def versions() -> dict[str, str]:
  """What computes: JAX, and a checksum of this package's own files."""
  import jax

  digest = hashlib.sha256()
  folder = pathlib.Path(__file__).parents[1]
  for file in sorted(folder.rglob("*.py")):
    digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
  return {"r1jax": digest.hexdigest()[:12], "jax": jax.__version__}


def has_accelerator() -> bool:
  """Whether JAX has what it takes to run on anything but the CPU."""
  return bool(
    importlib.metadata.entry_points(group="jax_plugins")
    or importlib.util.find_spec("libtpu")
  )


def split_cores(most: int) -> None:
  """Makes devices of a CPU's cores, as many as a power of two up to `most`.

  A mesh with `data=-1` then splits rows over them. A small matmul is quicker on
  one core than split over two, which wait for each other; but every device has
  weights of its own. Where the environment says how many there are
  (`JAX_NUM_CPU_DEVICES`, `XLA_FLAGS`), where JAX has computed already, or
  several processes are one job, this does nothing.
  """
  import jax

  if most < 1:
    raise ValueError(f"cpu_devices is {most}; it must be at least 1")
  flag = "xla_force_host_platform_device_count"
  said = flag in os.environ.get("XLA_FLAGS", "")
  said |= jax.config.jax_num_cpu_devices > 0
  if not said and not jax.distributed.is_initialized():
    count = 1 << min(cores(), most).bit_length() - 1
    with contextlib.suppress(RuntimeError):  # JAX has its devices already.
      jax.config.update("jax_num_cpu_devices", count)


def cores() -> int:
  """That this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def keep_freed_memory() -> None:
  """Has glibc's malloc keep freed memory; elsewhere, does nothing.

  A program on the CPU allocates its temporaries as one block and frees it when
  it ends. As it comes, glibc returns such a block to the kernel, which hands
  out new pages the next time: 74,000 faults, and a twelfth of the CPU time, of
  a training step of 0.4 s.
  """
  libc = ctypes.CDLL(None)
  if hasattr(libc, "gnu_get_libc_version"):
    for parameter, value in KEEPING.items():
      libc.mallopt(parameter, value)
