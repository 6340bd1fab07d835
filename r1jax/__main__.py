"""r1jax: DeepSeek-R1 in JAX.

    r1jax COMMAND [--flags]      or: python -m r1jax COMMAND [--flags]

`r1jax COMMAND --help` describes a command and its flags.
"""

import importlib
import os
import sys

from r1jax import config

# The module and description of each command. Modules are imported on use, so
# that no command waits for the imports of another.
COMMANDS = {
  "train": ("r1jax.tools.train", "run or resume an experiment"),
  "chat": ("r1jax.tools.chat", "chat with a model"),
  "evaluate": ("r1jax.tools.evaluate", "evaluate a model on files of problems"),
  "serve": ("r1jax.tools.serve.command", "serve a model to OpenAI's clients"),
  "report": ("r1jax.tools.report.command", "report runs as one HTML page"),
  "doctor": ("r1jax.tools.doctor", "check a config before it runs"),
  "plan": ("r1jax.tools.plan.command", "compile a config for a remote pod"),
  "convert": ("r1jax.tools.convert", "export a run, or convert a model"),
}


def program() -> str:
  """The program as the user started it: "r1jax" or "python -m r1jax"."""
  if not sys.argv[0].endswith("__main__.py"):
    return "r1jax"
  python = os.path.relpath(sys.executable)
  return f"{'python' if python.startswith('..') else python} -m r1jax"


def main() -> None:
  """Runs the command that `sys.argv` names, and exits with its exit code."""
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
  # Users' modules ("my_module:function" in a config) are imported from here.
  sys.path.insert(0, os.getcwd())
  module = importlib.import_module(COMMANDS[name][0])
  command = f"{program()} {name}"
  if hasattr(module, "run"):
    module.run(command)
    return
  from r1jax.tools import command_line  # Imported late, because absl is slow.

  command_line.run(command, module.main, module.define_flags, module.__doc__)


if __name__ == "__main__":
  main()
