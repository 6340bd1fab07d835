"""The sandbox: it is refused where it cannot be had, and ends with its user."""

import os
import pathlib
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest

from r1jax.rewards.code import bubblewrap, programs, sandbox, seccomp
from r1jax.rewards.code.sandbox import Ended, Limits
from r1jax.types import Completion, Example

EXAMPLE = Example("", "", "code", "", dict(tests="assert f(3) == 6"))
RIGHT = Completion("</think>\n```python\ndef f(x): return 2 * x\n```")


@pytest.fixture
def fresh(monkeypatch):
  """Nothing is remembered of the sandbox, before or after."""
  caches = sandbox.check, bubblewrap._command, seccomp.program
  for cache in caches:
    cache.cache_clear()
  yield
  for cache in caches:
    cache.cache_clear()


def test_without_bubblewrap_it_is_refused(fresh, monkeypatch):
  monkeypatch.setenv("PATH", "/nonexistent")
  with pytest.raises(ValueError, match="install bubblewrap.*sandbox='none'"):
    sandbox.check("bwrap")
  with pytest.raises(RuntimeError, match="install bubblewrap"):
    programs.reward(EXAMPLE, RIGHT)


def test_one_that_does_not_start_is_refused(fresh, monkeypatch, tmp_path):
  fake = tmp_path / "bwrap"
  fake.write_text("#!/bin/sh\necho no permission >&2\nexit 1\n")
  fake.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  with pytest.raises(ValueError, match="no permission.*sandbox='none'"):
    sandbox.check("bwrap")
  # Which is no fault of the program: it is not graded.
  with pytest.raises(RuntimeError, match="cannot start.*no permission"):
    programs.reward(EXAMPLE, RIGHT)


def test_one_that_does_not_hold_is_refused(fresh, monkeypatch, tmp_path):
  fake = tmp_path / "bwrap"
  fake.write_text(
    '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\n"$@"'
  )
  fake.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  monkeypatch.chdir(tmp_path)  # It starts where it is, and writes there.
  monkeypatch.setattr(os, "geteuid", lambda: 1000)
  # Its attempts are few: no more of them than it is stopped from here.
  monkeypatch.setattr(
    sandbox, "PROBE", sandbox.PROBE.replace("range(64)", "range(2)")
  )
  with pytest.raises(ValueError, match="is not safe.*can read files"):
    sandbox.check("bwrap")


def test_no_isolation_must_be_asked_for_in_so_many_words(fresh, caplog):
  for kind in ("", "None", "bubblewrap", "off"):
    with pytest.raises(ValueError, match="one of .*'bwrap', 'none'"):
      sandbox.check(kind)
    with pytest.raises(ValueError, match="one of .*'bwrap', 'none'"):
      programs.reward(EXAMPLE, RIGHT, sandbox=kind)
  sandbox.check("none")
  assert "run with all of your rights" in caplog.text
  assert programs.reward(EXAMPLE, RIGHT, sandbox="none") == 1.0


def test_a_missing_toolchain_is_named(monkeypatch):
  cpp = sandbox.LANGUAGES["cpp"]._replace(build=("no-such-compiler",))
  monkeypatch.setitem(sandbox.LANGUAGES, "cpp", cpp)
  with pytest.raises(RuntimeError, match="need no-such-compiler"):
    next(sandbox.run_cases("cpp", "", [""], "none", Limits()))


def test_the_filter_allows_what_it_names_and_nothing_else(monkeypatch):
  for machine, socket, ioctl in (("x86_64", 41, 16), ("aarch64", 198, 29)):
    seccomp.program.cache_clear()
    monkeypatch.setattr(seccomp.platform, "machine", lambda m=machine: m)
    audit = seccomp.MACHINES[machine]
    run = lambda *call, audit=audit: filtered(seccomp.program(), audit, *call)
    allowed = {n for n in range(1024) if run(n) == seccomp.ALLOW}
    which = [*seccomp.MACHINES].index(machine)
    cloned = {seccomp.CLONE[which]}  # With no flags.
    assert allowed == seccomp.allowed(machine) | cloned
    missing = seccomp.REFUSE | 38
    for number in (435, 0x40000000, 2**32 - 1):
      assert run(number) == missing
    refused = seccomp.REFUSE | 1
    assert run(seccomp.CLONE[which], signal.SIGCHLD) == seccomp.ALLOW
    assert run(seccomp.CLONE[which], 0x10000000 | signal.SIGCHLD) == refused
    assert run(socket, 1) == seccomp.ALLOW
    assert {run(socket, family) for family in (2, 10, 16, 40)} == {refused}
    assert run(ioctl, 0, 0x5401) == seccomp.ALLOW
    assert run(ioctl, 0x5401, 0x5412) == seccomp.REFUSE | 25  # TIOCSTI.
    assert filtered(seccomp.program(), audit ^ 1, 0) == seccomp.KILL
  seccomp.program.cache_clear()
  monkeypatch.setattr(seccomp.platform, "machine", lambda: "pdp11")
  with pytest.raises(ValueError, match="'pdp11'"):
    seccomp.program()
  seccomp.program.cache_clear()


DANGEROUS = """
add_key bpf chown chroot clone3 delete_module fanotify_init finit_module fsopen
init_module io_uring_setup ioperm iopl kcmp kexec_load keyctl memfd_create
memfd_secret mount mount_setattr move_mount mq_open msgget name_to_handle_at
open_by_handle_at open_tree perf_event_open personality pidfd_getfd pivot_root
process_vm_readv process_vm_writev ptrace quotactl reboot request_key seccomp
semget setdomainname sethostname setns setuid shmget swapon sync syslog umount2
unshare userfaultfd vhangup vmsplice
"""


def test_no_dangerous_call_is_allowed():
  named = {
    call.split()[0]
    for text in seccomp.ALLOWED.values()
    for call in text.split(",")
  }
  assert {"read", "mmap", "execve", "futex", "clock_gettime"} <= named
  assert not named & {*DANGEROUS.split()}


def filtered(program, arch, number, *arguments):
  """What the filter says to a system call, read as the kernel reads it."""
  arguments += (0,) * (6 - len(arguments))
  data = struct.pack("=IIQ6Q", number, arch, 0, *arguments)
  at, accumulator = 0, 0
  while True:
    operation, if_true, if_false, operand = struct.unpack_from(
      "=HBBI", program, 8 * at
    )
    at += 1
    match operation:
      case 0x20:
        (accumulator,) = struct.unpack_from("=I", data, operand)
      case 0x06:
        return operand
      case _:
        holds = {
          0x15: accumulator == operand,
          0x35: accumulator >= operand,
          0x45: bool(accumulator & operand),
        }[operation]
        at += if_true if holds else if_false


def test_time_is_limited(kind):
  start = time.monotonic()
  runs = sandbox.run_cases(
    "python", "while True: pass", [""], kind, Limits(seconds=0.3)
  )
  assert next(runs).status == 0
  with pytest.raises(Ended, match="out of time"):
    next(runs)
  assert 0.3 < time.monotonic() - start < 5.0


def test_any_thread_may_use_it(bwrap):
  values = {}

  def use(n):
    values[n] = [
      programs.reward(EXAMPLE, RIGHT, seconds=20.0) for _ in range(3)
    ]

  threads = [threading.Thread(target=use, args=(n,)) for n in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert values == {n: [1.0] * 3 for n in range(4)}


ALONE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # If ignored.
from r1jax.rewards.code import sandbox
program = "import os, time; os.fork() or os.setsid(); time.sleep(1000)"
runs = sandbox.run_cases(
  "python", program, [""], "bwrap", sandbox.Limits(seconds=1000.0)
)
next(runs)
print("begun", flush=True)
next(runs)
"""
IN_A_POOL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # If ignored.
from r1jax.rewards.code import programs
from r1jax.rewards.pool.pool import Call, GraderPool
from r1jax.types import Completion, Example
program = "import os, time; os.fork() or os.setsid(); time.sleep(1000)"
example = Example("", "", "code", "", dict(tests="assert f()"))
text = Completion(f"</think>\\n```py\\n{program}\\n```")
call = Call(programs.reward, (example, text), dict(seconds=1000.0))
preload = ["r1jax.rewards.code.programs"]
with GraderPool(
  num_workers=1, timeout=1000.0, preload=preload, canaries=()
) as pool:
  pool.warm()
  print("begun", flush=True)
  pool.map([call])
"""


@pytest.mark.parametrize(
  ("program", "signum"), [(ALONE, signal.SIGKILL), (IN_A_POOL, signal.SIGINT)]
)
def test_nothing_outlives_its_user(bwrap, program, signum):
  user = subprocess.Popen(
    [sys.executable, "-c", program],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    start_new_session=True,
  )
  # bubblewrap's two, `inside`, the program's two; the pool's two; by then.
  expected = 5 if program == ALONE else 7
  with user:
    try:
      assert user.stdout.readline() == b"begun\n"
      deadline = time.monotonic() + 10.0
      while len(below := descendants(user.pid)) < expected:
        assert time.monotonic() < deadline, below
        time.sleep(0.02)
      os.kill(user.pid, signum)
      user.wait(timeout=10)
    finally:
      user.kill()
  deadline = time.monotonic() + 5.0
  while left := [pid for pid in below if alive(pid)]:
    assert time.monotonic() < deadline, left
    time.sleep(0.02)


def descendants(pid):
  """The processes below one; bubblewrap's own are among them."""
  path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
  try:
    children = [int(each) for each in path.read_text().split()]
  except OSError:
    return []
  return children + [each for child in children for each in descendants(child)]


def alive(pid):
  try:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return False
  return stat.rpartition(")")[2].split()[0] != "Z"
