"""Runs one experiment; the same command goes on with it after a stop.

    python -m r1jax.main --config=experiments/demo.py --workdir=runs/demo

Any value of the config can be replaced: `--config.seed=1`. What is wrong with a
command or its input is said in one line, with exit code 2; `--debug` adds the
stack trace. Ctrl-C saves, and exits with code 130.
"""

import os
import pathlib
import shlex
import sys
import traceback

from absl import app, flags, logging

from r1jax import config, interrupt

_CONFIG = config.define_flag()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where checkpoints, metrics and the report go."
)
_SWEEP = flags.DEFINE_integer(
  "sweep", None, "Apply the i-th override of the config file's sweep()."
)
_DEBUG = flags.DEFINE_bool(
  "debug", False, "Show stack traces and what libraries log."
)


def main(argv: list[str]) -> None:
  """Hands the config to the loop that it names."""
  if len(argv) > 1:
    raise ValueError(f"unknown argument {argv[1]!r}; flags start with --")
  if not _DEBUG.value:
    logging.set_verbosity(logging.WARNING)  # Orbax tells a lot.
  settings = config.from_flag(_CONFIG, sweep_index=_SWEEP.value)
  config.check(settings)
  if _WORKDIR.value is None:
    raise ValueError("no --workdir; say where the run's files should go")
  config.enable_compilation_cache()
  pathlib.Path(_WORKDIR.value).mkdir(parents=True, exist_ok=True)
  config.loop(settings.loop).train(settings, _WORKDIR.value)
  conclude(_WORKDIR.value)


def conclude(workdir: str) -> None:
  """Makes the report of a run that has ended, and prints its summary."""
  import jax

  from r1jax.tools import report  # matplotlib takes a second to import.

  if jax.process_index() == 0:
    print(f"report: {report.build([workdir])}", flush=True)
    summary = pathlib.Path(workdir) / "summary.json"
    if summary.exists():
      print(summary.read_text(), end="", flush=True)


def run() -> None:
  """`main` with its exit codes: 2 wrong input, 130 and 143 stopped."""
  debug = any(a in ("--debug", "-debug", "--debug=true") for a in sys.argv)
  try:
    with interrupt.guard():
      app.run(main, flags_parser=config.parse_flags)
  except interrupt.Interrupted as stop:
    print(f"\n{_farewell()}", file=sys.stderr, flush=True)
    sys.exit(128 + stop.signum)
  except KeyboardInterrupt:
    sys.exit(130)
  except (ValueError, FileNotFoundError, flags.Error) as error:
    if debug:
      traceback.print_exc()
    print(f"error: {config.one_line(error)}", file=sys.stderr, flush=True)
    sys.exit(2)


def _farewell() -> str:
  from r1jax import checkpoint  # A wrong command need not wait for JAX.

  workdir = _WORKDIR.value if flags.FLAGS.is_parsed() else None
  step = None if workdir is None else checkpoint.latest_step(workdir)
  if step is None:
    return "stopped before the first checkpoint; nothing is kept"
  python = os.path.relpath(sys.executable)
  if python.startswith(".."):
    python = "python"
  command = shlex.join([python, "-m", "r1jax.main", *sys.argv[1:]])
  return f"stopped at step {step}; to go on, run the same command: {command}"


if __name__ == "__main__":
  run()
