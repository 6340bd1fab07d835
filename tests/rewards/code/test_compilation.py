"""A program compiles or not, whatever it would compute."""

import re

import pytest

from r1jax import rewards
from r1jax.rewards.code import compilation
from r1jax.text import DOES_NOT_APPLY, Completion, Example


def example(language="python", prompt="", entry_point=""):
  metadata = dict(language=language, entry_point=entry_point)
  return Example(prompt, "", "code", "toy:1", metadata)


def program(source, language="python"):
  return Completion(f"<think>t</think>\n```{language}\n{source}\n```")


@pytest.mark.parametrize(
  ("language", "source", "expected", "feedback"),
  [
    ("python", "def f(x): return undefined", 1.0, ""),
    ("python", "while True: pass", 1.0, ""),
    ("python", "", 1.0, ""),
    ("python", "def f(x) return 1", 0.0, "SyntaxError: .*line 1"),
    ("python", "x = 1\nreturn x", 0.0, "outside function .*line 2"),
    ("python", "for i in []:\n  pass\nbreak", 0.0, "'break' outside loop"),
    ("python", "(" * 500 + ")" * 500, 0.0, "too many nested parentheses"),
    ("python", "x = 1\0", 0.0, "null bytes"),
    ("cpp", "int main() { while (true); }", 1.0, ""),
    ("cpp", "int main() { return x; }", 0.0, "'?‘?x’?'? was not declared"),
    ("cpp", "#include <nothing.h>\nint main() {}", 0.0, "nothing.h"),
    ("javascript", "let x = undefinedName;", 1.0, ""),
    ("javascript", "let = = 1", 0.0, "SyntaxError"),
  ],
)
def test_whether_it_compiles(kind, needs, language, source, expected, feedback):
  if language != "python":
    needs(language)
  value, why = compilation.judge(
    example(language), program(source, language), sandbox=kind, seconds=20.0
  )
  assert value == expected, why
  assert re.search(feedback, why) if feedback else why == ""


def test_a_prompt_that_is_the_head_of_a_function_is_a_part_of_it(kind):
  head = 'def f(x):\n  """Twice."""\n'
  asked = example(prompt=head, entry_point="f")
  judge = lambda source: compilation.reward(
    asked, program(source), sandbox=kind
  )
  assert judge("  return 2 * x") == 1.0
  assert judge("def f(x):\n  return 2 * x") == 1.0
  assert judge("  return 2 *") == 0.0
  assert (
    compilation.reward(example(), program("  return 2 * x"), sandbox=kind)
    == 0.0
  )


def test_what_is_no_program_does_not_compile():
  for text in ("", "<think>t</think>none", "```python\nx = 1\n```"):
    value, why = compilation.judge(example(), Completion(text))
    assert value == 0.0 and "no closed block of python" in why
  long = compilation.judge(example(), program("#" * 2**19))
  assert long[0] == 0.0 and "characters" in long[1]


def test_a_program_that_takes_long_to_compile_does_not(kind, needs):
  needs("cpp")
  slow = "template<int n> struct F { static const int v = F<n-1>::v + "
  slow += "F<n-2>::v; };\n#include <regex>\nint main() {}"
  value, why = compilation.judge(
    example("cpp"), program(slow, "cpp"), sandbox=kind, seconds=0.05
  )
  assert value == 0.0 and "out of time" in why


def test_it_applies_to_programs_only():
  other = Example("1 + 1 =", "2", "math")
  assert compilation.judge(other, Completion("2")) == (DOES_NOT_APPLY, "")


def test_it_is_a_part_of_its_own(bwrap):
  metadata = dict(tests="assert f(1) == 2")
  asked = Example("", "", "code", "toy:1", metadata)
  sources = ["def f(x): return 2 * x", "def f(x): return x", "def f(x)"]
  scores = rewards.score(
    [asked] * 3, [*map(program, sources)], code=1.0, compiles=0.1
  )
  assert scores.parts["code"].tolist() == [1.0, 0.0, 0.0]
  assert scores.parts["compiles"].tolist() == [1.0, 1.0, 0.0]
  assert scores.total.tolist() == [1.1, 0.1, 0.0]
  assert scores.feedback[0] == "" and "SyntaxError" in scores.feedback[2]
