"""Programs that read and print: what they find in the sandbox."""

import time

import pytest

from r1jax import rewards
from r1jax.rewards.code import bubblewrap, sandbox
from r1jax.rewards.code import programs as code
from r1jax.types import Completion, Example


def judge(program, output, given="", language="python", **kwargs):
  """Whether it prints the output; it has time, for the machine may be busy."""
  tests = [dict(input=given, output=output)]
  metadata = dict(tests=tests, language=language)
  example = Example("", "", "code", "the-example", metadata)
  text = Completion(f"</think>\n```{language}\n{program}\n```")
  return code.judge(example, text, **dict(seconds=30.0) | kwargs)


def failing(programs, output, given="", language="python"):
  """What those programs say that do not print the output."""
  verdicts = [judge(each, output, given, language) for each in programs]
  return [each.feedback for each in verdicts if each.score != 1.0]


@pytest.mark.parametrize(
  ("expected", "printed", "same"),
  [
    ("2.000000000", "2.0", True),
    ("2.000000000", "2", True),
    ("0.00001", "1e-05", True),
    ("0.333333333333", "0.3333333333333333", True),
    ("0.5000 0.2500", "0.5\n.25", True),
    ("0.0", "-0.0", True),
    ("1.5e10", "15000000000.0", True),
    ("1000000.0", "1000000.5", True),
    ("2.50\n3", "2.5 3", True),
    ("YES 0.5", "YES 0.50", True),
    ("0.333333", "0.34", False),
    ("1000000.0", "1000010.0", False),
    ("7", "007", False),
    ("7", "7.0", False),
    ("1000", "1e3", False),
    ("1000000000000000001", "1e+18", False),
    ("5", "4", False),
    ("2.50\n3", "2.5 3.0", False),
    ("2.0", "2.0 2.0", False),
    ("YES 0.5", "yes 0.5", False),
    ("1.0", "nan", False),
    ("1.0", "inf", False),
    ("1.0e999", "5", False),
    ("1.0", "1_0", False),
    ("1.0", "１.0", False),
    ("0.0", "0x0", False),
    ("0.5", "1/2", False),
    ("v1.0", "v1.00", False),
    ("1.0.0", "1.0.00", False),
    ("1.0", "1" * 10**6, False),
    ("nan", "nan", True),
  ],
)
def test_numbers_with_a_point_are_compared_by_value(expected, printed, same):
  assert code.same_output(printed.encode(), expected.encode()) == same


def test_streams_have_names(bwrap):
  programs = [
    "print(int(open('/dev/stdin').read()) + 1)",
    "print(int(open('/dev/fd/0').read()) + 1)",
    "print(int(open(0).read()) + 1)",
    "open('/dev/stdout', 'w').write('2')",
    "import os\nos.close(1)\nopen('/dev/fd/1', 'w').write('2')",
    "import subprocess\nopen('/dev/stderr', 'w').write('2')\n"
    "subprocess.run(['expr', input(), '+', '1'])",
  ]
  assert failing(programs, "2\n", "1\n") == []
  both = (
    "print(1, flush=True)\nopen('/dev/stdout', 'w').write('2\\n')\nprint(3)"
  )
  assert judge(both, "1\n2\n3\n").score == 1.0
  assert judge(both, "1\n3\n").score == 0.0


def test_streams_have_names_in_other_languages(bwrap, needs):
  needs("javascript")
  script = "const text = require('fs').readFileSync({}, 'utf8');"
  script += "console.log(Number(text) + 1)"
  names = ("'/dev/stdin'", "'/dev/fd/0'", "0")
  programs = [script.format(name) for name in names]
  assert failing(programs, "2", "1", "javascript") == []
  twice = "const fs = require('fs'); for (const x of ['1 ', '2'])"
  twice += " fs.writeFileSync('/dev/stdout', x)"
  assert judge(twice, "1 2", language="javascript").score == 1.0


def test_what_is_printed_is_read_whole(bwrap):
  program = (
    "import sys\nprint('x ' * 10**6)\nprint('y' * 10**7, file=sys.stderr)"
  )
  assert judge(program, "x " * 10**6).score == 1.0
  assert judge(program, "x " * (10**6 - 1)).score == 0.0
  limit = sandbox.Limits().output_mib * 2**20
  assert judge(f"print('x' * {limit - 1})", "x" * (limit - 1)).score == 1.0
  assert "bytes printed" in judge(f"print('x' * {limit})", "x").feedback


def test_inputs_may_be_large(bwrap):
  program = "import sys\nprint(sum(map(len, sys.stdin)))"
  assert judge(program, str(2**24), "123456\n\n" * 2**21).score == 1.0
  with pytest.raises(
    ValueError, match="the-example: an input of 33554433 byte"
  ):
    judge(program, "", "x" * (sandbox.MAX_INPUT + 1))


def test_numbers_may_be_printed_with_any_number_of_digits(bwrap):
  assert judge("print(int(input()) + 1)", "3" * 5999 + "4", "3" * 6000).score
  program = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', "
  program += "'print(10**5000)'])"
  assert judge(program, "1" + "0" * 5000).score == 1.0


DEEP = """
#include <iostream>
int down(int n) {
  volatile char pad[64];
  pad[n % 64] = 1;
  return n ? down(n - 1) + pad[n % 64] : 0;
}
int main() { int n; std::cin >> n; std::cout << down(n); }
"""


def test_the_stack_is_as_large_as_the_memory(bwrap, needs):
  needs("cpp")
  assert judge(DEEP, "1000000", "1000000", "cpp").score == 1.0
  assert judge(DEEP, "100000000", "100000000", "cpp").score == 0.0
  program = """
import sys, threading
sys.setrecursionlimit(10**6)
threading.stack_size(2**27)
f = lru_cache(None)(lambda n: 0 if n == 0 else 1 + f(n - 1))
g = lambda n: 0 if n == 0 else 1 + g(n - 1)
print(f(30000))
thread = threading.Thread(target=lambda: print(g(50000)))
thread.start()
thread.join()
"""
  assert judge(program, "30000 50000") == (1.0, "")


HONEST = [
  "from concurrent.futures import ThreadPoolExecutor\n"
  "with ThreadPoolExecutor(24) as pool:\n"
  "  print(sum(pool.map(lambda x: time.sleep(0.1) or x % 2, range(24))) - 7)",
  "from concurrent.futures import ProcessPoolExecutor\n"
  "def square(x): return x * x\n"
  "with ProcessPoolExecutor(2) as pool: print(sum(pool.map(square, [1, 2])))",
  "import multiprocessing as m\ndef square(x): return x * x\n"
  "if __name__ == '__main__':\n"
  "  with m.Pool(2) as pool: print(sum(pool.map(square, [1, 2])))",
  "import multiprocessing as m\ndef put(q, x): q.put(x * x)\nq = m.Queue()\n"
  "for x in (1, 2): m.Process(target=put, args=(q, x)).start()\n"
  "print(q.get() + q.get())",
  "import multiprocessing as m\nwith m.Manager() as n:\n"
  "  d = n.dict()\n  d[1] = 5\n  print(d[1])",
  "from multiprocessing import shared_memory as m\n"
  "s = m.SharedMemory(create=True, size=9)\ns.buf[0] = 5\nprint(s.buf[0])\n"
  "s.close()\ns.unlink()",
  "import asyncio\nasync def f(x):\n  await asyncio.sleep(0.01)\n  return x\n"
  "async def g(): return sum(await asyncio.gather(f(1), f(4)))\n"
  "print(asyncio.run(g()))",
  "import signal\nsignal.signal(signal.SIGALRM, lambda *_: print(5))\n"
  "signal.setitimer(signal.ITIMER_REAL, 0.05)\nsignal.pause()",
  "import shutil, tempfile\nwith tempfile.TemporaryDirectory() as folder:\n"
  "  open(folder + '/a', 'w').write('5')\n"
  "  shutil.copytree(folder, 'b')\nprint(open('b/a').read())",
  "import sqlite3\n"
  "print(*sqlite3.connect(':memory:').execute('select 5').fetchone())",
]
HONEST_SCRIPTS = [
  "const w = require('worker_threads');"
  "if (w.isMainThread) new w.Worker(__filename).on('message', console.log);"
  "else w.parentPort.postMessage(5)",
  "const p = require('child_process');"
  "console.log(`${p.execFileSync('node', ['-e', 'console.log(5)'])}`)",
  "setTimeout(() => console.log(5), 10); require('crypto').randomBytes(8);"
  "require('fs').writeFileSync('a', require('zlib').gzipSync('b'))",
]


def test_honest_programs_have_what_they_need(bwrap):
  assert failing(HONEST, "5\n") == []


def test_honest_scripts_have_what_they_need(bwrap, needs):
  needs("javascript")
  assert failing(HONEST_SCRIPTS, "5\n", language="javascript") == []


SLOW = """
constexpr long sum(long n) {
  long s = 0;
  for (long i = 0; i < n; i++) s += i * i % 7;
  return s;
}
template <long N> struct Part { static constexpr long v = sum(200000 + N); };
template <long N> long all() {
  if constexpr (N > 0) return Part<N>::v + all<N - 1>();
  else return 0;
}
int main() { return all<850>(); }
"""


def test_a_slow_build_is_within_the_time(bwrap, needs):
  needs("cpp")
  start = time.monotonic()
  verdict = judge(SLOW, "", language="cpp", seconds=1.0)
  assert verdict == (0.0, "case 1: out of time")
  assert time.monotonic() - start < 10.0  # It would take a minute.


def test_packages_are_visible_if_they_are_named(kind):
  program = "import numpy\nprint(numpy.arange(3).sum())"
  named = dict(packages=["numpy"], sandbox=kind)
  code.check(**named)
  assert judge(program, "3", **named).score == 1.0
  assert judge(program, "3", sandbox=kind).score == 0.0
  tests = "import numpy as np\nassert np.allclose(f([1.0]), [0.5])"
  example = Example("", "", "code", "the-example", dict(tests=tests))
  text = "</think>\n```python\ndef f(x): return [v / {} for v in x]\n```"
  for by, score in (2, 1.0), (3, 0.0):
    written = Completion(text.format(by))
    assert code.reward(example, written, seconds=30.0, **named) == score
  with pytest.raises(ValueError, match="'no_such_package' is not installed"):
    code.check(packages=["no_such_package"], sandbox=kind)
  with pytest.raises(ValueError, match="a list of names, got 'numpy'"):
    code.check(packages="numpy")


def test_a_package_that_needs_another_names_it(bwrap):
  with pytest.raises(
    ValueError, match="name its dependencies(.|\n)*No module named"
  ):
    code.check(packages=["optax"])


def test_accuracy_takes_the_arguments_of_code():
  tests = [dict(input="1 2", output="3"), dict(input="1 3", output="4")]
  example = Example("", "", "code", "", dict(tests=tests))
  fenced = lambda program: Completion(f"</think>\n```py\n{program}\n```")
  written = fenced("a, b = map(int, input().split())\nprint(3)")
  spec = dict(weight=1.0, sandbox="none")
  score = lambda **more: rewards.score(
    [example], [written], accuracy=spec | more
  )
  assert score().total == [0.0]
  assert score(partial=True).total == [0.5]
  written = fenced("while True: pass")
  assert score(seconds=0.5).feedback == ["case 1: out of time"]


@pytest.mark.parametrize("name", ["accuracy", "code", "cosine", "length"])
def test_programs_without_a_sandbox_are_refused_at_the_start(name, monkeypatch):
  monkeypatch.setenv("PATH", "/nonexistent")
  sandbox.check.cache_clear()
  bubblewrap._command.cache_clear()
  of_math, of_code = Example("", "7", "math"), Example("", "", "code/x")
  try:
    if name != "code":
      rewards.check([of_math], **{name: 1.0})
    with pytest.raises(
      ValueError, match=f"rewards.{name}: .*install bubblewrap"
    ):
      rewards.check([of_math, of_code], **{name: 1.0})
    with pytest.raises(ValueError, match="install bubblewrap"):
      rewards.submit([of_code], ["x"], **{name: 1.0})
    if name in ("accuracy", "code"):
      spec = dict(weight=1.0, sandbox="none")
      rewards.check([of_math, of_code], **{name: spec})
  finally:
    sandbox.check.cache_clear()
    bubblewrap._command.cache_clear()
