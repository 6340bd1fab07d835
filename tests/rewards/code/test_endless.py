"""Programs that never end, or grow, are ended within their time."""

import time

import pytest

SECONDS = 0.7  # What each of them gets.

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
QUICK = {"loops in C", "leaves children", "takes memory", "returns deep lists"}


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in ENDLESS | GROWING
  ],
)
def test_what_never_ends_is_ended(judge_hostile, name):
  program = (ENDLESS | GROWING)[name]
  start = time.monotonic()
  assert judge_hostile(program, seconds=SECONDS).score == 0.0
  printing = program + "\nf(3)"
  verdict = judge_hostile(printing, judge_hostile.cases, seconds=SECONDS)
  assert verdict.score == 0.0
  assert time.monotonic() - start < 2 * SECONDS + 10.0  # On a busy machine.


OTHERS = {
  "cpp": {
    "reads for ever": '#include "/dev/zero"\nint main() {}',
    "reads the host": '#include "/etc/passwd"\nint main() {}',
    "is large": "char a[1 << 30] = {1}; int main() {}",
    "recurses": "template <int n> struct A { A<n + 1> a; }; A<0> a;",
    "is deep": "int main() { return " + "(" * 10**5 + "; }",
    "loops": "int main() { for (;;); }",
    "takes memory": "#include <cstdlib>\n#include <cstring>\n"
    "int main() { for (;;) memset(malloc(1 << 20), 1, 1 << 20); }",
    "forks": "#include <unistd.h>\nint main() { for (;;) fork(); }",
    "prints": '#include <cstdio>\nint main() { for (;;) puts("y x"); }',
    "exits": "#include <cstdlib>\nint main() { exit(0); }",
    "kills": "#include <csignal>\nint main() { kill(-1, 9); }",
  },
  "javascript": {
    "loops": "for (;;);",
    "waits": "setInterval(() => 0, 1000)",
    "takes memory": "const a = []; for (;;) a.push(new Array(1e6).fill(1))",
    "takes buffers": "const a = []; for (;;) a.push(Buffer.alloc(1e8, 1))",
    "prints": "for (;;) require('fs').writeSync(1, 'y x '.repeat(1e6))",
    "exits": "process.exit(0)",
    "starts commands": "const { spawn } = require('child_process');\n"
    "for (;;) spawn('sleep', ['1000'])",
    "starts itself": "const { spawn } = require('child_process');\n"
    "const a = []; spawn('node', ['main.js']); spawn('node', ['main.js']);\n"
    "setInterval(() => a.push(Buffer.alloc(1e8, 1)), 10)",
    "reads the host": "const fs = require('fs');\n"
    "console.log(fs.readFileSync('/etc/passwd', 'utf8'))",
    "is deep": "[" * 10**5,
  },
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("language", "name"),
  [(language, name) for language in OTHERS for name in OTHERS[language]],
)
def test_other_languages_are_held_by_the_same_limits(
  judge_hostile, language, name, needs
):
  needs(language)
  start = time.monotonic()
  verdict = judge_hostile(
    OTHERS[language][name], judge_hostile.cases, SECONDS, language
  )
  assert verdict.score == 0.0
  assert time.monotonic() - start < SECONDS + 20.0
