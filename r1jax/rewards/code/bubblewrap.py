"""Starts Python in a sandbox made by bubblewrap.

The sandbox has /usr (read-only), an empty writable /tmp, a few devices, and
/dev/stdin and so on as links to files that `runner` makes. As root, bubblewrap
needs no user namespace, and `runner` switches to a user id that nobody else
has. Otherwise it keeps the caller's user id, in a namespace of its own.
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

from r1jax.rewards.code import checker, prelude, runner, seccomp, values

ENVIRONMENT = {
  "HOME": "/tmp",
  "LANG": "C.UTF-8",
  "PATH": "/usr/local/bin:/usr/bin:/bin",
  "PYTHONHASHSEED": "0",
  "PYTHONINTMAXSTRDIGITS": "0",  # No limit on the digits of a number.
  "MALLOC_ARENA_MAX": "2",  # By default each thread reserves 64 MiB.
  # By default these start a thread per core, more than a sandbox allows.
  "OMP_NUM_THREADS": "1",
  "OPENBLAS_NUM_THREADS": "1",
}
PACKAGES = "/packages"  # The folder of packages in a sandbox.


def isolated(
  stdin: socket.socket, disk_mib: int, packages: Sequence[str] = ()
) -> subprocess.Popen:
  """Starts `runner` in a sandbox, with the packages in PACKAGES."""
  command = [*_command()]
  for path in paths(packages):
    command += ["--ro-bind", str(path), f"{PACKAGES}/{path.name}"]
  command += ["--perms", "1777", "--size", str(disk_mib * 2**20)]
  command += ["--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/"]
  program = seccomp.program()
  read, write = os.pipe()
  try:
    os.write(write, program)  # It fits into a pipe's buffer.
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
  """Starts `runner` in a folder, without any isolation."""
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
  """Returns the files and folders of installed packages.

  Raises ValueError for a package that is not installed.
  """
  paths = []
  for name in packages:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.origin:
      raise ValueError(f"packages: {name!r} is not installed here")
    path = Path(spec.origin)
    paths.append(path.parent if spec.submodule_search_locations else path)
    libraries = paths[-1].with_name(f"{name}.libs")  # Shared ones of wheels.
    paths += [libraries] if libraries.exists() else []
  return paths


# The first code that Python runs in the sandbox: it reads the compiled modules
# from the socket. On the command line they would take longer, and files might
# not be readable for the user of the sandbox.
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
  """Returns the modules that run in the sandbox, compiled."""
  parts = []
  names = [(each, each.__name__) for each in (values, prelude, checker)]
  for module, name in [*names, (runner, "__main__")]:
    source = Path(module.__file__).read_text()
    parts.append((name, compile(source, name, "exec")))
  return marshal.dumps(parts)


@functools.cache
def _command() -> list[str]:
  """Returns the command of the sandbox, up to its writable /tmp."""
  if not (path := shutil.which("bwrap")):
    raise RuntimeError("there is no bwrap: install bubblewrap")
  command = [
    *[path, "--die-with-parent", "--new-session"],
    *["--unshare-ipc", "--unshare-net", "--unshare-pid", "--unshare-uts"],
    *["--cap-drop", "ALL"],
  ]
  if os.geteuid() == 0:  # `runner.confine` switches to another user.
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
    command += ["--dir", path]  # With fresh permissions, not the host's.
  for path in ("/etc/alternatives", "/etc/ld.so.cache"):
    command += ["--ro-bind-try", path, path]
  prefix = os.path.realpath(sys.base_prefix)
  if not prefix.startswith("/usr"):
    for parent in reversed(Path(prefix).parents[:-1]):
      command += ["--dir", str(parent)]
    command += ["--ro-bind", prefix, prefix]
  for name in ("null", "zero", "full", "random", "urandom"):
    command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
  for fd, name in enumerate(runner.STREAMS):
    for link in (f"/dev/{name[1:]}", f"/dev/fd/{fd}"):
      command += ["--symlink", f"/tmp/{name}", link]
  return [*command, "--symlink", "/tmp", "/dev/shm"]  # Semaphores need it.
