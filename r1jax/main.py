"""Runs one experiment; the same command goes on with it after a stop.

    python -m r1jax.main --config=experiments/demo.py --workdir=runs/demo

Any value of the config can be replaced: `--config.seed=1`. What is wrong with a
command or its input is said in one line, with exit code 2; `--debug` adds the
stack trace. Ctrl-C saves, and exits with code 130.

What is asked of a run beside its config moves none of its numbers: a trace of
some rounds (`--profile=3:2`), every rollout on disk (`--dump`), a row for every
update (`--update_rows`), other places for the metrics (`--sinks=wandb`). With
`--replay=WORKDIR` the rollouts are those of another run, and none is sampled.

On several hosts every one runs the same command; TPU pods, SLURM, Open MPI and
Kubernetes tell it where the others are, `--coordinator_address` elsewhere. The
workdir must be a folder that all of them see, or `--bucket=gs://bucket/run` be
given for the checkpoints; then only the first host's workdir counts.
"""

import inspect
import os
import pathlib
import shlex
import sys
import traceback
from typing import Any

from absl import app, flags, logging

from r1jax import config, hosts, interrupt, runtime
from r1jax.training import profiler

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
_PROFILE = flags.DEFINE_string(
  "profile", None, "FIRST:COUNT rounds (of sft: steps) to trace, from 0."
)
_DUMP = flags.DEFINE_bool(
  "dump", False, "Write every rollout to WORKDIR/rollouts."
)
_REPLAY = flags.DEFINE_string(
  "replay", None, "A workdir whose dumped rollouts are learned from."
)
_UPDATE_ROWS = flags.DEFINE_bool(
  "update_rows", False, "Write a row for every update to updates.jsonl."
)
_SINKS = flags.DEFINE_list(
  "sinks", None, "Where metrics go beside metrics.jsonl: tensorboard, wandb."
)
_BUCKET = flags.DEFINE_string(
  "bucket", None, "Where checkpoints go instead: gs://bucket/run, s3://..."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator_address", None, "HOST:PORT of process 0, of several."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "How many run this command together."
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Which of them this one is, from 0."
)


def main(argv: list[str]) -> None:
  """Hands the config to the loop that it names, on every host of the job."""
  with hosts.job(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value):
    train(argv)


def train(argv: list[str]) -> None:
  """`main` on one host."""
  if len(argv) > 1:
    raise ValueError(f"unknown argument {argv[1]!r}; flags start with --")
  if not _DEBUG.value:
    logging.set_verbosity(logging.WARNING)  # Orbax tells a lot.
  asked = options()
  settings = config.from_flag(_CONFIG, sweep_index=_SWEEP.value)
  config.check(settings)
  loop = config.loop(settings.loop).train
  check_options(settings.loop, loop, asked)
  if _WORKDIR.value is None:
    raise ValueError("no --workdir; say where the run's files should go")
  runtime.start(settings.cpu_devices)
  pathlib.Path(_WORKDIR.value).mkdir(parents=True, exist_ok=True)
  if _BUCKET.value:
    from r1jax import checkpoint  # A wrong command need not wait for JAX.

    checkpoint.keep_at(_WORKDIR.value, _BUCKET.value)
  loop(settings, _WORKDIR.value, **asked)
  conclude(_WORKDIR.value)


def options() -> dict[str, Any]:
  """What the flags ask of the loop: keyword arguments of its `train`."""
  asked = {
    "profile": _PROFILE.value and profiler.parse(_PROFILE.value),
    "dump": _DUMP.value,
    "replay": _REPLAY.value,
    "update_rows": _UPDATE_ROWS.value,
    "sinks": _SINKS.value and tuple(_SINKS.value),
  }
  return {name: value for name, value in asked.items() if value}


def check_options(loop: str, train, asked: dict[str, Any]) -> None:
  """Raises ValueError for what a loop, or this machine, cannot do."""
  for name in asked.keys() - inspect.signature(train).parameters.keys():
    raise ValueError(f"the loop {loop!r} has no --{name}")
  if sinks := asked.get("sinks"):
    from r1jax import metrics  # A wrong command need not wait for JAX.

    metrics.check_sinks(sinks)
  if replay := asked.get("replay"):
    if not (pathlib.Path(replay) / "rollouts").is_dir():
      raise ValueError(
        f"--replay={replay}: no rollouts in it; give the workdir of a run that "
        "was started with --dump"
      )


def conclude(workdir: str) -> None:
  """Makes the report of a run that has ended, and prints its summary."""
  from r1jax.tools.report import (
    command as report,  # matplotlib takes a second to import.
  )

  if hosts.is_first():
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
    if hosts.is_first():
      print(f"\n{_farewell()}", file=sys.stderr, flush=True)
    sys.exit(128 + stop.signum)
  except KeyboardInterrupt:
    sys.exit(130)
  except (ValueError, FileNotFoundError, flags.Error) as error:
    if debug:
      traceback.print_exc()
    print(f"error: {config.one_line(error)}", file=sys.stderr, flush=True)
    hosts.leave(2)
  except SystemExit as stop:
    hosts.leave(stop.code)
  except Exception:
    traceback.print_exc()
    hosts.leave(1)


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
