"""How a sandbox starts: bubblewrap, and Python in it.

What is there: /usr to read, an empty /tmp to write, a few devices, and names of
the standard streams, which lead to files that `inside` makes. As root,
bubblewrap needs no user namespace, and `inside` becomes a user that nobody else
is; else it runs as the one who called, in a namespace of its own.
"""

import functools
import importlib.util
import marshal
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from r1jax.rewards.code import checker, inside, seccomp, usual, values

ENVIRONMENT = {
  "HOME": "/tmp",
  "LANG": "C.UTF-8",
  "PATH": "/usr/local/bin:/usr/bin:/bin",
  "PYTHONHASHSEED": "0",
  "PYTHONINTMAXSTRDIGITS": "0",  # No limit on the digits of a number.
  "MALLOC_ARENA_MAX": "2",  # Else each thread reserves 64 MiB of addresses.
  # A thread for each core is more than a sandbox has.
  "OMP_NUM_THREADS": "1",
  "OPENBLAS_NUM_THREADS": "1",
}
PACKAGES = "/packages"  # Where they are in a sandbox.


def isolated(
  stdin: socket.socket, disk_mib: int, packages: Sequence[str] = ()
) -> subprocess.Popen:
  """Starts `inside`, in a sandbox; the packages are in PACKAGES."""
  command = [*_command()]
  for path in paths(packages):
    command += ["--ro-bind", str(path), f"{PACKAGES}/{path.name}"]
  command += ["--perms", "1777", "--size", str(disk_mib * 2**20)]
  command += ["--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/"]
  program = seccomp.program()
  read, write = os.pipe()
  try:
    os.write(write, program)  # It fits into a pipe.
    os.close(write)
    return subprocess.Popen(
      [*command, "--seccomp", str(read), "--", *PYTHON],
      stdin=stdin,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      env=ENVIRONMENT,
      pass_fds=[read],
    )
  finally:
    os.close(read)


def bare(stdin: socket.socket, home: str) -> subprocess.Popen:
  """Starts `inside` in a folder, with no isolation at all."""
  return subprocess.Popen(
    PYTHON,
    stdin=stdin,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    cwd=home,
    env=ENVIRONMENT | {"HOME": home},
    start_new_session=True,
  )


@functools.cache
def paths(packages: Sequence[str]) -> list[Path]:
  """The files and folders that make up packages of this Python.

  Raises ValueError for a package that is not installed.
  """
  found = []
  for name in packages:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.origin:
      raise ValueError(f"packages: there is no package {name!r} to import here")
    path = Path(spec.origin)
    found.append(path.parent if spec.submodule_search_locations else path)
    libraries = found[-1].with_name(f"{name}.libs")  # Of wheels, beside them.
    found += [libraries] if libraries.exists() else []
  return found


# What Python runs first: the modules that come in ahead of the work. To hand
# them over on the command line takes longer, and as files they might be closed
# to the user of the sandbox.
START = """
import marshal, os, sys
size, data = int.from_bytes(os.read(0, 8), "big"), b""
while len(data) < size:
  data += os.read(0, size - len(data)) or os._exit(1)
for name, code in marshal.loads(data):
  module = sys.modules.setdefault(name, type(sys)(name))
  exec(code, module.__dict__)
"""
PYTHON = [os.path.realpath(sys.executable), *"-s -S -P -B -c".split(), START]


@functools.cache
def modules() -> bytes:
  """The modules that run inside, compiled here once."""
  parts = []
  names = [(each, each.__name__) for each in (values, usual, checker)]
  for module, name in [*names, (inside, "__main__")]:
    source = Path(module.__file__).read_text()
    parts.append((name, compile(source, name, "exec")))
  return marshal.dumps(parts)


@functools.cache
def _command() -> list[str]:
  """The command of the sandbox, up to its directory for writing."""
  if not (path := shutil.which("bwrap")):
    raise RuntimeError("there is no bwrap: install bubblewrap")
  command = [
    *[path, "--die-with-parent", "--new-session"],
    *["--unshare-ipc", "--unshare-net", "--unshare-pid", "--unshare-uts"],
    *["--cap-drop", "ALL"],
  ]
  if os.geteuid() == 0:  # `inside` becomes another user, see `confine`.
    command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
  else:
    command += ["--unshare-user"]
  command += ["--ro-bind", "/usr", "/usr"]
  for path in ("/bin", "/lib", "/lib64"):
    if os.path.islink(path):
      command += ["--symlink", os.readlink(path), path]
    else:
      command += ["--ro-bind-try", path, path]
  for path in ("/dev", "/dev/fd", "/etc", PACKAGES):
    command += ["--dir", path]  # Else as closed as the host's.
  for path in ("/etc/alternatives", "/etc/ld.so.cache"):
    command += ["--ro-bind-try", path, path]
  prefix = os.path.realpath(sys.base_prefix)
  if not prefix.startswith("/usr"):
    for parent in reversed(Path(prefix).parents[:-1]):
      command += ["--dir", str(parent)]
    command += ["--ro-bind", prefix, prefix]
  for name in ("null", "zero", "full", "random", "urandom"):
    command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
  for fd, name in enumerate(inside.STREAMS):
    for link in (f"/dev/{name[1:]}", f"/dev/fd/{fd}"):
      command += ["--symlink", f"/tmp/{name}", link]
  return [*command, "--symlink", "/tmp", "/dev/shm"]  # For semaphores.
