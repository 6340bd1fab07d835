"""Programs that attack their tests, or the compiler, score nothing."""

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
  "patches the values": "import sys\n"
  "m = sys.modules['r1jax.rewards.code.values']\n"
  "e = m.encode\nm.encode = lambda *_: e((None, True, None))\n"
  "sys.modules['__main__'].encode = m.encode\ndef f(x): return 5",
  "patches marshal": "import marshal\nmarshal.loads = lambda *_: 'True'\n"
  "def f(x): return 5",
  "patches its callers": "import sys\nframe = sys._getframe()\n"
  "while frame:\n  frame.f_globals['passed'] = True\n"
  "  frame.f_globals['AssertionError'] = Warning\n  frame = frame.f_back",
  "prints a mark": "def f(x): print('passed', 'True', '1', '[(True, )]')",
  "writes the verdict": "import os, sys\n"
  "encode = sys.modules['r1jax.rewards.code.values'].encode\n"
  "data = encode((True, ''))\ndata = len(data).to_bytes(8, 'big') + data\n"
  "def f(x):\n  for fd in range(100):\n"
  "    try: os.write(fd, data)\n    except OSError: pass\n  return 5",
  "answers for the tests": "import os, sys\n"
  "encode = sys.modules['r1jax.rewards.code.values'].encode\n"
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
  "ends the iteration": "def f(x): raise StopIteration",
  "leaves at the end": "import atexit, os\natexit.register(os._exit, 0)\n"
  "def f(x): return 5",
  "stops its caller": "import os, signal\n"
  "def f(x):\n  os.kill(os.getppid(), signal.SIGSTOP)\n"
  "  os.kill(os.getppid(), signal.SIGCONT)\n  return 5",
  "interrupts its caller": "import os, signal\n"
  "def f(x):\n  os.kill(os.getppid(), signal.SIGINT)\n  return 5",
  "looks into its caller": "import os, ctypes\ndef f(x):\n"
  "  libc = ctypes.CDLL(None)\n"
  "  if libc.ptrace(16, os.getppid(), None, None) == 0: return 6\n"
  "  try: open(f'/proc/{os.getppid()}/mem', 'r+b')\n"
  "  except OSError: return 5\n  return 6",
  "answers twice": "import os, sys\n"
  "m = sys.modules['r1jax.rewards.code.values']\n"
  "def f(x):\n  data = m.encode((None, 5, None))\n"
  "  for fd in range(3, 20):\n    try: m.send(fd, data)\n"
  "    except OSError: 0\n  return 5",
  "answers much": "import os\nfor fd in range(3, 64):\n  try:\n"
  "    rest = b's5000000;' + b'a' * 5000000\n"
  "    rest = len(rest).to_bytes(8, 'big') + rest\n"
  "    while rest: rest = rest[os.write(fd, rest):]\n"
  "  except OSError: 0\ndef f(x): return 5",
  "says more than anyone reads": "class E(Exception):\n"
  "  def __str__(self): return 'a' * 5 * 10**6\ndef f(x): raise E",
  "takes the place of the class": "import sys, builtins\n"
  "m = sys.modules['r1jax.rewards.code.values']\n"
  "m.CLASSES['program.A'] = lambda v: 6\nclass A: 0\ndef f(x): return A()",
  "pretends to be a class": "class A:\n  __eq__ = lambda *_: True\n"
  "A.__module__, A.__qualname__ = 'decimal', 'Decimal'\n"
  "A.__str__ = lambda s: '5'\ndef f(x): return A()",
  "compares from the right": "class A(int):\n  __radd__ = __rsub__ = __eq__ ="
  " __req__ = lambda *_: 6\n  __hash__ = None\ndef f(x): return A(5)",
  "collects": "import gc\ndef f(x):\n  for o in gc.get_objects():\n"
  "    if type(o) is dict and 'tests' in o: o['holds'] = True\n  return 5",
  "traces": "import sys\nsys.settrace(lambda *_: None)\n"
  "sys.setprofile(lambda f, *_: f.f_locals.update(value=6))\n"
  "def f(x): return 5",
  "is nothing": "pass",
  "defines no function": "def g(x): return 6",
  "is no function": "f = 6",
}


def scored(judge, programs, *tests):
  """The names of those that score."""
  return [
    name for name, program in programs.items() if judge(program, *tests).score
  ]


def test_cheating_programs_get_0(judge_hostile):
  assert scored(judge_hostile, CHEATS) == []


def test_a_program_cannot_plant_a_module_for_its_tests(judge_hostile):
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
    assert judge_hostile(plants, tests).score == 0.0
    assert judge_hostile("def f(x): return 6", tests).score == 1.0


def test_exhausted_resources_are_the_programs_fault(judge_hostile):
  tests = "with open('x', 'wb') as file:\n  file.write(bytes(2**20))\n"
  tests += "assert f(3) == 6"
  program = "n = 0\ntry:\n  while {}:\n    n += 1\n"
  program += "    open(str(n), 'wb').write(bytes(2**22))\nexcept OSError: 0\n"
  program += "def f(x): return 6"
  assert judge_hostile(program.format(False), tests).score == 1.0
  assert judge_hostile(program.format(True), tests).score == 0.0


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


def test_cheating_programs_that_print_get_0(judge_hostile):
  assert scored(judge_hostile, PRINTING_CHEATS, judge_hostile.cases) == []


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


def test_programs_that_attack_the_compiler_get_0(judge_hostile):
  assert scored(judge_hostile, WRITTEN) == []
