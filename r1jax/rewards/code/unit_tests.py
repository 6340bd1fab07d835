"""Tests in Python, as a sandbox takes them.

They are the text of a file: asserts (MBPP), a `check` that is given the entry
point (HumanEval), functions `test_*` as pytest runs them, or classes of
unittest. Each statement of the file that can fail because of the program, and
asserts something, is a test. The others prepare tests, and must not fail.

A name that the tests do not define themselves is, in this order: the entry
point, the prefix's, a builtin, a module of the standard library or one of its
usual types, or else the program's. So a program cannot replace what its tests
check it with. Imports from `solution` and the like are of the program, too.
"""

import ast
import builtins
import contextlib
import functools
import marshal
import symtable
import sys
from collections.abc import Iterator, Sequence

from r1jax.rewards.code import checker, usual
from r1jax.rewards.code.sandbox import Statement, Tests

SHOWN = 200  # Characters of a statement in the feedback.
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)  # They test nothing, uncalled.
# What files of tests call the module that they test.
PROGRAMS = {"answer", "candidate", "main", "module", "my_module", "program"}
PROGRAMS |= {"solution", "solutions", "submission", "your_module"}
RUNNERS = ("pytest.main(", "unittest.main(")  # Their work is done here.
INDIRECT = {"eval", "exec", "globals", "locals", "vars"}  # They use any name.


@functools.lru_cache(4096)
def prepare(
  tests: str, entry_point: str, prefix: str
) -> tuple[Tests, list[str]]:
  """The tests of a program, and the text of each of their statements.

  Raises ValueError for tests that are no Python, that test nothing, or some of
  which nothing would run.
  """
  with any_digits():
    try:
      tree = ast.parse(tests)
    except SyntaxError as error:
      raise ValueError(f"tests are no Python, {error}: {tests!r:.99}") from None
    try:
      asked = _mentions(ast.parse(entry_point or "None", mode="eval"))
    except SyntaxError:
      raise ValueError(f"entry_point is no Python: {entry_point!r}") from None
    imports = _Imports()
    nodes = ast.fix_missing_locations(imports.visit(tree)).body
    nodes = [each for each in nodes if not _runs_all(each)]
    asserting = _asserting(nodes)
    nodes += ast.parse("\n".join(_calls(nodes, entry_point, asserting))).body
    setup, names = _resolve(nodes, asked, prefix)
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
  """Lifts the limit on the digits of numbers, for text that is no policy's."""
  limit = sys.get_int_max_str_digits()
  sys.set_int_max_str_digits(0)
  try:
    yield
  finally:
    sys.set_int_max_str_digits(limit)


class _Imports(ast.NodeTransformer):
  """Takes the imports of the program out, and keeps what they name."""

  def __init__(self):
    self.names = {}  # What the program calls it, by the name in the tests.

  def visit_ImportFrom(self, node):
    if node.module not in PROGRAMS:
      return node
    for each in node.names:
      self.names[each.asname or each.name] = each.name
    return ast.Pass()

  def visit_Import(self, node):
    found = [each for each in node.names if each.name in PROGRAMS]
    for each in found:
      self.names[each.asname or each.name] = checker.MODULE
    node.names = [each for each in node.names if each not in found]
    return node if node.names else ast.Pass()


def _mentions(node: ast.AST) -> set[str]:
  """The names that a statement reads or binds, those of its functions too."""
  names = set()
  for each in ast.walk(node):
    match each:
      case ast.Name(name) | ast.alias(name, None) | ast.alias(_, str(name)):
        names.add(name.partition(".")[0])
      case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
        names.add(each.name)
  return names


def _runs_all(node: ast.stmt) -> bool:
  text = "" if isinstance(node, DEFINITIONS) else ast.unparse(node)
  return any(runner in text for runner in RUNNERS)


def _asserting(nodes: Sequence[ast.stmt]) -> set[str]:
  """The functions and classes in which something is asserted."""
  found, size = set(), -1
  definitions = [node for node in nodes if isinstance(node, DEFINITIONS)]
  while len(found) > size:
    size = len(found)
    found |= {node.name for node in definitions if _asserts(node, found)}
  return found


def _asserts(node: ast.AST, asserting: set[str]) -> bool:
  """Whether it asserts or raises, or mentions what does."""
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
  """Yields the calls that run those tests which their file only defines."""
  used = set()
  for node in nodes:
    own = {node.name} if isinstance(node, DEFINITIONS) else set()
    used |= _mentions(node) - own
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
  """Whether it is a function that needs that many arguments, and no more."""
  if not isinstance(node, ast.FunctionDef):
    return False
  arguments = node.args
  needed = len(arguments.posonlyargs + arguments.args) - len(arguments.defaults)
  needed += arguments.kw_defaults.count(None)
  return needed <= count and not node.decorator_list


def _resolve(
  nodes: Sequence[ast.stmt], asked: set[str], prefix: str
) -> tuple[str, set[str]]:
  """What defines names that the tests use, and the names of the program."""
  text = ast.unparse(ast.Module([*nodes], []))
  bound, read = _globals(text)
  own = asked & read
  free = read - bound - own
  given = _globals(prefix)[0] - own
  setup = [prefix] if free & given else []
  free -= given | {*dir(builtins)}
  for name in sorted(free):
    if name in sys.stdlib_module_names:
      setup.append(f"import {name}")
    elif name in usual.TYPES:
      setup.append(f"from {usual.TYPES[name]} import {name}")
  free -= sys.stdlib_module_names | usual.TYPES.keys()
  return "\n".join(setup), free | own


def _globals(source: str) -> tuple[set[str], set[str]]:
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


def _statements(
  nodes: Sequence[ast.stmt], program: set[str], asserting: set[str]
) -> Iterator[Statement]:
  """Yields the statements: what depends on the program, directly or by a name.

  A name that stands in one statement with the program's may have changed by it,
  but for builtins and imported ones.
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
