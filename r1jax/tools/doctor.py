"""A pre-flight check: what a config would do, and what is wrong with it.

    r1jax doctor --config=experiments/demo.py

Takes the flags of `r1jax train`, without --workdir. Every finding is one line,
which begins with "ok", "note" or "WRONG"; lines that begin with nothing only
tell. For GRPO one round is trained, by the loop itself and at learning rate 0,
and thrown away. The exit code is 0 if nothing is wrong, 1 if something is, 2 if
there is no config to look at.
"""

import time
import traceback
from collections.abc import Callable, Iterator

from absl import flags
from ml_collections import ConfigDict

from r1jax import config as configs
from r1jax.runtime import process
from r1jax.tools import checks, command_line
from r1jax.tools.checks import NOTE, WRONG, Context, Line

CHECKS: dict[str, dict[str, Callable[[Context], Iterator[Line]]]] = {
  "grpo": {
    "batch": checks.batch,
    "prompts": checks.prompts,
    "problems": checks.problems,
    "answers": checks.answers,
    "memory": checks.resources,
    "round": checks.one_round,
    "plain": checks.untemplated,
  },
  "sft": {"documents": checks.documents, "memory": checks.resources},
}


def examine(
  config: ConfigDict, *, debug: bool = False
) -> Iterator[tuple[str, Line]]:
  """The lines of every check, after its name; an error is a line too.

  A config that does not fit its loop is examined no further.
  """
  context, said = Context(config), set()
  table = CHECKS.get(config.get("loop"), {})
  for name, check in ({"config": checks.resolved} | table).items():
    try:
      for line in check(context):
        yield name, line
    except Exception as error:  # Whatever it is, the run would end with it.
      if debug:
        traceback.print_exc()
      expected = isinstance(error, ValueError | OSError)
      kind = "" if expected else f"{type(error).__name__}: "
      text = kind + configs.one_line(error)
      yield name, Line(NOTE, "see above") if text in said else Line(WRONG, text)
      said.add(text)
      if check is checks.resolved:
        return


def define_flags() -> None:
  """Defines the flags that `main` reads."""
  command_line.define_config_flags()


def main() -> int:
  """Prints what `examine` finds; the exit code."""
  settings = command_line.config()
  process.start(settings.cpu_devices)
  began, wrong = time.monotonic(), 0
  for name, (verdict, text) in examine(settings, debug=flags.FLAGS.debug):
    print(f"{verdict:5}  {name:9}  {text}", flush=True)
    wrong += verdict == WRONG
  seconds = time.monotonic() - began
  print(f"{wrong or 'nothing'} WRONG, in {seconds:.0f} s", flush=True)
  return 1 if wrong else 0
