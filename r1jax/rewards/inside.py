"""What runs inside of a sandbox: the policy's program, and its tests beside it.

    sandbox <-- socket --> checker -- fork --> program
                              ^---- pipes -----^

The program only computes values. Its tests run in the checker, on copies of
them made of plain types: no object, method or memory of the program is there.
The verdict on what a program prints is reached outside. `sandbox` hands this
file and `values` over compiled; they import next to nothing (no `typing`), for
speed.
"""

import builtins
import marshal
import os
import sys

from r1jax.rewards.values import decode, encode, receive, send

SIGKILL = 9  # Linux's; to import `signal` takes as long as Python's start.
MAX_MESSAGE = 1000  # Characters of an error that are reported.


def describe(error: BaseException) -> str:
  """The error in a line, with its place in the program."""
  place, trace = "", error.__traceback__
  while trace:
    if trace.tb_frame.f_code.co_filename == "program":
      place = f" (line {trace.tb_lineno})"
    trace = trace.tb_next
  return f"{type(error).__name__}: {error}"[:MAX_MESSAGE] + place


# The program, where its functions are called by tests.

OPERATIONS = {
  "call": lambda function, *args, **kwargs: function(*args, **kwargs),
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
  """Runs the program, and then what the checker asks of it."""
  module = type(sys)("program")
  sys.modules["program"] = module
  objects = {"builtins." + key: value for key, value in vars(builtins).items()}

  def name(value):
    key = str(id(value))
    objects[key] = value
    return key

  def find(key):
    for place in objects, module.__dict__:
      if key in place:
        return place[key]
    raise NameError(f"name {key!r} is not defined")

  try:
    load(prefix, source, module.__dict__)
    greeting = None
  except BaseException as error:
    greeting = describe(error)
  send(write, encode(greeting))
  while True:
    request = receive(lambda size: os.read(read, size))
    try:
      operation, args, kwargs = decode(request, find)
      before = encode(args, name)
      value = OPERATIONS[operation](*args, **kwargs)
      changed = args if encode(args, name) != before else None
      reply = encode((None, value, changed), name)
    except BaseException as error:
      reply = encode((type(error).__name__, describe(error), None))
    send(write, reply)


def load(prefix: str, source: str, namespace: dict) -> None:
  """Runs a program that stands on its own, or that continues the prefix."""
  try:
    code = compile(source, "program", "exec")
  except SyntaxError:
    if not prefix:
      raise
    exec(compile(prefix + source, "program", "exec"), namespace)
  else:
    exec(compile(prefix, "prefix", "exec"), namespace)
    exec(code, namespace)


# The checker.


class Program:
  """What to ask a program, and how."""

  def __init__(self, read: int, write: int):
    self._read, self._write = read, write

  def ask(self, operation: str, *args, **kwargs):
    """Has the program do the operation.

    Arguments that it changed in place are changed where it returns nothing.
    Else it could answer `f(x) == sorted(x)` with an empty list, twice.
    """
    send(self._write, encode((operation, args, kwargs), name_for_program))
    data = receive(lambda size: os.read(self._read, size))
    error, value, changed = decode(data, lambda name: Remote(self, name))
    if error is not None:
      kind = getattr(builtins, error, None)
      if isinstance(kind, type) and issubclass(kind, Exception):
        raise kind(value)
      raise RuntimeError(value)
    for old, new in zip(args, changed or ()) if value is None else ():
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

  def __call__(self, *args, **kwargs):  # noqa: D102
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


class Unusable(Exception):
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
  """Yields for each test whether it holds, and why not; None for unusable."""
  greeting = decode(receive(lambda size: os.read(program._read, size)))
  namespace = {"__name__": "tests"}
  try:
    exec(compile(tests["setup"], "setup", "exec"), namespace)
  except BaseException as error:
    yield None, f"before the tests: {describe(error)}"
  namespace.update((name, Remote(program, name)) for name in tests["names"])
  for code, counts in tests["statements"]:
    holds, message = greeting is None, greeting or ""
    if holds:
      try:
        exec(marshal.loads(code), namespace)
      except Unusable as error:
        holds, message = None, describe(error)
      except BaseException as error:
        holds, message = False, describe(error)
    if counts or holds is None:
      yield holds, message


def run_tests(control: int, read, prefix: str, source: str) -> None:
  """Reports on each test, as `check` yields it."""
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
  for test in check(decode(receive(read)), Program(answers, ask)):
    send(control, encode(test))


# Programs that read and print.


def run(start, given: bytes, limit: int) -> tuple[int, bytes, str]:
  """The exit status, output and last errors of `start` in a new process.

  `start` is to end the process. Its children end with it.
  """
  fds = []
  for name in (".stdin", ".stdout", ".stderr"):
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    fds.append(os.open(name, flags, 0o600))
    os.unlink(name)
  rest = memoryview(given)
  while rest:
    rest = rest[os.write(fds[0], rest) :]
  os.lseek(fds[0], 0, os.SEEK_SET)
  pid = os.fork()
  if not pid:
    os.setsid()
    for fd, file in enumerate(fds):
      os.dup2(file, fd)
    os.closerange(3, 256)
    start()
  _, status = os.waitpid(pid, 0)
  try:
    os.killpg(pid, SIGKILL)
  except OSError:
    pass  # There are no children.
  output = os.pread(fds[1], limit, 0)
  errors = os.pread(fds[2], limit, 0)[-MAX_MESSAGE:].decode(errors="replace")
  for fd in fds:
    os.close(fd)
  return os.waitstatus_to_exitcode(status), output, errors


def interpret(code) -> None:
  """Runs a Python program; the process ends as the interpreter does."""
  main = sys.modules["__main__"] = type(sys)("__main__")
  sys.argv = ["program"]
  exec(code, main.__dict__)
  sys.exit()


def run_cases(
  control: int,
  source: str,
  file: str,
  build: list,
  command: list,
  inputs: list,
  limit: int,
) -> None:
  """Reports on the build, then on each run; no command stands for Python."""
  built = (0, b"", "")
  if command:
    start = lambda: os.execvp(command[0], command)
    with open(file, "wb") as stream:
      stream.write(source.encode("utf-8", "surrogatepass"))
    if build:
      built = run(lambda: os.execvp(build[0], build), b"", limit)
  else:
    start = lambda: interpret(code)
    try:
      code = compile(source, "program", "exec")
    except Exception as error:
      built = (1, b"", describe(error))
  send(control, encode(built))
  if not built[0]:
    for given in inputs:
      send(control, encode(run(start, given, limit)))


# Where it starts.


def confine(limits: dict, user: int | None) -> None:
  """Gives up what the program must not have, for good."""
  import resource

  if user is not None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
  for name, value in limits.items():
    kind = getattr(resource, "RLIMIT_" + name)
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
      value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def main() -> None:
  """Does the one job that comes in through stdin."""
  control = os.dup(0)
  null = os.open(os.devnull, os.O_RDWR)
  for fd in range(3):
    os.dup2(null, fd)
  read = lambda size: os.read(control, size)
  job = decode(receive(read))
  confine(job["limits"], job["user"])
  builtins.exit = builtins.quit = sys.exit  # As `site` has them, half as slow.
  send(control, encode("ready"))
  if "inputs" in job["work"]:
    run_cases(control, **job["work"])
  else:
    run_tests(control, read, **job["work"])
  read(1)  # To be ended from outside is to be ended whole.


if __name__ == "__main__":
  main()
