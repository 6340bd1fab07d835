"""Prepares tests that are Python text for the sandbox.

The text is that of a file: asserts (MBPP), a function `check` that takes the
entry point (HumanEval), functions `test_*` as pytest runs them, or classes of
unittest. A statement is a test if it asserts something and can fail because of
the program. All other statements are setup, and must not fail.

A name that the tests do not define is looked up in this order: the entry point,
the prefix, builtins, modules and common types of the standard library, the
program. A program therefore cannot replace what the tests check it with. Names
imported from `solution` and similar modules come from the program.
"""

import ast
import builtins
import contextlib
import functools
import marshal
import symtable
import sys
from collections.abc import Iterator, Sequence

from r1jax.rewards.code import checker, prelude
from r1jax.rewards.code.sandbox import Statement, Tests

SHOWN = 200  # Characters of a statement that the feedback quotes.
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)  # They test nothing until called.
# Names under which test files import the module that they test.
PROGRAMS = {"answer", "candidate", "main", "module", "my_module", "program"}
PROGRAMS |= {"solution", "solutions", "submission", "your_module"}
RUNNERS = ("pytest.main(", "unittest.main(")  # Removed: `_calls` replaces them.
INDIRECT = {"eval", "exec", "globals", "locals", "vars"}  # May use any name.


@functools.lru_cache(4096)
def prepare(
  tests: str, entry_point: str, prefix: str
) -> tuple[Tests, list[str]]:
  """Returns the tests of a program, and the text of each of their statements.

  Raises ValueError if the tests are not Python, test nothing, or define a test
  that nothing would run.
  """
  with any_digits():
    try:
      tree = ast.parse(tests)
    except SyntaxError as error:
      raise ValueError(f"tests are no Python, {error}: {tests!r:.99}") from None
    try:
      entry_names = _mentions(ast.parse(entry_point or "None", mode="eval"))
    except SyntaxError:
      raise ValueError(f"entry_point is no Python: {entry_point!r}") from None
    imports = _Imports()
    nodes = ast.fix_missing_locations(imports.visit(tree)).body
    nodes = [each for each in nodes if not _runs_all(each)]
    asserting = _asserting(nodes)
    nodes += ast.parse("\n".join(_calls(nodes, entry_point, asserting))).body
    setup, names = _resolve(nodes, entry_names, prefix)
    names = {name: imports.names.get(name, name) for name in names}
    statements = [*_statements(nodes, {*names}, asserting)]
    texts = [ast.unparse(node)[:SHOWN] for node in nodes]
  numbers = [i for i, each in enumerate(statements) if each.counts]
  for i, number in enumerate(numbers):
    texts[number] = f"test {i + 1}, {texts[number]}"
  if not numbers:
    raise ValueError(f"nothing is tested by {tests!r:.99}")
  return Tests(setup, names, statements), texts


@contextlib.contextmanager
def any_digits() -> Iterator[None]:
  """Lifts Python's limit on the digits of integers, for trusted text."""
  limit = sys.get_int_max_str_digits()
  sys.set_int_max_str_digits(0)
  try:
    yield
  finally:
    sys.set_int_max_str_digits(limit)


class _Imports(ast.NodeTransformer):
  """Removes the tests' imports of the program, and records their names."""

  def __init__(self):
    self.names = {}  # Name in the tests -> name in the program.

  def visit_ImportFrom(self, node):
    if node.module not in PROGRAMS:
      return node
    for each in node.names:
      self.names[each.asname or each.name] = each.name
    return ast.Pass()

  def visit_Import(self, node):
    programs = [each for each in node.names if each.name in PROGRAMS]
    for each in programs:
      self.names[each.asname or each.name] = checker.MODULE
    node.names = [each for each in node.names if each not in programs]
    return node if node.names else ast.Pass()


def _mentions(node: ast.AST) -> set[str]:
  """Returns the names that a statement reads or binds, in its functions too."""
  names = set()
  for each in ast.walk(node):
    match each:
      case ast.Name(name) | ast.alias(name, None) | ast.alias(_, str(name)):
        names.add(name.partition(".")[0])
      case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
        names.add(each.name)
  return names


def _runs_all(node: ast.stmt) -> bool:
  """Whether a statement calls a test runner."""
  text = "" if isinstance(node, DEFINITIONS) else ast.unparse(node)
  return any(runner in text for runner in RUNNERS)


def _asserting(nodes: Sequence[ast.stmt]) -> set[str]:
  """Returns the names of functions and classes that assert something."""
  names, size = set(), -1
  definitions = [node for node in nodes if isinstance(node, DEFINITIONS)]
  while len(names) > size:  # They may call each other.
    size = len(names)
    names |= {node.name for node in definitions if _asserts(node, names)}
  return names


def _asserts(node: ast.AST, asserting: set[str]) -> bool:
  """Whether a node asserts or raises, or mentions a name in `asserting`."""
  for each in ast.walk(node):
    match each:
      case ast.Assert() | ast.Raise():
        return True
      case ast.Name(name) | ast.Attribute(_, name):
        if name in asserting or name.startswith("assert"):
          return True
  return False


def _calls(
  nodes: Sequence[ast.stmt], entry_point: str, asserting: set[str]
) -> Iterator[str]:
  """Yields calls of the tests that the file defines and does not call."""
  used = set()
  for node in nodes:
    itself = {node.name} if isinstance(node, DEFINITIONS) else set()
    used |= _mentions(node) - itself
  for node in nodes:
    if not isinstance(node, DEFINITIONS) or node.name in used:
      continue
    is_class = isinstance(node, ast.ClassDef)
    if is_class and (node.bases or node.name.startswith("Test")):
      yield from _calls_of_class(node)
    elif node.name == "check" and entry_point:
      yield f"check({entry_point})"
    elif node.name.startswith("test") and not is_class and _is_plain(node, 0):
      yield f"{node.name}()"
    elif node.name in asserting and (
      node.name.startswith("test") or _is_plain(node, 0)
    ):
      raise ValueError(f"tests that nothing runs: {node.name}")


def _calls_of_class(node: ast.ClassDef) -> Iterator[str]:
  """Yields a call of each test method of a class."""
  methods = [each for each in node.body if isinstance(each, FUNCTIONS)]
  names = {each.name for each in methods}
  is_case = any("TestCase" in ast.unparse(base) for base in node.bases)
  if is_case and "setUpClass" in names:
    yield f"{node.name}.setUpClass()"
  for each in methods:
    if not each.name.startswith("test"):
      continue
    if is_case:
      yield f"{node.name}({each.name!r}).debug()"
    elif node.bases or not _is_plain(each, 1) or "setup_method" in names:
      raise ValueError(f"tests that nothing runs: {node.name}.{each.name}")
    else:
      yield f"{node.name}().{each.name}()"


def _is_plain(node: ast.stmt, count: int) -> bool:
  """Whether a node is a function that can be called with `count` arguments."""
  if not isinstance(node, ast.FunctionDef):
    return False
  arguments = node.args
  needed = len(arguments.posonlyargs + arguments.args) - len(arguments.defaults)
  needed += arguments.kw_defaults.count(None)
  return needed <= count and not node.decorator_list


def _resolve(
  nodes: Sequence[ast.stmt], entry_names: set[str], prefix: str
) -> tuple[str, set[str]]:
  """Returns the setup that the tests need, and the names of the program.

  The setup is Python text that defines names which the tests use: the prefix
  and imports from the standard library.
  """
  text = ast.unparse(ast.Module([*nodes], []))
  bound, read = _globals(text)
  entry = entry_names & read
  free = read - bound - entry
  in_prefix = _globals(prefix)[0] - entry
  setup = [prefix] if free & in_prefix else []
  free -= in_prefix | {*dir(builtins)}
  for name in sorted(free):
    if name in sys.stdlib_module_names:
      setup.append(f"import {name}")
    elif name in prelude.TYPES:
      setup.append(f"from {prelude.TYPES[name]} import {name}")
  free -= sys.stdlib_module_names | prelude.TYPES.keys()
  return "\n".join(setup), free | entry


def _globals(source: str) -> tuple[set[str], set[str]]:
  """Returns the global names that Python text binds, and those it reads."""
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


def _statements(
  nodes: Sequence[ast.stmt], program: set[str], asserting: set[str]
) -> Iterator[Statement]:
  """Yields the compiled statements; those that test the program count.

  A statement depends on the program if it mentions one of its names, or a name
  that an earlier dependent statement mentions and may have changed. Builtins
  and imported names do not change.
  """
  fixed = {*dir(builtins)} - INDIRECT - program
  program = program | INDIRECT
  for node in nodes:
    names = _mentions(node) - fixed
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      fixed |= names
    independent = not names & program
    if not independent:
      program |= names
    code = marshal.dumps(compile(ast.Module([node], []), "tests", "exec"))
    plain = isinstance(node, DEFINITIONS) or independent
    yield Statement(code, not plain and _asserts(node, asserting), independent)
