"""Code reward: the program passes its tests.

DeepSeek-R1 (arXiv:2501.12948), section 2.2.2: "a compiler can be used to
generate feedback based on predefined test cases". The program is the last
fenced block of its language after the last </think>. It runs in a `sandbox`;
the verdict is reached outside of the process that runs it. `example.metadata`
holds

    tests        a list of {"input", "output"} for a program that reads and
                 prints, or Python text: asserts (MBPP), a `check` (HumanEval)
    entry_point  the function that `check` is given
    language     of the program, a key of `sandbox.LANGUAGES`; "python" if none

A prompt that is itself Python and defines the entry point stands before the
program (HumanEval).

What a program prints is compared outside of the sandbox, to which the outputs
never come. Tests in Python run inside, but in a process of their own, which the
program cannot look into; they come there after the program has been started in
its own, and get copies of the values that it returns. So there is no verdict
that it could forge, read or patch. Limits that remain: tests that call several
of its functions, or look at its objects, trust what these say; objects of its
classes cannot be compared, nor can tests hand it objects of theirs; and what it
changes deep inside of its arguments is only seen in those that are containers.
"""

import ast
import builtins
import contextlib
import functools
import marshal
import re
import symtable
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from r1jax.rewards.sandbox import (
  LANGUAGES,
  Ended,
  Limits,
  Tests,
  run_cases,
  run_tests,
)
from r1jax.rewards.sandbox import check as check_sandbox
from r1jax.types import Completion, Example

MAX_LENGTH = 2**18  # Characters of a program.
MAX_FENCE = 100  # Characters of a line that opens or closes a block.
# The indent, the fence, and the language: the first word behind it.
OPENING = re.compile(
  r"(\s*)(?:<answer>\s*)?(`{3,}|~{3,})\s*\{?\.?([\w+#-]*)[^`]*"
)
CLOSING = re.compile(r"\s*(`{3,}|~{3,})\s*(?:</answer>\s*)?")
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)  # They test nothing, uncalled.
SHOWN = 200  # Characters of a test or an output in the feedback.


class Verdict(NamedTuple):
  """What a program is worth, and what to tell its author."""

  score: float  # 1 if all tests have run and passed; or the share of them.
  feedback: str  # The first thing that went wrong; "" if nothing did.


def check(
  *, partial: bool = False, seconds: float = 4.0, sandbox: str = "bwrap"
) -> None:
  """Raises ValueError if programs cannot be run, and kept in, as asked."""
  del partial
  if not 0 < seconds < 3600:
    raise ValueError(f"seconds must be 0 to 3600, got {seconds}")
  check_sandbox(sandbox)


def reward(
  example: Example,
  completion: Completion,
  *,
  partial: bool = False,
  seconds: float = 4.0,
  sandbox: str = "bwrap",
) -> float:
  """1 if the program passes all its tests, or 0; see `judge`."""
  kwargs = dict(partial=partial, seconds=seconds, sandbox=sandbox)
  return judge(example, completion, **kwargs).score


def judge(
  example: Example,
  completion: Completion,
  *,
  partial: bool = False,
  seconds: float = 4.0,
  sandbox: str = "bwrap",
) -> Verdict:
  """What the program that a completion ends with is worth.

  Args:
    example: see above.
    completion: what was written.
    partial: True to score the share of tests that pass; else any failure is 0,
      and ends the grading.
    seconds: of wall clock, for all tests together, once the sandbox is up. What
      is not done by then has failed, also on a machine that had no time for it:
      give several times what a good program needs, and no more workers than
      cores. To set the sandbox up is no program's fault and not in it. Keep it
      below the grader pool's limit, at which the program is not graded (None).
    sandbox: "bwrap", or "none" for no isolation at all.

  Raises ValueError if the example has no tests that could be run, RuntimeError
  if the sandbox cannot be started: nothing that a program does leads to these.
  """
  language = example.metadata.get("language", "python")
  if language not in LANGUAGES:
    raise ValueError(
      f"{example.id}: unknown language {language!r}; have {[*LANGUAGES]}"
    )
  source = extract(completion.text, LANGUAGES[language].tags)
  if source is None:
    return Verdict(0.0, f"no closed block of {language} after </think>")
  if len(source) > MAX_LENGTH:
    return Verdict(0.0, f"a program of more than {MAX_LENGTH} characters")
  limits = Limits(seconds=seconds)
  tests = example.metadata.get("tests")
  if not tests or (isinstance(tests, str) and language != "python"):
    raise ValueError(f"{example.id}: no tests of {language} are {tests!r:.99}")
  if isinstance(tests, str):
    entry_point = example.metadata.get("entry_point") or ""
    prefix = _as_prefix(example.prompt, entry_point)
    prepared, names = _prepare(tests, entry_point, prefix)
    outcomes = run_tests(prefix, source, prepared, sandbox, limits)
  else:
    names = [f"case {i + 1}" for i in range(len(tests))]
    runs = run_cases(
      language, source, [case["input"] for case in tests], sandbox, limits
    )
    outcomes = _compare(runs, [case["output"] for case in tests])
  return _count(outcomes, names, partial)


def extract(text: str, tags: Sequence[str]) -> str | None:
  """The last fenced block with one of the tags after the last </think>.

  The last without any tag if there is none; None if there is neither. Fences
  are as in Markdown: ``` or ~~~, or longer, closed by no less of the same.
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
  outcomes: Iterator[tuple[bool, str]], names: Sequence[str], partial: bool
) -> Verdict:
  """The verdict on as many outcomes as there are names; what lacks, failed."""
  passed, feedback = 0, ""
  with contextlib.closing(outcomes):
    for name in names:
      try:
        passes, message = next(outcomes)
      except Ended as error:
        feedback = feedback or f"{name}: {error}"
        break
      passed += passes
      if not passes:
        feedback = feedback or f"{name}: {message}"
        if not partial:
          break
  share = passed / len(names)
  return Verdict(share if partial else float(share == 1.0), feedback)


def _compare(runs: Iterator, expected: Sequence[str]) -> Iterator:
  """Yields for each case whether the output is right, token by token."""
  with contextlib.closing(runs):
    build = next(runs)
    if build.status:
      raise Ended(f"cannot be built: {build.errors}")
    for output, run in zip(expected, runs):
      if run.status:
        yield False, f"exit status {run.status}: {run.errors}"
      else:
        right = (
          run.output.split() == output.encode("utf-8", "surrogatepass").split()
        )
        yield right, f"printed {run.output[:SHOWN]!r}, not {output[:SHOWN]!r}"


@functools.lru_cache(4096)
def _as_prefix(prompt: str, entry_point: str) -> str:
  """The prompt, if it is Python that defines the entry point; or ""."""
  try:
    tree = ast.parse(prompt)
  except (SyntaxError, ValueError, MemoryError, RecursionError):
    return ""
  functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
  found = any(node.name == entry_point for node in functions)
  return prompt if found else ""


@functools.lru_cache(4096)
def _prepare(
  tests: str, entry_point: str, prefix: str
) -> tuple[Tests, list[str]]:
  """Python tests as the sandbox takes them, and the source of each test.

  A name that the tests do not define themselves is, in this order: the entry
  point, the prefix's, a builtin, a module of the standard library, or else the
  program's. So a program cannot replace what its tests check it with.
  """
  try:
    nodes = ast.parse(tests).body
  except SyntaxError as error:
    raise ValueError(f"tests are no Python, {error}: {tests!r:.99}") from None
  bound, read = _names(tests)
  functions = {each.name for each in nodes if isinstance(each, DEFINITIONS)}
  if "check" in functions and entry_point and not _calls(nodes, {"check"}):
    nodes += ast.parse(f"check({entry_point})").body
    read.add(entry_point)
  asked = read & {entry_point}
  read -= bound | asked
  given = _names(prefix)[0] - {entry_point}
  free = read - given - {*dir(builtins)}
  modules = free & sys.stdlib_module_names
  setup = prefix if read & given else ""
  setup += "".join(f"\nimport {name}" for name in sorted(modules))
  statements, names = [], []
  for node in nodes:
    code = compile(ast.Module([node], []), "tests", "exec")
    asserts = any(isinstance(each, ast.Assert) for each in ast.walk(node))
    counts = not isinstance(node, DEFINITIONS) and (
      asserts or _calls([node], functions)
    )
    statements.append((marshal.dumps(code), counts))
    if counts:
      text = ast.unparse(node)[:SHOWN]
      names.append(f"test {len(names) + 1}, {text}")
  if not names:
    raise ValueError(f"nothing is tested by {tests!r:.99}")
  return Tests(setup, sorted(free - modules | asked), statements), names


def _calls(nodes: Sequence[ast.stmt], functions: set[str]) -> bool:
  """Whether a statement is a call of one of the functions, and no more."""
  for node in nodes:
    match node:
      case ast.Expr(ast.Call(ast.Name(name))) if name in functions:
        return True
  return False


def _names(source: str) -> tuple[set[str], set[str]]:
  """The global names that Python text binds itself, and those it reads."""
  table = symtable.symtable(source, "tests", "exec")
  bound = {
    symbol.get_name()
    for symbol in table.get_symbols()
    if symbol.is_assigned() or symbol.is_imported()
  }
  read, tables = set(), [table]
  for inner in tables:
    tables += inner.get_children()
    read |= {
      symbol.get_name()
      for symbol in inner.get_symbols()
      if symbol.is_referenced() and (inner is table or symbol.is_global())
    }
  return bound, read
