"""What programs in a sandbox may use, and that there is no way out of it.

They are bounded: they show that a limit holds before other tests lean on it.
"""

import os
import pathlib
import socket
import uuid

import pytest

from r1jax.rewards.code import bubblewrap, sandbox

pytestmark = pytest.mark.usefixtures("judge_hostile")


def prints(program, given="", **limits):
  """What it prints in a sandbox."""
  limits = sandbox.Limits(seconds=30.0)._replace(**limits)
  _, run = sandbox.run_cases("python", program, [given], "bwrap", limits)
  assert run.status == 0, run.errors
  return run.output.decode()


def test_processes_and_threads_are_limited():
  counted = """
import os, signal, threading
signal.signal(signal.SIGALRM, signal.SIG_DFL)
n = 0
try:
  for _ in range(64):
    if not os.fork():
      signal.alarm(5)
      signal.pause()
    n += 1
except OSError:
  pass
print(n)
"""
  limit = sandbox.Limits().processes
  assert limit // 2 <= int(prints(counted)) <= limit
  threads = counted.replace(
    "if not os.fork():\n      signal.alarm(5)\n      signal.pause()",
    "threading.Thread(target=signal.pause, daemon=True).start()",
  ).replace("OSError", "RuntimeError")
  assert limit // 2 <= int(prints(threads)) <= limit


def test_memory_per_process_is_limited():
  program = """
import mmap
n, held = 0, []
try:
  for _ in range(64):
    held.append({})
    n += 16
except (MemoryError, OSError):
  pass
held.clear()
print(n)
"""
  for take in ("bytearray(2**24)", "mmap.mmap(-1, 2**24)", "'x' * 2**24"):
    assert 128 < int(prints(program.format(take), memory_mib=256)) < 256
  assert sandbox.Limits().memory_mib <= 1024


def test_memory_of_all_processes_is_limited():
  program = """
import os, threading, time
def hold():
  if not os.fork():
    held = bytearray({mib} * 2**20)
    time.sleep({seconds})
    os._exit(0)
hold()
thread = threading.Thread(target=hold)
thread.start()
thread.join()
held = bytearray({mib} * 2**20)
time.sleep({seconds})
"""
  prints(program.format(mib=10, seconds=0.2), memory_mib=256)
  with pytest.raises(sandbox.Ended, match="out of memory"):
    prints(program.format(mib=150, seconds=1000), memory_mib=256)


def test_files_are_limited():
  program = """
import os
n = 0
def fill(folder):
  global n
  try:
    for i in range(64):
      with open(f"{folder}/{i}", "wb", buffering=0) as file:
        for _ in range(2):
          n += file.write(bytes(2**20))
  except OSError:
    pass
for folder, _, _ in os.walk("/"):
  if not folder.startswith("/usr/"):
    fill(folder)
os.remove("/tmp/0")
print(n / 2**20)
"""
  # To walk through all folders takes long on a disk that is busy.
  mib = float(prints(program, disk_mib=16, output_mib=2, seconds=120.0))
  assert 8 < mib <= 16
  assert sandbox.Limits().disk_mib <= 64


def test_output_is_limited(judge_hostile):
  flood = "import os\nwhile True:\n  os.write({}, b'y x ' * 2**18)"
  for fd in (1, 2):
    assert judge_hostile(flood.format(fd), judge_hostile.cases).score == 0.0
  verdict = judge_hostile(
    "while True: print('y x ' * 2**20)", judge_hostile.cases
  )
  assert "more than 8388608 bytes printed" in verdict.feedback
  assert judge_hostile("print('x' * 2**30)\ndef f(x): return 6").score == 0.0


ESCAPES = """
import ctypes, os, resource, signal, socket, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
  if getattr(libc, name)(*args) < 0:
    raise OSError(ctypes.get_errno(), name)
def link(target):
  os.symlink(target, "link" + str(hash(target)))
  open("link" + str(hash(target))).read()
def connect(family, address):
  socket.socket(family).connect(address)
def raise_limit(kind):
  resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2)
for line in sys.stdin.read().splitlines():
  try:
    exec(line)
  except (OSError, ValueError, MemoryError):
    continue
  print(line)
"""
ATTEMPTS = r"""open("/etc/passwd")
open("/etc/shadow")
open({secret!r})
open("/proc/self/mem")
open("/proc/1/environ")
os.listdir("/proc")
os.listdir("/sys")
os.listdir("/home")
os.listdir({here!r})
open("/dev/mem", "rb")
open("/dev/tty")
open("/dev/vda", "rb")
link({secret!r})
link("/etc/passwd")
link("/proc/self/root/etc/passwd")
link("../../../../../../etc/passwd")
os.link({secret!r}, "hard")
open("/new", "w")
os.mkdir("/new")
open("/usr/new", "w")
open("/usr/bin/env", "r+")
open("/dev/new", "w")
open("/etc/new", "w")
os.rename("/usr", "/tmp/usr")
os.remove("/usr/bin/env")
os.chmod("/usr/bin/env", 0o777)
os.chown("/usr/bin/env", 0, 0)
os.mknod("disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))
os.mknod("memory", stat.S_IFCHR | 0o666, os.makedev(1, 1))
os.chroot(".")
os.setuid(0)
os.setgid(0)
os.setgroups([0])
os.nice(-5)
os.kill({pid}, 0)
os.kill({pid}, signal.SIGKILL)
os.killpg({pid}, 0)
os.sched_setaffinity({pid}, [0])
raise_limit(resource.RLIMIT_AS)
raise_limit(resource.RLIMIT_CPU)
raise_limit(resource.RLIMIT_FSIZE)
raise_limit(resource.RLIMIT_NPROC)
connect(socket.AF_INET, ("127.0.0.1", {port}))
connect(socket.AF_INET, ("1.1.1.1", 53))
connect(socket.AF_INET6, ("::1", {port}))
connect(socket.AF_UNIX, "/run/docker.sock")
connect(socket.AF_UNIX, "\0" + {abstract!r})
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
socket.socket(socket.AF_VSOCK)
socket.create_connection(("localhost", {port}), 1)
socket.create_connection(("example.com", 80), 1)
call("unshare", 0x10000000)
call("unshare", 0x00020000)
call("mount", b"x", b"/tmp", b"tmpfs", 0, None)
call("umount2", b"/tmp", 2)
call("ptrace", 16, os.getppid(), None, None)
call("syscall", 310, os.getppid(), None, 0, None, 0, 0)
call("memfd_create", b"x", 0)
call("shmget", 0, 2**20, 0o1777)
call("mq_open", b"/x", 0o102, 0o600, None)
call("syscall", 250, 0, -3, 1, 0, 0)
call("syscall", 321, 0, None, 0)
call("syscall", 425, 8, ctypes.create_string_buffer(128))
call("syscall", 435, ctypes.create_string_buffer(88), 88)
call("syscall", 56, 0x10000000 | 17, None, None, None, None)
call("syscall", 0x40000000 + 41, 2, 1, 0)
call("reboot", 0)
call("sethostname", b"x", 1)
call("setns", 0, 0)
call("iopl", 3)
call("personality", 0x0400000)
call("syscall", 317, 1, 0, None)
call("syscall", 424, -1, 9, None, 0)
call("syscall", 448, -1, 0)
call("syscall", 446, 1, 0)
call("syscall", 53, 40, 1, 0, ctypes.create_string_buffer(8))
call("prctl", 8, 1, 0, 0, 0)
call("prctl", 4, 1, 0, 0, 0)
call("ioctl", 0, 0x5412, b"x")
call("sync_file_range", 0, 0, 0, 0)
call("vmsplice", 1, None, 0, 0)
os.setresuid(0, 0, 0)
os.setresgid(0, 0, 0)
os.chown("/tmp", 0, 0)
open("/dev/stdin/x")
open("/dev/fd/3")
os.symlink("/etc/passwd", "/dev/fd/3")
os.remove("/dev/stdin")
os.mkdir("/packages/x")
os.listdir("/proc")"""


STREAMS = ".stderr .stdin .stdout\n"
LISTS_HOME = "import os\nprint(*sorted(os.listdir(os.environ['HOME'])))"


def test_there_is_no_way_out(tmp_path, monkeypatch):
  monkeypatch.setenv("API_KEY", "a secret")
  secret = tmp_path / "secret"
  secret.write_text("a secret")
  secret.chmod(0o666)
  server = socket.create_server(("127.0.0.1", 0))
  local = socket.socket(socket.AF_UNIX)
  abstract = uuid.uuid4().hex
  local.bind("\0" + abstract)
  local.listen()
  with server, local:
    server.settimeout(0.1)
    attempts = ATTEMPTS.format(
      secret=str(secret),
      here=str(pathlib.Path(__file__).parent),
      pid=os.getpid(),
      port=server.getsockname()[1],
      abstract=abstract,
    )
    assert len(attempts.splitlines()) > 60
    assert prints(ESCAPES, attempts) == ""
    with pytest.raises(TimeoutError):
      server.accept()
  assert secret.read_text() == "a secret"
  environment = prints("import os\nprint(*sorted(os.environ))").split()
  assert {*environment} <= {*bubblewrap.ENVIRONMENT, "PWD", "LC_CTYPE"}
  assert prints(LISTS_HOME) == STREAMS
  assert prints("import os\nprint(os.getuid() * os.getgid())") != "0\n"


CAPABILITIES = """
import ctypes, struct
libc, data = ctypes.CDLL(None), ctypes.create_string_buffer(24)
assert libc.capget(struct.pack("=Ii", 0x20080522, 0), data) == 0
print(*struct.unpack("=6I", data.raw))
"""


def test_no_capability_is_left_nor_inherited():
  # Effective, permitted and inheritable ones, in two halves.
  assert prints(CAPABILITIES) == "0 0 0 0 0 0\n"


def test_a_program_sees_no_trace_of_earlier_programs():
  prints("open('/tmp/note', 'w').write('6')")
  assert prints(LISTS_HOME) == STREAMS
