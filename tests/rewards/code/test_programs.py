"""Code: programs that pass their tests, and those that only seem to."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax import rewards
from r1jax.rewards.code import programs as code
from r1jax.rewards.code import sandbox
from r1jax.rewards.pool.pool import GraderPool
from r1jax.types import Completion, Example


def completion(program, tag="python"):
  return Completion(f"<think>so</think>\n```{tag}\n{program}\n```\n")


def judge(tests, program, kind="none", prompt="", partial=False, **metadata):
  """Fences the program, with the tests that it is to pass."""
  tag = metadata.get("language", "python")
  example = Example(prompt, "", "code", "x", dict(tests=tests, **metadata))
  return code.judge(
    example, completion(program, tag), partial=partial, sandbox=kind
  )


DOUBLES = "assert f(2) == 4\nassert f([1]) == [1, 1]\nassert f('') == ''"
SUMS = [
  {"input": "1 2\n", "output": "3\n"},
  {"input": "-5 6\n", "output": "1\n"},
]


def test_functions_that_pass_their_asserts(kind):
  assert judge(DOUBLES, "def f(x): return 2 * x", kind) == (1.0, "")
  wrong = judge(DOUBLES, "def f(x):\n  return x + x if x else None", kind)
  assert wrong.score == 0.0
  assert "test 3, assert f('') == ''" in wrong.feedback


def test_programs_that_print_what_they_should(kind):
  right = "a, b = map(int, input().split())\nprint(a + b)"
  assert judge(SUMS, right, kind) == (1.0, "")
  wrong = judge(SUMS, "input()\nprint(3)", kind)
  assert wrong.score == 0.0
  assert wrong.feedback == r"case 2: printed b'3\n', not '1\n'"


def test_part_of_the_tests_is_part_of_the_score_if_asked():
  assert judge(DOUBLES, "def f(x): return 4", partial=True).score == 1 / 3
  mostly = "def f(x): return 2 * x if x else exit()"
  assert judge(DOUBLES, mostly, partial=True).score == 2 / 3
  assert judge(SUMS, "print(3)", partial=True).score == 1 / 2
  assert judge(DOUBLES, "def f(x) 4", partial=True).score == 0.0


@pytest.mark.parametrize(
  ("printed", "score"),
  [
    ("1 2 3", 1.0),
    ("1\\n2 \\t3\\n\\n", 1.0),
    ("1 2", 0.0),
    ("1 2 3 4", 0.0),
    ("12 3", 0.0),
    ("1.0 2 3", 0.0),
    ("", 0.0),
  ],
)
def test_output_is_compared_token_by_token(printed, score):
  tests = [{"input": "", "output": "1 2 3\n"}]
  assert judge(tests, f"print('{printed}')").score == score


def test_a_program_must_end_well():
  tests = [{"input": "", "output": "1\n"}]
  assert judge(tests, "print(1)\nexit()").score == 1.0
  assert judge(tests, "import sys\nprint(1)\nsys.exit(0)").score == 1.0
  assert judge(tests, "print(1)\nraise KeyError('oh')").score == 0.0
  assert "KeyError: 'oh'" in judge(tests, "raise KeyError('oh')").feedback
  killed = judge(tests, "print(1, flush=True)\nimport os\nos.abort()")
  assert "exit status -6" in killed.feedback


def test_a_program_ends_as_the_interpreter_does():
  program = """
import atexit, sys, threading
def main():
  if __name__ == "__main__":
    a, b = map(int, sys.stdin.readline().split())
    atexit.register(lambda: print(a + b))
threading.Thread(target=main).start()
"""
  assert judge(SUMS, program).score == 1.0


def test_functions_may_change_their_arguments():
  tests = "l = [2, 1]\nf(l)\nassert l == [1, 2]"
  assert judge(tests, "def f(x): x.sort()").score == 1.0
  assert judge(tests, "def f(x): return sorted(x)").score == 0.0
  tests = "d = {1: [2]}\nf(d)\nassert d == {1: [2, 3], 4: {5}}"
  program = "def f(x):\n  x[1] += [3]\n  x[4] = {5}"
  assert judge(tests, program).score == 1.0


def test_functions_that_return_cannot_change_what_they_are_compared_with():
  tests = "l = [3, 1, 2]\nassert f(l) == sorted(l)"
  assert judge(tests, "def f(x): return sorted(x)").score == 1.0
  assert judge(tests, "def f(x):\n  x.clear()\n  return x").score == 0.0
  assert judge(tests, "def f(x):\n  x.clear()\n  return []").score == 0.0


def test_tests_may_call_their_own_functions():
  tests = "def check(g, f):\n  for f in f:\n    assert g(f) == f + 1\n"
  for call in (
    "check(f, [1, 2])",
    "for x in [[1], [2]]:\n  assert f(x[0]) - 1",
  ):
    assert judge(tests + call, "def f(x): return x + 1").score == 1.0
  named = dict(entry_point="f")
  tests += "check(f, [1, 2])"
  assert judge(tests, "def f(x): return x + 1", **named).score == 1.0
  assert judge(tests, "def f(x): return x", **named).score == 0.0
  assert judge(tests, "pass", **named).score == 0.0


def test_tests_may_use_the_classes_of_a_program():
  tests = "a = Node(1)\na.next = Node(2)\nassert total(a) == 3"
  tests += "\nassert a.next.value == 2"
  program = """
class Node:
  def __init__(self, value):
    self.value, self.next = value, None
def total(node):
  return node.value + total(node.next) if node else 0
"""
  assert judge(tests, program).score == 1.0


def test_generators_and_exceptions_reach_the_tests():
  tests = """
assert list(f(3)) == [0, 1, 2]
try:
  list(f(-1))
  assert False
except ValueError as error:
  assert "negative" in str(error)
"""
  program = """
def f(n):
  if n < 0:
    raise ValueError("negative")
  yield from range(n)
"""
  assert judge(tests, program).score == 1.0
  assert judge(tests, "def f(n): return range(max(n, 0))").score == 0.0


def test_ranges_and_what_is_true_may_be_tested():
  assert judge("assert f(2) == range(2)", "f = range").score == 1.0
  program = "import re\ndef f(x): return re.match('a', x)"
  assert judge("assert f('ab')\nassert not f('b')", program).score == 1.0
  assert judge("assert f('b')", program).score == 0.0


def test_tests_may_hand_over_types_but_no_objects_of_their_own():
  tests = "assert f([1, 'a'], int) == [1]\nassert f([1, 'a'], str) == ['a']"
  program = "def f(x, kind): return [e for e in x if isinstance(e, kind)]"
  assert judge(tests, program).score == 1.0
  for own in ("lambda: 1", "object()", "type('A', (), {})"):
    with pytest.raises(ValueError, match="cannot be passed to a program"):
      judge(f"assert f({own}) == 1", "def f(x): return 1")
  prompt = "def f(x):\n  pass\n\ng = 1 / 0\n"
  with pytest.raises(ValueError, match="before the program: ZeroDivisionError"):
    judge("assert f(1) == g", "def f(x): 1", prompt=prompt, entry_point="f")


def test_a_verdict_does_not_depend_on_the_run(kind):
  tests = [{"input": "", "output": ""}]
  program = "print(*{str(i) for i in range(99)})"
  first, second = (judge(tests, program, kind).feedback for _ in range(2))
  assert first == second
  assert "printed" in first


ROOTS = '''import math

def square(x):
  return x * x

def root(x: int) -> int:
  """The root of a square.
  >>> root(9)
  3
  """
'''
CHECK = """
def check(candidate):
  for i in range(20):
    assert candidate(square(i)) == i
  assert math.isclose(candidate(4), 2)
"""


def test_check_functions(kind):
  run = lambda program, tests=CHECK: judge(
    tests, program, kind, prompt=ROOTS, entry_point="root"
  )
  assert run("  return math.isqrt(x)").score == 1.0
  assert run("def root(y):\n  return math.isqrt(y)").score == 1.0
  body = "  return math.isqrt(x)"
  assert run("from __future__ import annotations\n" + ROOTS + body).score == 1.0
  assert run("  pass").score == 0.0
  assert run("  return x // 2").score == 0.0
  assert run("  return math.isqrt(x))").score == 0.0
  # What the prompt defines, the tests take from the prompt.
  cheat = "def square(x): return 0\ndef root(x): return 0"
  assert run(cheat).score == 0.0


def test_a_program_cannot_stand_in_for_a_module_or_a_builtin():
  tests = "assert sum([f(1), 1]) == 3\nassert math.floor(f(2)) == 4"
  program = "def f(x): return {}\nsum = lambda x: 3\n"
  program += "class math: floor = lambda x: 4"
  assert judge(tests, program.format("2 * x")).score == 1.0
  assert judge(tests, program.format("0")).score == 0.0
  named = dict(entry_point="sum")
  own = "def sum(a, b): return a + b"
  assert judge("assert sum(1, 2) == 3", own, **named).score == 1.0
  assert judge("assert sum([1, 2]) == 3", "x = 1", **named).score == 0.0


@pytest.mark.parametrize("language", ["cpp", "javascript"])
def test_other_languages(language, kind, needs):
  needs(language)
  right, wrong, broken = {
    "cpp": [
      "#include <cstdio>\nint main() { long a, b; "
      f'scanf("%ld%ld", &a, &b); printf("%ld", {result}); }}'
      for result in ("a + b", "a - b", "a +")
    ],
    "javascript": [
      "const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ');"
      f"console.log({result})"
      for result in ("+a + +b", "a + b", "a +")
    ],
  }[language]
  assert judge(SUMS, right, kind, language=language) == (1.0, "")
  assert judge(SUMS, wrong, kind, language=language).score == 0.0
  feedback = judge(SUMS, broken, kind, language=language).feedback
  assert "error" in feedback.lower()


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("</think>\n```python\na\n```", "a\n"),
    ("</think>\n```\na\n```", "a\n"),
    ("</think>\n```Python3 \na\n```\n```py\nb\n```\nso", "b\n"),
    ("</think>\n```py\na\n```\nIt prints:\n```\nb\n```", "a\n"),
    ("</think>\n```py\na\n```\n```bash\nb\n```", "a\n"),
    ("</think><answer>```py\na\n```</answer>", "a\n"),
    ("</think>\n- so:\n  ```py\n  if a:\n    b\n  ```", "if a:\n  b\n"),
    ("</think>\n```py\na\n```\n```py\nb", "a\n"),
    ("</think>\n~~~py\na\n~~~", "a\n"),
    ("</think>\n~~~\na\n```\nb\n~~~", "a\n```\nb\n"),
    ("</think>\n````py\na\n```\nb\n`````", "a\n```\nb\n"),
    ("</think>\n```python3.11 title='a.py'\na\n```", "a\n"),
    ("</think>\n```{.python}\na\n```", "a\n"),
    ("</think>\n```py\na\n```\n``` b ```", "a\n"),
    ("</think>\n```py\na\n~~~", None),
    ("</think>\n````py\na\n```", None),
    ("```py\na\n```\n</think>", None),
    ("```py\na\n```", None),
    ("</think>\nprint(1)", None),
    ("</think>\n```cpp\na\n```", None),
    ("</think>\n```py\n```", ""),
    ("", None),
  ],
)
def test_the_program_is_the_last_block_of_its_language(text, expected):
  assert code.extract(text, sandbox.LANGUAGES["python"].tags) == expected


@settings(deadline=None)
@given(
  st.lists(
    st.sampled_from(
      ["</think>", "```", "```py", "\n", " ", "x", "<answer>", "</answer>", "`"]
      + ["\0", "\ud800", "\t"]
    ),
    max_size=20,
  ).map("".join)
  | st.text()
)
def test_any_text_holds_a_program_or_none(text):
  program = code.extract(text, ("py",))
  assert program is None or isinstance(program, str)


def test_long_texts_are_read_at_once():
  for piece in (
    "```x\n",
    "```\n",
    "`",
    "</think>",
    " ",
    "```" + " " * 90 + "`",
  ):
    code.extract("</think>\n" + piece * (2**20 // len(piece)), ("py",))
  assert judge(DOUBLES, "#" * 2**20).score == 0.0


@settings(max_examples=10, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_any_program_is_right_or_wrong(program):
  assert judge("assert f(1) == 2", program).score == 0.0
  assert judge([dict(input=program, output="12")], program).score == 0.0


@pytest.mark.parametrize(
  ("metadata", "message"),
  [
    (dict(), "no tests"),
    (dict(tests=[]), "no tests"),
    (dict(tests=""), "no tests"),
    (dict(tests="x = 1"), "nothing is tested"),
    (dict(tests="assert f("), "no Python"),
    (dict(tests="def check(f):\n  assert f(1) == 2"), "nothing is tested"),
    (dict(tests="def test_f(a):\n  assert f(a) == 2"), "nothing runs: test_f"),
    (dict(tests=DOUBLES, entry_point="f("), "entry_point is no Python"),
    (dict(tests=SUMS, language="cobol"), "unknown language 'cobol'"),
    (dict(tests=DOUBLES, language="cpp"), "no tests of cpp"),
  ],
)
def test_an_example_that_cannot_be_graded_says_why(metadata, message):
  example = Example("", "", "code", "x", metadata)
  text = completion("", metadata.get("language", "python"))
  with pytest.raises(ValueError, match=message):
    code.judge(example, text, sandbox="none")


HANGS = "import time\ntime.sleep(1000)"


def test_in_a_pool_it_is_the_same(kind):
  right, wrong = "def f(x): return 2 * x", "def f(x): return x"
  programs = [right, wrong, HANGS, right]
  examples = [Example("", "", "code", "", dict(tests=DOUBLES))] * 4
  texts = [completion(program) for program in programs]
  spec = dict(code=dict(weight=2.0, sandbox=kind, seconds=2.0))
  here = rewards.score(examples, texts, **spec)
  with GraderPool(
    num_workers=2, timeout=30.0, preload=["r1jax.rewards"], canaries=()
  ) as pool:
    there = rewards.score(examples, texts, pool=pool, **spec)
  for scores in (here, there):
    np.testing.assert_array_equal(scores.total, [2.0, 0.0, 0.0, 2.0])
    fine, wrong_one, endless, _ = scores.feedback
    assert fine == "" and "AssertionError" in wrong_one
    assert "out of time" in endless
    assert scores.counts == dict(timeouts=0, crashes=0)


def test_accuracy_runs_the_programs_of_its_domain(bwrap):
  examples = [
    Example("", "", "code/test", "", dict(tests=SUMS)),
    Example("", "7", "math", ""),
  ]
  right = completion("print(sum(map(int, input().split())))")
  texts = [right, Completion(r"</think>\boxed{7}")]
  assert rewards.score(examples, texts, accuracy=1.0).total.tolist() == [1, 1]
  scores = rewards.score(examples, [completion("print(0)")] * 2, accuracy=1.0)
  assert scores.total.tolist() == [0, 0]
  assert "case 1: printed" in scores.feedback[0] and not scores.feedback[1]


@pytest.mark.parametrize("name", ["accuracy", "code"])
@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    (dict(sandbox="bwarp"), "sandbox must be one of"),
    (dict(sandbox="none", seconds=0.0), "seconds must be"),
    (dict(language="cobol"), "language"),
  ],
)
def test_a_bad_configuration_is_refused_at_the_start(name, kwargs, message):
  with pytest.raises(ValueError, match=f"rewards.{name}.*{message}"):
    rewards.check(**{name: dict(weight=1.0, **kwargs)})
