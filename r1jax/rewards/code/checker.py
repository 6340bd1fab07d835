"""What runs inside of a sandbox to test functions: the tests, and the program.

    sandbox <-- socket --> checker -- fork --> program
                              ^---- pipes -----^

The program only computes values. Its tests run in the checker, on copies of
them made of plain types: no object, method or memory of the program is there.
`bubblewrap` hands this file over compiled; it imports next to nothing, for
speed.
"""

import builtins
import marshal
import os
import sys

from r1jax.rewards.code.usual import provide
from r1jax.rewards.code.values import decode, encode, receive, send

MAX_MESSAGE = 1000  # Characters of an error that are reported.
OF_PROGRAM = "of_program"  # The attribute of exceptions that it has raised.
MODULE = "program."  # The name of the whole program; no object has such a one.


def describe(error: BaseException) -> str:
  """The error in a line, with its place in the program."""
  place, trace = "", error.__traceback__
  while trace:
    if trace.tb_frame.f_code.co_filename == "program":
      place = f" (line {trace.tb_lineno})"
    trace = trace.tb_next
  return f"{type(error).__name__}: {error}"[:MAX_MESSAGE] + place


# The program.

OPERATIONS = {
  "call": lambda function, /, *args, **kwargs: function(*args, **kwargs),
  "item": lambda container, key: container[key],
  "getattr": getattr,
  "setattr": setattr,
  "iter": iter,
  "next": next,
  "len": len,
  "bool": bool,
  "str": str,
}


def serve(read: int, write: int, prefix: str, source: str) -> None:
  """Runs the prefix, then the program, and then what the checker asks of it.

  How the prefix did is sent before anything of the program has run.
  """
  module = type(sys)("program")
  sys.modules["program"] = module
  objects = {"builtins." + key: value for key, value in vars(builtins).items()}
  objects[MODULE] = module

  def name(value):
    key = str(id(value))
    objects[key] = value
    return key

  def find(key):
    for place in objects, module.__dict__:
      if key in place:
        return place[key]
    raise NameError(f"name {key!r} is not defined")

  send(write, encode(_failure(run, "", prefix, module.__dict__)))
  send(write, encode(_failure(run, prefix, source, module.__dict__)))
  while True:
    request = receive(lambda size: os.read(read, size))
    try:
      operation, args, kwargs = decode(request, find)
      before = encode((args, kwargs), name)
      value = OPERATIONS[operation](*args, **kwargs)
      unchanged = encode((args, kwargs), name) == before
      changed = None if unchanged else (args, kwargs)
      reply = encode((None, value, changed), name)
    except BaseException as error:
      reply = encode((_kind(error), describe(error), None))
    send(write, reply)


def _failure(function, *args) -> str | None:
  """What went wrong in a call; None if nothing did."""
  try:
    function(*args)
  except BaseException as error:
    return describe(error)


def run(prefix: str, source: str, namespace: dict) -> None:
  """Runs Python text that stands on its own, or that continues the prefix."""
  try:
    code = compile(source, "program", "exec")
  except SyntaxError:
    code = compile(prefix + source, "program", "exec")
  provide(code, namespace)
  exec(code, namespace)


def _kind(error: BaseException) -> str:
  """The builtin class that an exception is of, or derives from."""
  for kind in type(error).__mro__:
    if getattr(builtins, kind.__name__, None) is kind:
      return kind.__name__
  return ""


# The checker.


class Program:
  """What to ask a program, and how."""

  def __init__(self, read: int, write: int):
    self._read, self._write = read, write

  def hear(self, find=None):
    """The next value that the program sends."""
    return decode(receive(lambda size: os.read(self._read, size)), find)

  def ask(self, operation: str, /, *args, **kwargs):
    """Has the program do the operation.

    Arguments that it changed in place are changed where it returns nothing.
    Else it could answer `f(x) == sorted(x)` with an empty list, twice. What it
    raises ends no iteration of the tests but one over its own iterators: to a
    `map` that calls it, StopIteration would be the end.
    """
    send(self._write, encode((operation, args, kwargs), name_for_program))
    error, value, changed = self.hear(lambda name: Remote(self, name))
    if error is not None:
      kind = getattr(builtins, error, None)
      ends = (StopIteration, StopAsyncIteration) if operation != "next" else ()
      if not isinstance(kind, type) or not issubclass(kind, Exception):
        kind = RuntimeError
      raised = RuntimeError(value) if issubclass(kind, ends) else kind(value)
      setattr(raised, OF_PROGRAM, True)
      raise raised
    if value is None and changed:
      new_args, new_kwargs = changed
      pairs = [*zip(args, new_args)]
      pairs += [(kwargs[key], new_kwargs[key]) for key in kwargs]
      for old, new in pairs:
        if type(old) is list:
          old[:] = new
        elif type(old) in (dict, set):
          old.clear()
          old.update(new)
    return value


class Remote:
  """An object that only the program has: it can be used, but not compared.

  What compares itself could say that it equals anything. Whether it is true it
  may say: where a test asks for no more, True itself would do.
  """

  def __init__(self, program: Program, name: str):
    object.__setattr__(self, "_program", program)
    object.__setattr__(self, "_name", name)

  def __call__(self, /, *args, **kwargs):  # noqa: D102
    return self._program.ask("call", self, *args, **kwargs)

  def __getattr__(self, name):
    return self._program.ask("getattr", self, name)

  def __setattr__(self, name, value):
    self._program.ask("setattr", self, name, value)

  def __getitem__(self, key):
    return self._program.ask("item", self, key)

  def __iter__(self):
    return self._program.ask("iter", self)

  def __next__(self):
    return self._program.ask("next", self)

  def __len__(self):
    return self._program.ask("len", self)

  def __bool__(self):
    return self._program.ask("bool", self)

  def __str__(self):
    return self._program.ask("str", self)

  def _refuse(self, *_):
    raise TypeError("an object of the program itself cannot be compared")

  __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
  __hash__ = None


class Unusable(BaseException):
  """What a test does cannot be done here, whatever the program."""


def name_for_program(value) -> str:
  """The name under which the program has the object."""
  if type(value) is Remote:
    return value._name
  name = getattr(value, "__name__", "")
  if getattr(builtins, name, None) is value:
    return "builtins." + name
  raise Unusable(f"a program can be given no {type(value).__name__}")


def check(tests: dict, program: Program):
  """Yields the number of a statement, whether it holds, and why not.

  Statements that hold are told of where they count as tests, those that fail
  always. None instead of False: the tests are at fault, and it ends here.
  """
  if (failure := program.hear()) is not None:
    yield 0, None, f"before the program: {failure}"
    return
  failure = program.hear()
  namespace = {"__name__": "__main__"}
  try:
    exec(compile(tests["setup"], "setup", "exec"), namespace)
  except BaseException as error:
    yield 0, None, f"before the tests: {describe(error)}"
    return
  for name, key in tests["names"].items():
    namespace[name] = Remote(program, key)
  for number, (code, counts, independent) in enumerate(tests["statements"]):
    holds, message = failure is None, f"{failure}"[:MAX_MESSAGE]
    if holds:
      try:
        exec(marshal.loads(code), namespace)
      except BaseException as error:
        holds, message = _blames(error, independent), describe(error)
    elif not counts:
      continue
    if counts or not holds:
      yield number, holds, message


def _blames(error: BaseException, independent: bool) -> bool | None:
  """False if an error is the program's fault, None if it is the tests' own.

  A statement that has nothing to do with the program fails by itself, unless
  for want of what the program may have used up.
  """
  if isinstance(error, Unusable):
    return None
  if isinstance(error, ModuleNotFoundError):
    return False if hasattr(error, "of_program") else None
  scarce = isinstance(error, (MemoryError, OSError))
  scarce = scarce and not isinstance(error, FileNotFoundError)
  return None if independent and not scarce else False


def run_tests(control: int, read, prefix: str, source: str) -> None:
  """Reports on the tests as `check` yields, and then None."""
  (asked, ask), (answers, answer) = os.pipe(), os.pipe()
  if not os.fork():
    for fd in (control, ask, answers):
      os.close(fd)
    try:
      serve(asked, answer, prefix, source)
    finally:
      os._exit(1)
  os.close(asked)
  os.close(answer)
  # The program has been forked off: only now do the tests come in here.
  for report in check(decode(receive(read)), Program(answers, ask)):
    send(control, encode(report))
  send(control, encode(None))
