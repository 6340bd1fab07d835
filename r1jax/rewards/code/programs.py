"""Code reward: whether a program passes its tests.

DeepSeek-R1 (arXiv:2501.12948), section 2.2.2: "a compiler can be used to
generate feedback based on predefined test cases". The program is the last
fenced block of its language after the last </think>. It runs in a `sandbox`.
`example.metadata` holds

    tests        a list of {"input", "output"} for programs that read standard
                 input and print, each a text or a list of lines; or Python
                 text, or a list of such texts (see `unit_tests`)
    entry_point  the function that `check` takes, or an expression for it, such
                 as "Solution().twoSum"
    language     a key of `sandbox.LANGUAGES`; "python" by default

A prompt that is Python text and defines the entry point is placed before the
program (HumanEval).

A program cannot forge, read or patch its verdict. What it prints is compared
outside of the sandbox, where the expected outputs stay. Tests in Python run in
the sandbox in a process of their own: they are sent there after the program has
been started in its process, and see only copies of the values that it returns.
Known limits: a test that calls several functions of the program, or inspects
its objects, trusts what these return; objects of the program's classes cannot
be compared; tests cannot pass it objects of their own classes; and changes that
the program makes to its arguments are seen only in containers.
"""

import ast
import contextlib
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from r1jax.rewards.code import unit_tests
from r1jax.rewards.code.sandbox import (
  KINDS,
  LANGUAGES,
  Ended,
  Limits,
  run_cases,
  run_tests,
)
from r1jax.rewards.code.sandbox import check as check_sandbox
from r1jax.text import Completion, Example

MAX_LENGTH = 2**18  # Characters of a program.
MAX_FENCE = 100  # Characters of a line that opens or closes a block.
# The indent, the fence, and the language: the first word after the fence.
OPENING = re.compile(
  r"(\s*)(?:<answer>\s*)?(`{3,}|~{3,})\s*\{?\.?([\w+#-]*)[^`]*"
)
CLOSING = re.compile(r"\s*(`{3,}|~{3,})\s*(?:</answer>\s*)?")
SHOWN = 200  # Characters of an output that the feedback quotes.
MAX_FEEDBACK = 2000  # Characters.
# An expected number with a decimal point, and any number that is printed.
POINT = re.compile(rb"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?")
NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
MAX_NUMBER = 400  # Characters of a number that is compared by its value.
TOLERANCE = 1e-6  # Absolute or relative.


class Verdict(NamedTuple):
  """The score of a program, and feedback on it."""

  score: float  # 1 if all tests ran and passed, else 0; or their share.
  feedback: str  # The first failure; "" without one.


class Result(NamedTuple):
  """The verdict on a program, and what it took."""

  verdict: Verdict
  cpu_seconds: float  # Of all runs, without the build.


class Outcome(NamedTuple):
  """The result of one test, or of a statement that prepares tests."""

  name: str
  passes: bool
  message: str
  counts: bool = True  # False for statements that prepare tests.
  cpu_seconds: float = 0.0  # Of the program so far.


def check_arguments(
  *,
  partial: bool = False,
  seconds: float = 4.0,
  sandbox: str = "bwrap",
  packages: Sequence[str] = (),
) -> None:
  """Raises ValueError for arguments that `judge` accepts on no machine."""
  del partial
  if not 0 < seconds < 3600:
    raise ValueError(f"seconds must be 0 to 3600, got {seconds}")
  if sandbox not in KINDS:
    raise ValueError(f"sandbox must be one of {[*KINDS]}, got {sandbox!r}")
  if isinstance(packages, str):
    raise ValueError(f"packages must be a list of names, got {packages!r}")


def check(
  *, sandbox: str = "bwrap", packages: Sequence[str] = (), **kwargs
) -> None:
  """Raises ValueError unless this machine can run and isolate programs so."""
  check_arguments(sandbox=sandbox, packages=packages, **kwargs)
  check_sandbox(sandbox, tuple(packages))


def reward(
  example: Example,
  completion: Completion,
  *,
  partial: bool = False,
  seconds: float = 4.0,
  sandbox: str = "bwrap",
  packages: Sequence[str] = (),
) -> float:
  """Returns the score of `judge`: 1 if the program passes all tests, else 0."""
  kwargs = dict(
    partial=partial, seconds=seconds, sandbox=sandbox, packages=packages
  )
  return judge(example, completion, **kwargs).score


def judge(
  example: Example,
  completion: Completion,
  *,
  partial: bool = False,
  seconds: float = 4.0,
  sandbox: str = "bwrap",
  packages: Sequence[str] = (),
) -> Verdict:
  """Returns the score of the program in a completion, and feedback on it.

  Args:
    example: its metadata holds the tests; see the module.
    completion: its last fenced block is the program.
    partial: True to score the share of tests that pass. Otherwise the first
      failure ends the grading with a score of 0.
    seconds: wall-clock time to build the program and to run all tests, without
      the start of the sandbox. Tests that have not finished by then count as
      failed, even if the machine was busy: set it to several times what a good
      program needs (GCC alone takes one second), and use no more workers than
      cores. Keep it below the grader pool's timeout, after which the value is
      None.
    sandbox: "bwrap", or "none" for no isolation at all.
    packages: names of installed packages that programs and tests in Python may
      import, besides the standard library. Their dependencies must be named
      too.

  Raises ValueError, which names the example, if its tests cannot be run, and
  RuntimeError if the sandbox cannot be started. Nothing that a program does
  raises these.
  """
  limits = Limits(seconds=seconds, packages=tuple(packages))
  return test(example, completion, sandbox, limits, partial=partial).verdict


def test(
  example: Example,
  completion: Completion,
  sandbox: str,
  limits: Limits,
  *,
  partial: bool = False,
) -> Result:
  """Does what `judge` does, within `limits`, and measures the CPU time."""
  try:
    return _test(example, completion.text, partial, sandbox, limits)
  except ValueError as error:
    message = " ".join(str(error).split())
    raise ValueError(f"{example.id}: {message}") from error


def find(example: Example, text: str) -> tuple[str, str | None, str]:
  """Returns the language, the program in a completion, and why there is none.

  Raises ValueError for a language that there is not.
  """
  language = example.metadata.get("language", "python")
  if language not in LANGUAGES:
    raise ValueError(f"unknown language {language!r}; have {[*LANGUAGES]}")
  source = extract(text, LANGUAGES[language].tags)
  if source is None:
    return language, None, f"no closed block of {language} after </think>"
  if len(source) > MAX_LENGTH:
    return language, None, f"a program of more than {MAX_LENGTH} characters"
  return language, source, ""


def prefix_of(example: Example) -> str:
  """Returns the prompt if it is the beginning of the program; "" if not."""
  return _as_prefix(example.prompt, example.metadata.get("entry_point") or "")


def _test(
  example: Example, text: str, partial: bool, sandbox: str, limits: Limits
) -> Result:
  language, source, reason = find(example, text)
  tests = _read(example.metadata.get("tests"))
  if not tests or (isinstance(tests, str) and language != "python"):
    raise ValueError(f"no tests of {language} are {tests!r:.99}")
  if source is None:
    return Result(Verdict(0.0, reason), 0.0)
  if isinstance(tests, str):
    entry_point = example.metadata.get("entry_point") or ""
    prefix = prefix_of(example)
    prepared, texts = unit_tests.prepare(tests, entry_point, prefix)
    counts = [each.counts for each in prepared.statements]
    names = [text for text, counted in zip(texts, counts) if counted]
    reports = run_tests(prefix, source, prepared, sandbox, limits)
    outcomes = (
      Outcome(texts[number], passes, message, counts[number], cpu_seconds)
      for number, passes, message, cpu_seconds in reports
    )
  else:
    names = [f"case {i + 1}" for i in range(len(tests))]
    runs = run_cases(
      language, source, [stdin for stdin, _ in tests], sandbox, limits
    )
    outcomes = _compare(runs, [expected for _, expected in tests])
  return _count(outcomes, names, partial)


def _read(tests) -> str | list[tuple[str, str]]:
  """Returns tests as Python text, or as the (input, output) of each case.

  Raises ValueError for any other form.
  """
  if isinstance(tests, str) or not tests:
    return tests or ""
  if isinstance(tests, Sequence):
    if all(isinstance(each, str) for each in tests):
      return "\n".join(tests)
    if all(isinstance(each, Mapping) for each in tests):
      return [(_lines(case, "input"), _lines(case, "output")) for case in tests]
  raise ValueError(
    "tests must be Python text, a list of such texts, or a list of "
    f'{{"input", "output"}}, got {tests!r:.99}'
  )


def _lines(case: Mapping, key: str) -> str:
  """Returns the text under a key of a case; a list holds its lines."""
  value = case.get(key)
  if isinstance(value, (list, tuple)):
    if all(isinstance(each, (str, int, float)) for each in value):
      return "".join(f"{each}\n" for each in value)
  elif isinstance(value, str):
    return value
  raise ValueError(f"no {key} of a test is {value!r:.99} in {case!r:.99}")


def extract(text: str, tags: Sequence[str]) -> str | None:
  """Returns the last fenced block with one of the tags after </think>.

  If no block has one of the tags, the last block without any tag; None if there
  is neither. Fences are as in Markdown: three or more of ` or ~, closed by at
  least as many.
  """
  _, closed, text = text.rpartition("</think>")
  tagged = untagged = opening = None
  lines = []
  for line in text.split("\n") if closed else ():
    fence = len(line) <= MAX_FENCE and ("```" in line or "~~~" in line)
    if opening is None:
      opening = OPENING.fullmatch(line) if fence else None
      lines = []
    elif fence and (end := CLOSING.fullmatch(line)) and opening[2] in end[1]:
      indent, tag = opening[1], opening[3].lower()
      block = "".join(line.removeprefix(indent) + "\n" for line in lines)
      if tag in tags:
        tagged = block
      elif not tag:
        untagged = block
      opening = None
    else:
      lines.append(line)
  return untagged if tagged is None else tagged


def _count(
  outcomes: Iterator[Outcome], names: Sequence[str], partial: bool
) -> Result:
  """Returns the verdict on the tests `names`; those that did not run failed.

  Each failed statement that prepares tests counts as one more failed test.
  """
  tested = passed = failed = 0
  feedback, cpu_seconds = "", 0.0
  with contextlib.closing(outcomes):
    try:
      for outcome in outcomes:
        tested += outcome.counts
        cpu_seconds = outcome.cpu_seconds
        passed += outcome.counts and outcome.passes
        if not outcome.passes:
          failed += not outcome.counts
          feedback = feedback or f"{outcome.name}: {outcome.message}"
          if not partial:
            break
    except Ended as error:
      failed += tested == len(names)
      name = names[min(tested, len(names) - 1)]
      feedback = feedback or f"{name}: {error}"
  share = passed / (len(names) + failed)
  score = share if partial else float(share == 1.0)
  return Result(Verdict(score, feedback[:MAX_FEEDBACK]), cpu_seconds)


def _compare(runs: Iterator, expected: Sequence[str]) -> Iterator[Outcome]:
  """Yields the outcome of each case: whether its output is as expected."""
  with contextlib.closing(runs):
    build = next(runs)
    if build.status:
      raise Ended(f"cannot be built: {build.errors}")
    cpu_seconds = 0.0
    for i, (output, run) in enumerate(zip(expected, runs)):
      name = f"case {i + 1}"
      cpu_seconds += run.cpu_seconds
      if run.status:
        message = f"exit status {run.status}: {run.errors}"
        yield Outcome(name, False, message, True, cpu_seconds)
      else:
        same = same_output(run.output, output.encode("utf-8", "surrogatepass"))
        message = f"printed {run.output[:SHOWN]!r}, not {output[:SHOWN]!r}"
        yield Outcome(name, same, message, True, cpu_seconds)


def same_output(printed: bytes, expected: bytes) -> bool:
  """Whether two outputs have the same tokens, separated by whitespace.

  An expected number with a decimal point equals numbers within TOLERANCE of it.
  Integers and words must be the same text.
  """
  tokens, targets = printed.split(), expected.split()
  if len(tokens) != len(targets):
    return False
  return all(x == y or _is_close(x, y) for x, y in zip(tokens, targets))


def _is_close(token: bytes, expected: bytes) -> bool:
  """Whether a printed number is within TOLERANCE of an expected one."""
  if len(token) > MAX_NUMBER or not POINT.fullmatch(expected):
    return False
  if not NUMBER.fullmatch(token):
    return False
  value, number = float(token), float(expected)
  return math.isclose(value, number, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


@functools.lru_cache(4096)
def _as_prefix(prompt: str, entry_point: str) -> str:
  """Returns a prompt that is Python and defines the entry point; "" if not."""
  try:
    with unit_tests.any_digits():
      tree = ast.parse(prompt)
  except (SyntaxError, ValueError, MemoryError, RecursionError):
    return ""
  root = re.match(r"\w*", entry_point)[0]
  defined = [
    node.name for node in tree.body if isinstance(node, unit_tests.DEFINITIONS)
  ]
  return prompt if root in defined else ""
