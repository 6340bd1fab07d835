"""The command line of all benchmarks: `python -m benchmarks.NAME [--flags]`.

A benchmark is a function of keyword arguments that returns a dict of results.
Each argument becomes a flag. The last line of output is the result as a JSON
object; progress is printed to standard error.
"""

import functools
import inspect
import json
import sys
from collections.abc import Callable

from absl import flags

from r1jax.runtime import process
from r1jax.tools import command_line


def run(benchmark: Callable[..., dict]) -> None:
  """Runs a benchmark on `sys.argv[1:]`, and exits with its code."""
  define = functools.wraps(define_flags)(lambda: define_flags(benchmark))
  text = f"{sys.modules['__main__'].__doc__}\n{inspect.getdoc(benchmark)}"
  command_line.run(
    f"python -m benchmarks.{benchmark.__name__}",
    lambda: main(benchmark),
    define,
    text,
  )


def main(benchmark: Callable[..., dict]) -> None:
  """Runs a benchmark with the arguments in the flags, and prints its result."""
  process.start(cpu_devices=process.cores())
  names = inspect.signature(benchmark).parameters
  arguments = {name: flags.FLAGS[name].value for name in names}
  print(json.dumps(benchmark(**arguments)), flush=True)


def define_flags(benchmark: Callable[..., dict]) -> None:
  """Defines a flag for each keyword argument, of the type of its default."""
  for name, parameter in inspect.signature(benchmark).parameters.items():
    default = parameter.default
    if isinstance(default, bool):
      flags.DEFINE_bool(name, default, "")
    elif isinstance(default, int):
      lowest = min(default, 1)  # 0 is allowed where it is the default.
      flags.DEFINE_integer(name, default, "", lower_bound=lowest)
    elif isinstance(default, float):
      flags.DEFINE_float(name, default, "")
    else:
      flags.DEFINE_string(name, default, "")
