"""Check a config before it runs.

    r1jax doctor --config=experiments/demo.py

It takes --config and its overrides like `r1jax train`. Every finding is one
line that begins with "ok", "note" or "WRONG"; other lines are information. For
GRPO, the loop runs one round at learning rate 0 in a temporary workdir. The
exit code is 0 if nothing is wrong, 1 if something is, and 2 if the config
cannot be loaded.
"""

import time
import traceback
from collections.abc import Callable, Iterator

from absl import flags
from ml_collections import ConfigDict

from r1jax import config as configs
from r1jax.runtime import process
from r1jax.tools import checks, command_line
from r1jax.tools.examination import NOTE, WRONG, Context, Line

CHECKS: dict[str, dict[str, Callable[[Context], Iterator[Line]]]] = {
  "grpo": {
    "batch": checks.batch,
    "prompts": checks.prompts,
    "problems": checks.problems,
    "answers": checks.answers,
    "memory": checks.resources,
    "round": checks.one_round,
    "plain": checks.without_template,
  },
  "sft": {"documents": checks.documents, "memory": checks.resources},
}


def examine(
  config: ConfigDict, *, debug: bool = False
) -> Iterator[tuple[str, Line]]:
  """The findings of all checks, each after the name of its check.

  An exception in a check becomes a finding. If the config does not fit its
  loop, no further checks run.
  """
  context, errors = Context(config), set()
  table = CHECKS.get(config.get("loop"), {})
  for name, check in ({"config": checks.resolved} | table).items():
    try:
      for line in check(context):
        yield name, line
    except Exception as error:  # The run would fail with the same error.
      if debug:
        traceback.print_exc()
      expected = isinstance(error, ValueError | OSError)
      kind = "" if expected else f"{type(error).__name__}: "
      text = kind + configs.one_line(error)
      is_known = text in errors
      yield name, Line(NOTE, "see above") if is_known else Line(WRONG, text)
      errors.add(text)
      if check is checks.resolved:
        return


def define_flags() -> None:
  """Defines the flags that `main` reads."""
  command_line.define_config_flags()


def main() -> int:
  """Prints the findings; returns the exit code."""
  settings = command_line.config()
  process.start(settings.cpu_devices)
  began, wrong = time.monotonic(), 0
  for name, (verdict, text) in examine(settings, debug=flags.FLAGS.debug):
    print(f"{verdict:5}  {name:9}  {text}", flush=True)
    wrong += verdict == WRONG
  seconds = time.monotonic() - began
  print(f"{wrong or 'nothing'} WRONG, in {seconds:.0f} s", flush=True)
  return 1 if wrong else 0
