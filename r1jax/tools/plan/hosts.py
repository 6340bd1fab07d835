"""The memory of a host when a run starts, resumes and saves."""

import collections
from typing import Any

import numpy as np
from jax.sharding import Mesh

from r1jax.hf import arrays, loading
from r1jax.tools.plan.programs import Program, bytes_per_device

# Bytes that Orbax reads at once: `restore_concurrent_gb` of its handlers.
ORBAX_READS = 96e9


def host_memory(program: Program) -> dict[str, float | int]:
  """Bytes of arrays in the memory of the host with the most devices.

  What Python and the compiler take comes on top.

  Args:
    program: the update of the run, whose first argument is the state.

  Returns:
    "devices" is the number of devices of a host. At the "start", weights pass
    through host memory in chunks. Orbax has the share of a host's devices in
    host memory at a "resume", up to ORBAX_READS, and at a "save". What stays in
    host memory ("offload" of a config) is part of all three.
  """
  devices = _devices_per_host(program.mesh)
  state: Any = program.arguments[0], dict(program.beside)
  kept = devices * bytes_per_device(state, offloaded=True)
  share = devices * bytes_per_device(state) + kept
  buffers = arrays.MOST_THREADS * arrays.JOB * 2 * np.dtype(np.float32).itemsize
  return {
    "devices": devices,
    "start": kept + loading.CHUNK + buffers,
    "resume": kept + min(share, ORBAX_READS),
    "save": kept + share,
  }


def _devices_per_host(mesh: Mesh) -> int:
  hosts = collections.Counter(d.process_index for d in mesh.devices.flat)
  return max(hosts.values())
