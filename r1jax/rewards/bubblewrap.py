"""How a sandbox starts: bubblewrap, and Python in it.

As root, bubblewrap needs no user namespace, and `inside` becomes a user that
nobody else is; else it runs as the one who called, in a namespace of its own.
"""

import functools
import marshal
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from r1jax.rewards import inside, seccomp, values

ENVIRONMENT = {
  "HOME": "/tmp",
  "LANG": "C.UTF-8",
  "PATH": "/usr/local/bin:/usr/bin:/bin",
  "PYTHONHASHSEED": "0",
}


def isolated(stdin: socket.socket, disk_mib: int) -> subprocess.Popen:
  """Starts `inside`, in a sandbox."""
  command = [*_command(), "--size", str(disk_mib * 2**20)]
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
  for module, name in ((values, values.__name__), (inside, "__main__")):
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
  command += ["--dir", "/dev", "--dir", "/etc"]  # Else as closed as the host's.
  for path in ("/etc/alternatives", "/etc/ld.so.cache"):
    command += ["--ro-bind-try", path, path]
  prefix = os.path.realpath(sys.base_prefix)
  if not prefix.startswith("/usr"):
    for parent in reversed(Path(prefix).parents[:-1]):
      command += ["--dir", str(parent)]
    command += ["--ro-bind", prefix, prefix]
  for name in ("null", "zero", "full", "random", "urandom"):
    command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
  return [*command, "--perms", "1777"]
