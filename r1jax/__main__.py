"""r1jax: DeepSeek-R1 in JAX.

    r1jax COMMAND [--flags]      or, the same: python -m r1jax COMMAND

`r1jax COMMAND --help` says what a command does and shows its flags.
"""

import importlib
import os
import sys

from r1jax import config

# The module of each command, and what it does. Imported on use: a command must
# not wait for what another needs.
COMMANDS = {
  "train": ("r1jax.tools.train", "run an experiment, or go on with it"),
  "chat": ("r1jax.tools.chat", "talk to a model"),
  "report": ("r1jax.tools.report.command", "show runs as one HTML page"),
  "doctor": ("r1jax.tools.doctor", "check a config before it runs"),
  "plan": ("r1jax.tools.plan.command", "compile a config for chips elsewhere"),
  "convert": ("r1jax.tools.convert", "export a run; rewrite a checkpoint"),
}


def program() -> str:
  """What a user types before the command: r1jax, or python -m r1jax."""
  if not sys.argv[0].endswith("__main__.py"):
    return "r1jax"
  python = os.path.relpath(sys.executable)
  return f"{'python' if python.startswith('..') else python} -m r1jax"


def main() -> None:
  """Runs the command that `sys.argv` names, and exits with its code."""
  name = sys.argv[1] if len(sys.argv) > 1 else "--help"
  if name in ("help", "-h", "--help"):
    print(__doc__)
    for command, (_, text) in COMMANDS.items():
      print(f"  {command:8}  {text}")
    sys.exit(0)
  if name not in COMMANDS:
    problem = config.unknown("command", name, COMMANDS)
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)
  del sys.argv[1]
  # Where "my_module:function" of a config is looked for.
  sys.path.insert(0, os.getcwd())
  module = importlib.import_module(COMMANDS[name][0])
  command = f"{program()} {name}"
  if hasattr(module, "run"):
    module.run(command)
    return
  from r1jax.tools import command_line  # absl is not needed for the above.

  command_line.run(command, module.main, module.define_flags, module.__doc__)


if __name__ == "__main__":
  main()
