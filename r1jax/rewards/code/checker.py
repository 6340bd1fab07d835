"""Tests the functions of a program, within a sandbox.

    sandbox <-- socket --> checker -- fork --> program
                              ^---- pipes -----^

The program's process only computes values. The tests run in the checker's
process, on copies of these values in plain types, so that no object, method or
memory of the program can influence them. `bubblewrap` sends this module to the
sandbox in compiled form. It imports little, because it is loaded for each
program.
"""

import builtins
import marshal
import os
import sys

from r1jax.rewards.code.prelude import provide
from r1jax.rewards.code.values import decode, encode, receive, send

MAX_MESSAGE = 1000  # Characters of an error that are reported.
OF_PROGRAM = "of_program"  # Marks exceptions that the program raised.
MODULE = (
  "program."  # The name of the program's module; no identifier equals it.
)


def describe(error: BaseException) -> str:
  """Returns an error as text, with its line in the program."""
  place, trace = "", error.__traceback__
  while trace:
    if trace.tb_frame.f_code.co_filename == "program":
      place = f" (line {trace.tb_lineno})"
    trace = trace.tb_next
  return f"{type(error).__name__}: {error}"[:MAX_MESSAGE] + place


# The program's process.

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
  """Runs the prefix and the program, then serves the checker's requests.

  The result of the prefix is sent before the program runs, so that the program
  cannot forge it.
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
  """Returns the error that a call raises, as text; None without one."""
  try:
    function(*args)
  except BaseException as error:
    return describe(error)


def run(prefix: str, source: str, namespace: dict) -> None:
  """Runs Python text by itself, or after the prefix if it is incomplete."""
  try:
    code = compile(source, "program", "exec")
  except SyntaxError:
    code = compile(prefix + source, "program", "exec")
  provide(code, namespace)
  exec(code, namespace)


def _kind(error: BaseException) -> str:
  """Returns the name of the first builtin class of an exception."""
  for kind in type(error).__mro__:
    if getattr(builtins, kind.__name__, None) is kind:
      return kind.__name__
  return ""


# The checker's process.


class Program:
  """A client of the program's process."""

  def __init__(self, read: int, write: int):
    self._read, self._write = read, write

  def receive(self, find=None):
    """Returns the next value that the program sends."""
    return decode(receive(lambda size: os.read(self._read, size)), find)

  def request(self, operation: str, /, *args, **kwargs):
    """Returns the result of an operation in the program, or raises its error.

    Containers that the program changed in place are changed here too, but only
    if it returns None. Otherwise it could satisfy `f(x) == sorted(x)` by
    emptying x and returning an empty list. StopIteration is raised only by
    "next": elsewhere, as in `map(f, xs)`, it would end a loop of the tests.
    """
    send(self._write, encode((operation, args, kwargs), name_for_program))
    error, value, changed = self.receive(lambda name: Remote(self, name))
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
  """A proxy for an object in the program: it can be used, but not compared.

  An object that compares itself could claim to equal anything. Its truth value
  is accepted: where a test asks for that alone, returning True would pass too.
  """

  def __init__(self, program: Program, name: str):
    object.__setattr__(self, "_program", program)
    object.__setattr__(self, "_name", name)

  def __call__(self, /, *args, **kwargs):  # noqa: D102
    return self._program.request("call", self, *args, **kwargs)

  def __getattr__(self, name):
    return self._program.request("getattr", self, name)

  def __setattr__(self, name, value):
    self._program.request("setattr", self, name, value)

  def __getitem__(self, key):
    return self._program.request("item", self, key)

  def __iter__(self):
    return self._program.request("iter", self)

  def __next__(self):
    return self._program.request("next", self)

  def __len__(self):
    return self._program.request("len", self)

  def __bool__(self):
    return self._program.request("bool", self)

  def __str__(self):
    return self._program.request("str", self)

  def _refuse(self, *_):
    raise TypeError("an object of the program itself cannot be compared")

  __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
  __hash__ = None


class Unusable(BaseException):
  """A test needs something that no program can be tested with here."""


def name_for_program(value) -> str:
  """Returns the name under which the program knows an object of the tests."""
  if type(value) is Remote:
    return value._name
  name = getattr(value, "__name__", "")
  if getattr(builtins, name, None) is value:
    return "builtins." + name
  raise Unusable(f"a {type(value).__name__} cannot be passed to a program")


def check(tests: dict, program: Program):
  """Yields [number, whether it holds, message] of statements of the tests.

  It does so for each statement that counts as a test, and for others that fail.
  None in place of True or False means that the tests are at fault; the
  iteration then ends.
  """
  if (failure := program.receive()) is not None:
    yield [0, None, f"before the program: {failure}"]
    return
  failure = program.receive()
  namespace = {"__name__": "__main__"}
  try:
    exec(compile(tests["setup"], "setup", "exec"), namespace)
  except BaseException as error:
    yield [0, None, f"before the tests: {describe(error)}"]
    return
  for name, key in tests["names"].items():
    namespace[name] = Remote(program, key)
  for number, (code, counts, independent) in enumerate(tests["statements"]):
    holds, message = failure is None, f"{failure}"[:MAX_MESSAGE]
    if holds:
      try:
        exec(marshal.loads(code), namespace)
      except BaseException as error:
        holds, message = _verdict(error, independent), describe(error)
    elif not counts:
      continue
    if counts or not holds:
      yield [number, holds, message]


def _verdict(error: BaseException, independent: bool) -> bool | None:
  """Returns False if an error is the program's fault, and None if the tests'.

  An error in a statement that is independent of the program is the tests'
  fault, unless the program may have used up a resource, such as memory.
  """
  if isinstance(error, Unusable):
    return None
  if isinstance(error, ModuleNotFoundError):
    return False if hasattr(error, "of_program") else None
  scarce = isinstance(error, (MemoryError, OSError))
  scarce = scarce and not isinstance(error, FileNotFoundError)
  return None if independent and not scarce else False


def forbid_processes() -> None:
  """From here on, this process can start no processes or threads."""
  import resource

  resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def cpu_seconds(pid: int) -> float:
  """Returns the CPU time of a process so far."""
  import time

  # The number of its CPU clock, as clock_getcpuclockid(3) makes it.
  return time.clock_gettime(~pid << 3 | 2)


def run_tests(
  control: int, read, prefix: str, source: str, alone: bool
) -> None:
  """Sends each report that `check` yields to the sandbox, then None.

  The program's CPU seconds so far are added to the report.
  """
  (asked, ask), (answers, answer) = os.pipe(), os.pipe()
  if not (pid := os.fork()):
    for fd in (control, ask, answers):
      os.close(fd)
    if alone:
      forbid_processes()
    try:
      serve(asked, answer, prefix, source)
    finally:
      os._exit(1)
  os.close(asked)
  os.close(answer)
  # The tests are received after the fork, so that the program never has them.
  for report in check(decode(receive(read)), Program(answers, ask)):
    send(control, encode([*report, cpu_seconds(pid)]))
  send(control, encode(None))
