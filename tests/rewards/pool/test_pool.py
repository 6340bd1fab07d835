"""The pool against functions that hang, crash, eat memory and leave children.

Functions of the standard library stand for what a grader may run into.
"""

import builtins
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax import rewards
from r1jax.rewards import accuracy
from r1jax.rewards.pool import pool as grader
from r1jax.rewards.pool.pool import Call, GraderPool
from r1jax.types import Completion, Example

SUM = Example("1 + 11 =", "12", "reasoning_gym/chain_sum")
MATHS = Example("", r"\frac{1}{2}", "math/test")
FINE = Call(int, ("7",))
LIGHT = dict(preload=(), canaries=())  # Starts in a tenth of a second.


def grade(example: Example, answer: str) -> Call:
  text = f"<think>so</think><answer>{answer}</answer>"
  return Call(accuracy.reward, (example, Completion(text)))


@pytest.fixture(scope="module")
def pool():
  with GraderPool(num_workers=2, timeout=1.5) as pool:
    pool.warm()
    yield pool


@pytest.fixture
def light_pool():
  with GraderPool(num_workers=2, timeout=1.0, **LIGHT) as pool:
    pool.warm()
    yield pool


def has_ended(pid: int, within: float = 5.0) -> bool:
  """True if the process is gone, or a zombie that nobody waits for."""
  deadline = time.monotonic() + within
  while time.monotonic() < deadline:
    try:
      stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
      return True
    if stat.rpartition(")")[2].split()[0] == "Z":
      return True
    time.sleep(0.02)
  return False


def read_pid(path: Path) -> int:
  while not (path.exists() and path.read_text().strip()):
    time.sleep(0.01)
  return int(path.read_text())


def test_values_come_in_the_order_of_the_calls(pool):
  assert pool.map([Call(int, (str(i),)) for i in range(100)]) == [*range(100)]
  assert pool.map([]) == []


def test_the_pool_returns_the_values_of_this_process(pool):
  examples = [SUM, SUM, MATHS, MATHS, MATHS]
  answers = ["12", "13", "0.5", r"\sqrt{1/4}", "9^{9}"]
  texts = [f"<think></think><answer>{answer}</answer>" for answer in answers]
  spec = dict(accuracy=1.0, format=0.5)
  here = rewards.score(examples, texts, **spec)
  there = rewards.score(examples, texts, pool=pool, **spec)
  np.testing.assert_array_equal(here.total, [1.5, 0.5, 1.5, 1.5, 0.5])
  np.testing.assert_array_equal(there.total, here.total)


def test_512_easy_answers_are_graded_fast(pool):
  calls = [grade(SUM, str(i % 20)) for i in range(512)]
  start = time.monotonic()
  assert sum(pool.map(calls)) == 25
  assert time.monotonic() - start < 2.0  # 0.02 s on an idle machine.


def test_a_call_that_hangs_does_not_affect_others(pool):
  from sympy.parsing.sympy_parser import parse_expr

  hangs = [Call(parse_expr, ("9**9**9",)), Call(pow, (9, 9**9))]
  calls = [FINE] * 5 + hangs + [grade(SUM, "12")] * 5
  grading = pool.submit(calls)
  assert grading.values() == [7] * 5 + [None] * 2 + [1.0] * 5
  assert grading.counts == dict(timeouts=2, crashes=0)
  assert pool.map([FINE, grade(MATHS, "0.5")]) == [7, 1.0]


def test_the_limit_is_kept_in_text_that_the_guards_let_through(pool):
  gold = r"x^{2}"
  answer = r"\sum_{k=1}^{99999} \frac{1}{k^{9999}+1}"
  start = time.monotonic()
  value = pool.map([grade(MATHS._replace(answer=gold), answer)])[0]
  assert value in (0.0, None)
  assert time.monotonic() - start < 10.0


def test_a_call_that_crashes_does_not_affect_others(light_pool):
  calls = [FINE, Call(os._exit, (0,)), FINE, Call(os.abort), FINE]
  calls += [Call(os.killpg, (0, signal.SIGKILL)), FINE]
  grading = light_pool.submit(calls)
  assert grading.values() == [7, None, 7, None, 7, None, 7]
  assert grading.counts == dict(timeouts=0, crashes=3)


def test_an_exception_counts_as_a_crash_and_is_logged(light_pool, caplog):
  grading = light_pool.submit([Call(int, ("seven",)), Call(sys.exit), FINE])
  assert grading.values() == [None, None, 7]
  assert grading.counts == dict(timeouts=0, crashes=2)
  assert "invalid literal" in caplog.text


def test_memory_is_limited():
  with GraderPool(num_workers=1, timeout=5.0, memory_gib=0.5, **LIGHT) as pool:
    takes = lambda size: Call(eval, (f"len(bytearray({size}))",))
    grading = pool.submit([takes(2**30), takes(2**26), FINE])
    assert grading.values() == [None, 2**26, 7]
    assert grading.counts == dict(timeouts=0, crashes=1)


@pytest.mark.parametrize("start", ["sleep", "setsid sleep", "nohup sleep"])
def test_children_of_a_call_that_hangs_are_killed(light_pool, tmp_path, start):
  path = tmp_path / "pid"
  command = f"{start} 1000 & echo $! > {path}; sleep 1000"
  assert light_pool.map([Call(os.system, (command,))]) == [None]
  assert has_ended(read_pid(path))


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's prctl")
def test_orphaned_processes_of_a_call_are_killed(light_pool, tmp_path):
  # A session of its own, and no parent that is still there.
  path = tmp_path / "pid"
  command = f"(setsid sh -c 'echo $$ > {path}; exec sleep 1000' &)"
  assert light_pool.map([Call(os.system, (command,))]) == [0]
  pid = read_pid(path)
  assert not has_ended(pid, within=0.1)
  assert light_pool.map([Call(time.sleep, (1000,))]) == [None]
  assert has_ended(pid)
  assert light_pool.map([Call(os.system, (command,))]) == [0]
  light_pool.close()
  assert has_ended(read_pid(path))


def test_time_on_the_cpu_is_limited():
  limits = dict(timeout=30.0, cpu_seconds=1.0)
  with GraderPool(num_workers=1, **limits, **LIGHT) as pool:
    sleep, burn = Call(time.sleep, (1.5,)), Call(pow, (9, 9**9))
    some = Call(sum, (range(2 * 10**6),))
    grading = pool.submit([sleep, some, some, burn, some, FINE])
    start = time.monotonic()
    values = [
      None,
      *[sum(range(2 * 10**6))] * 2,
      None,
      sum(range(2 * 10**6)),
      7,
    ]
    assert grading.values() == values
    assert grading.counts == dict(timeouts=1, crashes=0)
    assert time.monotonic() - start < 20.0


def test_what_a_worker_prints_is_not_its_answer(light_pool):
  calls = [Call(print, ('{"value": 1.0}',)), Call(os.write, (1, b"x\n")), FINE]
  assert light_pool.map(calls) == [None, 2, 7]


def test_results_are_read_as_they_finish(light_pool, monkeypatch):
  monkeypatch.setattr(grader, "BATCH", 1)
  grading = light_pool.submit([Call(time.sleep, (0.3,)), FINE, FINE])
  assert [index for index, _ in grading] == [1, 2, 0]


def test_calls_do_not_wait_behind_one_that_hangs(light_pool):
  hang = light_pool.submit([Call(time.sleep, (1000,))] + [FINE] * 8)
  start = time.monotonic()
  assert light_pool.map([FINE]) == [7]
  assert time.monotonic() - start < 0.9
  assert hang.values() == [None] + [7] * 8


def test_any_thread_may_use_the_pool(light_pool):
  values = {}

  def use(n):
    values[n] = light_pool.map([Call(int, (str(n),))] * 40)

  threads = [threading.Thread(target=use, args=(n,)) for n in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert values == {n: [n] * 40 for n in range(8)}


def test_workers_cannot_import_jax(pool):
  code = (
    "[m for m in __import__('sys').modules if 'jax' in m and 'r1' not in m]"
  )
  assert pool.map([grade(SUM, "12"), Call(eval, (code,))]) == [1.0, ["jax"]]
  with_jax = Call(builtins.__import__, ("jax",))
  grading = pool.submit([with_jax])
  assert (grading.values(), grading.counts["crashes"]) == ([None], 1)


def test_a_killed_server_is_restarted(light_pool):
  assert light_pool.map([FINE]) == [7]
  light_pool._server.kill()
  light_pool._server.wait()
  values = light_pool.map([FINE] * 4)
  assert values.count(7) >= 2  # Each worker may have lost one.
  assert light_pool.map([FINE] * 4) == [7] * 4


@pytest.mark.parametrize(
  "signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
)
def test_a_stop_of_the_run_spares_its_graders(light_pool, signum):
  workers = light_pool.map([Call(os.getpid, ())] * 4)
  servers = light_pool.map([Call(os.getppid, ())] * 4)
  grading = light_pool.submit([Call(time.sleep, (0.5,)), FINE])
  for pid in {*workers, *servers}:
    os.kill(pid, signum)
  assert grading.values() == [None, 7]
  assert not any(grading.counts.values())
  assert light_pool.map([Call(os.getppid, ())]) == servers[:1]


def test_canaries_catch_graders_that_are_broken():
  canaries = [(FINE, 7.0), (grade(SUM, "12"), 0.0)]
  with GraderPool(
    num_workers=1, timeout=30.0, preload=(), canaries=canaries
  ) as pool:
    with pytest.raises(
      RuntimeError, match=r"answers \[7, 1.0\].* not \[7.0, 0.0\]"
    ):
      pool.warm()
    with pytest.raises(RuntimeError, match="not working"):
      pool.map([FINE])


def test_graders_that_cannot_be_imported_are_named():
  with GraderPool(
    num_workers=2, timeout=1.0, preload=["no_such_grader"], canaries=()
  ) as pool:
    with pytest.raises(RuntimeError, match="cannot start(.|\n)*no_such_grader"):
      pool.warm()


def test_closing_kills_all_processes_at_once():
  pool = GraderPool(num_workers=2, timeout=1000.0, **LIGHT)
  pids = pool.map([Call(os.getpid)] * 40)
  waiting = pool.submit([Call(time.sleep, (1000,))] * 3)
  time.sleep(0.1)
  start = time.monotonic()
  pool.close()
  pool.close()
  assert time.monotonic() - start < 2.0
  assert all(map(has_ended, {*pids, pool._server.pid}))
  with pytest.raises(RuntimeError, match="not working"):
    waiting.values()
  with pytest.raises(RuntimeError, match="closed"):
    pool.submit([FINE])


ENDLESS = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # If ignored.
from r1jax.rewards.pool.pool import Call, GraderPool
with GraderPool(num_workers=2, timeout=1000., preload=(), canaries=()) as pool:
  pids = {*pool.map([Call(os.getpid)] * 64), pool._server.pid}
  print(*pids, flush=True)
  pool.map([Call(pow, (9, 9**9))] * 2)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_program(signum):
  program = subprocess.Popen(
    [sys.executable, "-c", ENDLESS],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )
  pids = [int(pid) for pid in program.stdout.readline().split()]
  time.sleep(0.2)
  os.killpg(program.pid, signum)  # As the terminal does on Ctrl-C.
  program.wait(timeout=10)
  program.stdout.close()
  assert len(pids) >= 2
  assert all(map(has_ended, pids))


PIECES = st.sampled_from(
  [r"\frac{", "}", "{", r"\sqrt", "^", "_", "9", "99", "!", "(", ")", r"\pi"]
  + [r"\int_0^1", r"\sum_{n=1}^{9}", "x", "=", ",", r"\{", "[", r"\infty", "0"]
  + [r"\begin{pmatrix}", r"\end{pmatrix}", "&", r"\\", r"\text{cm}", "%", "$"]
  + [r"\boxed{", "e", "i", "/", "*", "-", r"\log", "\0", "\ud800", "½"]
)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.lists(PIECES, max_size=12).map("".join), max_size=8))
def test_any_mathematics_is_right_wrong_or_ungraded(pool, answers):
  calls = [grade(MATHS, answer) for answer in answers]
  assert {*pool.map(calls)} <= {0.0, 1.0, None}
