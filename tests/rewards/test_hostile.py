"""Programs that attack their tests, their sandbox or the machine score nothing.

They run in a sandbox only. The bounded ones come first: they show that a limit
holds before anything leans on it.
"""

import os
import pathlib
import socket
import time
import uuid

import pytest

from r1jax.rewards import code, sandbox
from r1jax.types import Completion, Example


def why_no_bwrap():
  try:
    sandbox.check("bwrap")
  except ValueError as error:
    return str(error)


NO_BWRAP = why_no_bwrap()
pytestmark = pytest.mark.skipif(NO_BWRAP is not None, reason=str(NO_BWRAP))

DOUBLES = Example("", "", "code", "", dict(tests="assert f(3) == 6"))
ECHOES = Example(
  "", "", "code", "", dict(tests=[{"input": "x y\n", "output": "y x\n"}])
)
RIGHT = "def f(x): return 2 * x"
SWAPS = "a, b = input().split()\nprint(b, a)"
SECONDS = 0.7  # What those get that use all of their time.


def judge(program, example=DOUBLES, seconds=SECONDS):
  text = Completion(f"</think>\n```python\n{program}\n```")
  return code.judge(example, text, seconds=seconds)


def prints(program, given="", **limits):
  """What it prints in a sandbox."""
  limits = sandbox.Limits(seconds=30.0)._replace(**limits)
  _, run = sandbox.run_cases("python", program, [given], "bwrap", limits)
  assert run.status == 0, run.errors
  return run.output.decode()


@pytest.fixture(autouse=True)
def unchanged(monkeypatch):
  """The next program is graded normally, and no process is left."""
  mark = uuid.uuid4().hex
  monkeypatch.setitem(sandbox.ENVIRONMENT, "MARK", mark)
  yield
  assert judge(RIGHT, seconds=5.0).score == 1.0
  assert judge(SWAPS, ECHOES, seconds=5.0).score == 1.0
  deadline = time.monotonic() + 5.0
  while left := marked(mark):
    assert time.monotonic() < deadline, left
    time.sleep(0.02)


def marked(mark):
  """The processes that have the mark in their environment."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    try:
      if mark.encode() in path.read_bytes():
        found.append(path.parent.name)
    except OSError:
      pass
  return found


# What it may use.


def test_processes_and_threads_are_few():
  counted = """
import os, signal, threading
signal.signal(signal.SIGALRM, signal.SIG_DFL)
n = 0
try:
  for _ in range(20):
    if not os.fork():
      signal.alarm(5)
      signal.pause()
    n += 1
except OSError:
  pass
print(n)
"""
  limit = sandbox.Limits().processes
  assert 1 <= int(prints(counted)) <= limit
  threads = counted.replace(
    "if not os.fork():\n      signal.alarm(5)\n      signal.pause()",
    "threading.Thread(target=signal.pause, daemon=True).start()",
  ).replace("OSError", "RuntimeError")
  assert 1 <= int(prints(threads)) <= limit


def test_memory_is_little():
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


def test_files_are_few_and_small():
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
  mib = float(prints(program, disk_mib=16, output_mib=2))
  assert 8 < mib <= 16
  assert sandbox.Limits().disk_mib <= 64


def test_output_is_limited():
  flood = "import os\nwhile True:\n  os.write({}, b'y x ' * 2**18)"
  for fd in (1, 2):
    assert judge(flood.format(fd), ECHOES, seconds=5.0).score == 0.0
  verdict = judge("while True: print('y x ' * 2**20)", ECHOES, seconds=5.0)
  assert "File too large" in verdict.feedback
  assert judge("print('x' * 2**30)\n" + RIGHT, seconds=5.0).score == 0.0


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
os.listdir("/dev/shm")
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
call("iopl", 3)"""


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
  assert {*environment} <= {*sandbox.ENVIRONMENT, "PWD", "LC_CTYPE"}
  assert prints("import os\nprint(*os.listdir(os.environ['HOME']))") == "\n"
  assert prints("import os\nprint(os.getuid() * os.getgid())") != "0\n"


def test_a_program_sees_nothing_of_the_one_before():
  prints("open('/tmp/note', 'w').write('6')")
  assert prints("import os\nprint(*os.listdir('/tmp'))") == "\n"


# What it may try: each of these must score 0.

CHEATS = {
  "exits": "import sys\nsys.exit(0)",
  "exits later": "import sys\ndef f(x): sys.exit(0)",
  "leaves": "import os\nos._exit(0)",
  "leaves later": "import os\ndef f(x): os._exit(0)",
  "exits as builtin": "exit()",
  "raises an exit": "raise SystemExit",
  "raises an interrupt": "def f(x): raise KeyboardInterrupt",
  "aborts": "import os\nos.abort()",
  "is killed": "import os\nos.kill(os.getpid(), 9)",
  "kills the tests": "import os\ndef f(x): os.kill(os.getppid(), 9)",
  "kills all": "import os\nos.kill(-1, 9)",
  "crashes": "import ctypes\nctypes.string_at(0)",
  "equals": "class A:\n  def __eq__(s, o): return True\ndef f(x): return A()",
  "differs": "class A:\n  __eq__ = __ne__ = __bool__ = lambda *_: True\n"
  "  __hash__ = id\ndef f(x): return A()",
  "is a number that equals": "class A(int):\n  __eq__ = lambda *_: True\n"
  "  __hash__ = int.__hash__\ndef f(x): return A(5)",
  "is any": "from unittest.mock import ANY\ndef f(x): return ANY",
  "is a class that equals": "class M(type):\n  __eq__ = lambda *_: True\n"
  "  __hash__ = type.__hash__\nclass f(metaclass=M):\n  def __init__(*_): 0",
  "makes six five": "import ctypes\nctypes.memmove(id(6) + 24, id(5) + 24, 4)\n"
  "def f(x): return 5",
  "patches errors": "import builtins\nbuiltins.AssertionError = Warning\n"
  "def f(x): return 5",
  "patches the hook": "import sys\nsys.excepthook = lambda *_: None\n"
  "def f(x): raise AssertionError",
  "patches the checker": "import sys\nmain = sys.modules['__main__']\n"
  "main.check = lambda *_: [(True, '')]\nmain.describe = lambda *_: None\n"
  "def f(x): return 5",
  "patches the values": "import sys\nm = sys.modules['r1jax.rewards.values']\n"
  "e = m.encode\nm.encode = lambda *_: e((None, True, None))\n"
  "sys.modules['__main__'].encode = m.encode\ndef f(x): return 5",
  "patches marshal": "import marshal\nmarshal.loads = lambda *_: 'True'\n"
  "def f(x): return 5",
  "patches its callers": "import sys\nframe = sys._getframe()\n"
  "while frame:\n  frame.f_globals['passed'] = True\n"
  "  frame.f_globals['AssertionError'] = Warning\n  frame = frame.f_back",
  "prints a mark": "def f(x): print('passed', 'True', '1', '[(True, )]')",
  "writes the verdict": "import os, sys\n"
  "encode = sys.modules['r1jax.rewards.values'].encode\n"
  "data = encode((True, ''))\ndata = len(data).to_bytes(8, 'big') + data\n"
  "def f(x):\n  for fd in range(100):\n"
  "    try: os.write(fd, data)\n    except OSError: pass\n  return 5",
  "answers for the tests": "import os, sys\n"
  "encode = sys.modules['r1jax.rewards.values'].encode\n"
  "for value in (None, (None, True, None), (True, '')):\n"
  "  data = encode(value)\n  data = len(data).to_bytes(8, 'big') + data\n"
  "  for fd in range(3, 100):\n"
  "    try: os.write(fd, data)\n    except OSError: pass\nos._exit(0)",
  "reads the tests": "import gc, os, sys\ndef f(x):\n  found = []\n"
  "  for fd in range(3):\n    found.append(os.read(fd, 9999))\n"
  "  found += [o for o in gc.get_objects() if 'assert' in repr(o)]\n"
  "  test = ''.join(map(chr, [102, 40, 51, 41]))  # And no copy of it here.\n"
  "  return 6 if any(test in repr(o) for o in found) else 5",
  "looks for the tests": "import pathlib\ndef f(x):\n"
  "  texts = [p.read_text(errors='replace') for p in [\n"
  "    *pathlib.Path('/tmp').rglob('*')]]\n"
  "  return 6 if any('f(3)' in text for text in texts) else 5",
  "knows its caller": "import sys\ndef f(x):\n  frame = sys._getframe(1)\n"
  "  test = ''.join(map(chr, [61, 61, 32, 54]))\n"
  "  while frame:\n    if test in repr(frame.f_locals): return 6\n"
  "    frame = frame.f_back",
  "is nothing": "pass",
  "defines no function": "def g(x): return 6",
  "is no function": "f = 6",
}


def scored(programs, example=DOUBLES):
  """The names of those that score."""
  return [
    name
    for name, program in programs.items()
    if judge(program, example, seconds=5.0).score
  ]


def test_cheats_score_nothing():
  assert scored(CHEATS) == []


def test_a_program_cannot_plant_a_module_for_its_tests():
  plants = """
import os
for name in ("random", "math", "string", "decimal", "sitecustomize"):
  for folder in (".", "/tmp", os.environ["HOME"]):
    with open(f"{folder}/{name}.py", "w") as file:
      file.write("import builtins\\nbuiltins.AssertionError = builtins.id\\n")
      file.write("floor = randint = lambda *_: 6\\n")
def f(x): return 5
"""
  for tests in (
    "import random\nassert random.randint(6, 6) == f(3)",
    "import decimal, string\nassert f(3) == 6",
    "assert math.floor(f(3)) == 6",
  ):
    example = DOUBLES._replace(metadata=dict(tests=tests))
    assert judge(plants, example, seconds=5.0).score == 0.0
    assert judge("def f(x): return 6", example, seconds=5.0).score == 1.0


PRINTING_CHEATS = {
  "exits": "import sys\nsys.exit(0)",
  "leaves": "import os\nos._exit(0)",
  "prints part": "print('y')",
  "prints more": "print('y x z')",
  "prints and fails": "print('y x')\nraise SystemExit(1)",
  "prints and dies": "print('y x', flush=True)\nimport os\nos.abort()",
  "kills its parent": "import os\nos.kill(os.getppid(), 9)\nprint('y x')",
  "writes the verdict": "import os\nfor fd in range(3, 100):\n"
  "  try: os.write(fd, b'\\0' * 7 + b'\\x15t3;i1;0b3;y xs0;')\n"
  "  except OSError: pass",
  "replaces its output": "import os\n"
  "for name in ('.stdout', '.stdin'):\n  os.symlink('/dev/zero', name)",
  "reads what is expected": "import gc\nprint(*[o for o in gc.get_objects()\n"
  "  if 'y x' in repr(o)][:0] or 'none')",
}


def test_cheats_that_print_score_nothing():
  assert scored(PRINTING_CHEATS, ECHOES) == []


# What never ends, or grows.

ENDLESS = {
  "loops": "while True: pass",
  "loops later": "def f(x):\n  while True: pass",
  "loops in C": "def f(x): return 9 ** 9 ** 9",
  "is a power tower": "x = 9 ** 9 ** 9 ** 9",
  "sleeps": "import time\ntime.sleep(1000)",
  "waits": "import threading\nthreading.Event().wait()",
  "ignores signals": "import signal\nfor s in range(1, 65):\n"
  "  try: signal.signal(s, signal.SIG_IGN)\n  except (OSError, ValueError): 0\n"
  "while True: pass",
  "backtracks": "import re\ndef f(x): re.match('(a*)*b', 'a' * 99)",
  "counts for ever": "def f(x):\n  while True: yield x",
  "stops the tests": "import os, signal\n"
  "def f(x): os.kill(os.getppid(), signal.SIGSTOP)",
  "leaves children": "import os, time\nif not os.fork():\n"
  "  os.setsid()\n  if not os.fork():\n    time.sleep(1000)\n  os._exit(0)\n"
  "def f(x): return 2 * x if x < 3 else time.sleep(1000)",
  "leaves a command": "import subprocess\n"
  "subprocess.Popen(['setsid', 'sleep', '1000'])\ndef f(x): return 5",
  "leaves threads": "import threading, time\n"
  "threading.Thread(target=time.sleep, args=(1000,)).start()",
}
GROWING = {
  "takes memory": "held = []\nwhile True: held.append(bytearray(2**20))",
  "takes memory at once": "bytearray(2**40)",
  "doubles": "s = 'x'\nwhile True: s += s",
  "returns much": "def f(x): return [0] * 10**8",
  "returns a long text": "def f(x): return 'x' * 2**28",
  "returns a large number": "def f(x): return 1 << 2**30",
  "returns deep lists": "def f(x):\n  a = []\n  for _ in range(10**5):\n"
  "    a = [a]\n  return a",
  "returns itself": "def f(x):\n  a = []\n  a.append(a)\n  return a",
  "recurses": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
  "says much": "def f(x): raise ValueError('x' * 2**28)",
  "prints much": "def f(x):\n  for _ in range(2**10): print('x' * 2**20)",
  "fills the disk": "n = 0\nwhile True:\n  n += 1\n"
  "  open(str(n), 'wb').write(bytes(2**20))",
  "makes files": "n = 0\nwhile True:\n  n += 1\n  open(str(n), 'w').close()",
  "makes folders": "import os\nwhile True:\n  os.mkdir('a')\n  os.chdir('a')",
  "opens files": "import os\nwhile True: os.open('/dev/null', 0)",
  "starts threads": "import threading, time\nwhile True:\n"
  "  threading.Thread(target=time.sleep, args=(1000,)).start()",
  "forks": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
  "forks sessions": "import os\nwhile True:\n"
  "  try:\n    if not os.fork(): os.setsid()\n  except OSError: pass",
  "forks memory": "import os\nheld = []\nwhile True:\n"
  "  try:\n    os.fork()\n    held.append(bytearray(2**24))\n"
  "  except (OSError, MemoryError): pass",
}
WRITTEN = {
  "nests": "(" * 10**5,
  "nests lists": "x = " + "[" * 999 + "]" * 999,
  "nests blocks": "".join(" " * i + "if 1:\n" for i in range(200)),
  "adds": "x = " + "+".join(["1"] * 10**5),
  "negates": "x = " + "-" * 10**5 + "1",
  "folds much": "x = ('x' * 4000,) * 4000 * 4000 * 4000",
  "has a long text": "x = '" + "x" * 200_000 + "'",
  "has a long name": "x" * 200_000 + " = 1",
  "has a long number": "x = " + "9" * 200_000,
  "has a NUL": "x = '\0'",
  "has no UTF-8": "x = '\ud800'",
  "has bytes": "\udcff\udcfe",
  "says its encoding": "# coding: rot13\nqrs s(k): erghea 6",
  "has many lines": "\n" * 10**5,
}


QUICK = {"loops in C", "leaves children", "takes memory", "returns deep lists"}


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in ENDLESS | GROWING
  ],
)
def test_what_never_ends_is_ended(name):
  program = (ENDLESS | GROWING)[name]
  start = time.monotonic()
  assert judge(program).score == 0.0
  assert judge(program + "\nf(3)", ECHOES).score == 0.0
  assert time.monotonic() - start < 2 * SECONDS + 2.0


def test_what_no_compiler_likes_scores_nothing():
  assert scored(WRITTEN) == []
