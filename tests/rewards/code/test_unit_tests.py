"""Tests in Python: every form of them counts, and none counts that cannot."""

import re

import pytest

from r1jax.rewards.code import programs
from r1jax.types import Completion, Example


def judge(tests, program, entry_point="", prompt="", **kwargs):
  metadata = dict(tests=tests, entry_point=entry_point)
  example = Example(prompt, "", "code", "the-example", metadata)
  text = Completion(f"</think>\n```python\n{program}\n```")
  return programs.judge(example, text, sandbox="none", **kwargs)


def scores(program, tests, **kwargs):
  """The score of the program under each test file; None if there is none."""

  def score(text):
    try:
      return judge(text, program, **kwargs).score
    except ValueError as error:
      assert re.match("the-example: [^\n]+$", str(error))

  return {text: score(text) for text in tests}


def all_are(value, scored):
  return scored == dict.fromkeys(scored, value)


WITHOUT_BARE_ASSERTS = [
  "def one(a, b):\n  assert f(a) == b\nassert f(1) == 7\n"
  "for a, b in [(2, 7), (3, 7)]:\n  one(a, b)",
  "assert f(1) == 7\nif f(2) != 7:\n  raise AssertionError('bad')",
  "def one(a): assert f(a) == 7\nfor a in [2, 3]: one(a)",
  "r = f(2)\nif r != 7: raise ValueError(r)",
  "x = 3\nwhile x > 0:\n  x -= 1\n  assert f(x) == 7",
  "with open('/dev/null') as file:\n  assert f(file.read()) == 7",
  "try:\n  assert f(1) == 7\nfinally:\n  pass",
  "def one(a): assert f(a) == 7\n[one(a) for a in (1, 2)]",
  "def one(a): assert f(a) == 7\nx = [*map(one, [1, 2])]",
  "import sys\nassert f(1)\nif f(2) != 7: sys.exit(1)",
  "class Both:\n  def go(self): assert f(1) == 7\nBoth().go()",
  "def main():\n  assert f(1) == 7\nif __name__ == '__main__':\n  main()",
  "def one(a):\n  def two(): assert f(a) == 7\n  two()\none(1)",
  "match f(1):\n  case 7: pass\n  case _: raise AssertionError",
  "assert f(1)\nf(2)[0] if f(2) != 7 else 0",
]
FOR_RUNNERS = [
  "def test_x():\n  assert f(1) == 7\n",
  "def test_x():\n  assert f(1) == 7\n\nassert f(2)",
  "def test_a():\n  assert f(1) == 7\ndef test_b(x=2):\n  assert f(x) == 7",
  "class TestF:\n  def test_a(self): assert f(1) == 7",
  "import unittest\nclass TestF(unittest.TestCase):\n"
  "  def setUp(self): self.x = 1\n"
  "  def test_a(self): self.assertEqual(f(self.x), 7)\n"
  "if __name__ == '__main__':\n  unittest.main()",
  "import unittest\nclass F(unittest.TestCase):\n"
  "  @classmethod\n  def setUpClass(cls): cls.x = 1\n"
  "  def test_a(self): self.assertTrue(f(self.x) == 7)\n"
  "unittest.main(argv=[''], exit=False)",
  "from solution import f\n\ndef test_add():\n  assert f(1) == 7\n",
  "from solution import f as g\nassert g(1) == 7",
  "from solution import *\nassert f(1) == 7",
  "import solution\nassert solution.f(1) == 7",
  "import json, solution as s\nassert s.f(1) == json.loads('7')",
  "def test_add():\n  from solution import f\n  assert f(1) == 7\n",
]


@pytest.mark.parametrize("tests", [WITHOUT_BARE_ASSERTS, FOR_RUNNERS])
def test_every_form_of_a_test_is_run(tests):
  assert all_are(1.0, scores("def f(x): return 7", tests))
  assert all_are(0.0, scores("def f(x): return 5", tests))
  assert all_are(0.0, scores("pass", tests[:4]))


def test_tests_that_nothing_would_run_are_not_graded():
  tests = [
    "def test_a(tmp_path):\n  assert f(1) == 7\nassert f(2)",
    "async def test_a():\n  assert f(1) == 7\nassert f(2)",
    "def verify():\n  assert f(1) == 7\nassert f(2)",
    "class TestF:\n  def test_a(self, tmp_path): assert f(1) == 7",
    "def same(a, b): return a == b\nsame(f(1), 7)",
    "x = f(1)",
    "assert 1 == 1",
  ]
  assert all_are(None, scores("def f(x): return 7", tests))


def test_an_exception_of_a_program_ends_no_iteration_of_its_tests():
  tests = [
    "for got, want in zip(map(f, [1, 2, 3]), [10, 20, 30]):\n"
    "  assert got == want",
    "for want, got in zip([10, 20], map(f, [1, 2])):\n  assert got == want",
    "assert all(map(lambda c: f(c[0]) == c[1], [(1, 10), (2, 20)]))",
    "assert list(filter(lambda c: f(c) != 0, [1, 2])) == []",
    "assert [*map(f, [1, 2])] == []",
    "import itertools\nassert [*itertools.starmap(f, [(1,)])] == []",
    "for x in iter(lambda: f(1), 5):\n  assert False",
    "assert next(map(f, [1]), 7) == 7",
    "assert sum(map(f, [1, 2])) == 0",
  ]
  for error in ("StopIteration", "StopAsyncIteration", "Own"):
    program = f"class Own(StopIteration): 0\ndef f(x): raise {error}"
    assert all_are(0.0, scores(program, tests))


def test_iterators_of_a_program_end():
  program = """
class f:
  def __init__(self, last): self.n, self.last = 0, last
  def __iter__(self): return self
  def __next__(self):
    if self.n == self.last: raise StopIteration
    self.n += 1
    return self.n
"""
  tests = [
    "assert list(f(3)) == [1, 2, 3]",
    "it = f(2)\nassert next(it) == 1\nassert list(it) == [2]",
    "try:\n  next(f(0))\n  assert False\nexcept StopIteration:\n  pass",
    "assert next(f(0), None) is None",
  ]
  assert all_are(1.0, scores(program, tests))


def test_a_programs_exceptions_become_their_builtin_base():
  test = "try:\n  f(1)\n  assert False\nexcept ValueError:\n  pass"
  program = "class Own({}): 0\ndef f(x): raise Own"
  assert judge(test, program.format("ValueError")).score == 1.0
  assert judge(test, program.format("KeyError")).score == 0.0


# Each fails whatever the program does.
BROKEN = [
  "import numpy as np\n\ndef check(f):\n  assert np.allclose(f([1.0]), [0.5])",
  "import pandas as pd\nassert f(1) == int(pd.Series([2])[0])",
  "from numpy import array\nassert f(1) == 1",
  "def check(f):\n  import numpy as np\n  assert np.allclose(f(1), 1)",
  "import no_such_module\nassert f(1) == 1",
  "X = 1 / 0\nassert f(1) == X",
  "X = int('a')\nassert f(1) == X",
  "assert f(1) == 1\nX = int('a')\nassert f(2) == 2",
  "X = open('/data/x').read()\nassert f(1) == 1",
  "assert 1 == 2\nassert f(1) == 1",
]


def test_tests_that_fail_by_themselves_are_not_graded():
  right = "def f(x): return x"
  assert all_are(None, scores(right, BROKEN, entry_point="f"))
  prompt = "import numpy as np\ndef f(x):\n  pass\n"
  asked = dict(entry_point="f", prompt=prompt)
  assert (
    scores(right, ["assert f(1) == 1"], **asked)["assert f(1) == 1"] is None
  )
  fallback = "try:\n  import numpy as np\nexcept ImportError:\n  np = None\n"
  assert judge(fallback + "assert f(1) == 1", right).score == 1.0
  assert judge(fallback + "assert f(1) == 2", right).score == 0.0


def test_a_program_cannot_have_its_tests_called_broken():
  tests = [
    "l = []\nl.append(f(1))\nassert l == [1]",
    "r = f(1)\ns = r + 1\nassert s == 2",
    "r = {}\ndef put(): r[1] = f(1)\nput()\nassert r[1] == 1",
    "r = eval('f(1)')\nassert r == f(1) == 1",
    "assert f(1) == 1",
  ]
  for result in (
    "0",
    "'a'",
    "exec('raise ModuleNotFoundError')",
    "__import__('numpy')",
    "open('/data/x')",
    "[] + x",
  ):
    assert all_are(0.0, scores(f"def f(x): return {result}", tests)), result
  assert all_are(0.0, scores("import numpy\ndef f(x): return 1", tests))


CHECK = "def check(candidate):\n  assert candidate(1) == 2\n"


@pytest.mark.parametrize(
  ("entry_point", "program"),
  [
    ("Solution().f", "class Solution:\n  def f(self, x): return x + {}"),
    ("Solution.f", "class Solution:\n  f = lambda x: x + {}"),
    (
      "A(1).f",
      "class A:\n  def __init__(self, n): 0\n  f = lambda s, x: x + {}",
    ),
    ("f['a']", "f = dict(a=lambda x: x + {})"),
    ("f", "def f(x): return x + {}"),
  ],
)
def test_the_entry_point_may_be_an_expression(entry_point, program):
  for added, score in (1, 1.0), (2, 0.0), ("y", 0.0):
    verdict = judge(CHECK, program.format(added), entry_point)
    assert verdict.score == score
  assert judge(CHECK, "pass", entry_point).score == 0.0


def test_stubs_as_leetcode_has_them():
  stub = "class Solution:\n  def f(self, nums: List[int]) -> Optional[int]:\n"
  prompt = stub + '    """The first."""\n'
  tests = "def check(candidate):\n  assert candidate(nums=[2, 3]) == 2"
  for program in (stub + "    return nums[{}]", "    return nums[{}]"):
    for at, score in (0, 1.0), (1, 0.0):
      asked = dict(entry_point="Solution().f", prompt=prompt)
      assert judge(tests, program.format(at), **asked).score == score
  sorts = "class Solution:\n  def f(self, nums: List[int]): nums.sort()"
  changed = "l = [3, 1]\nSolution().f(nums=l)\nassert l == [1, 3]"
  assert judge(changed, sorts).score == 1.0
  assert judge(changed, sorts.replace("sort", "copy")).score == 0.0


def test_arguments_may_have_any_name():
  names = "self, function, operation, args, name, value"
  program = f"def f({names}): return value"
  called = ", ".join(f"{name}={i}" for i, name in enumerate(names.split(", ")))
  assert judge(f"assert f({called}) == 5", program).score == 1.0


USUAL = [
  "def f(x): return math.floor(x)",
  "def f(x): return floor(x)",
  "@cache\ndef f(x): return int(min(x, inf))",
  "def f(x):\n  d = defaultdict(int)\n  d[x] += 3\n  return d[x]",
  "def f(x):\n  h = [3, 4]\n  heapq.heapify(h)\n  return heappop(h)",
  "def f(x: Union[int, float]) -> Dict[str, Any]: return int(x)",
  "def f(x): return bisect.bisect_left([0, 1, 2, 3], 3)",
  "def f(x): return reduce(operator.add, [1, 2])",
  "@dataclass\nclass A:\n  v: int\ndef f(x): return A(3).v",
  "def f(x): return len(list(combinations('abc', 2)))",
  "def f(x): return collections.Counter('aaa')['a']",
  "def f(x): return len(string.digits) - 7",
  "string = 'abc'\ndef f(x): return len(string)",
  "def sqrt(x): return 3\ndef f(x): return sqrt(x)",
]


def test_names_of_the_prelude_need_no_import():
  test = "assert f(3.5) == 3"
  for program in USUAL:
    assert judge(test, program).score == 1.0, program
  for name in ("np.floor", "numpy.floor", "undefined_name"):
    assert judge(test, f"def f(x): return {name}(x)").score == 0.0
  own = "assert product([2, 3]) == 6"
  assert judge(own, "def product(x): return x[0] * x[1]").score == 1.0
  assert judge("assert gcd(4, 6) == 2", "pass").score == 0.0
  counted = "assert f('aab') == Counter('aab')"
  assert judge(counted, "def f(x): return Counter(x)").score == 1.0
  fake = "Counter = lambda x: 1\ndef f(x): return 1"
  assert judge(counted, fake).score == 0.0


def test_numbers_may_have_any_number_of_digits():
  long = "3" * 6000
  program = "def f(): return int('3' * {})"
  for test in (f"assert f() == {long}", f"assert str(f()) == '{long}'"):
    assert judge(test, program.format(6000)).score == 1.0
    assert judge(test, program.format(5999)).score == 0.0


def test_a_share_of_the_tests_counts_statements_that_fail():
  tests = "assert f(1) == 1\nf(2)\nassert f(1) == 1"
  program = "def f(x): return 1 if x == {} else exit()"
  assert judge(tests, program.format("x"), partial=True).score == 1.0
  assert judge(tests, program.format(1), partial=True).score == 2 / 3
  assert judge(tests, program.format(2), partial=True).score == 0.0
