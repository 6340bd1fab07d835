"""Runs one experiment; the same command goes on with it after a stop.

    python -m r1jax.main --config=experiments/demo.py --workdir=runs/demo

Any value of the config can be replaced: `--config.seed=1`. What is wrong with a
command, its input or the place that it writes to is said in one line, with exit
code 2; `--debug` adds the stack trace. Ctrl-C (130), SIGTERM (143) and SIGHUP
(129) save before they end it. Who reads its output may leave: `| head` stops
nothing.

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

from r1jax import config, console, hosts, interrupt, runtime, workdir
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
_ACCEPT_OTHER_DATA = flags.DEFINE_bool(
  "accept_other_data",
  False,
  "Go on although a file that the config names has other content than before.",
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
  if not _DEBUG.value:
    silence_libraries()
  with hosts.job(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value):
    train(argv)


def train(argv: list[str]) -> None:
  """`main` on one host."""
  if len(argv) > 1:
    raise ValueError(f"unknown argument {argv[1]!r}; flags start with --")
  asked = options()
  settings = config.from_flag(_CONFIG, sweep_index=_SWEEP.value)
  config.check(settings)
  loop = config.loop(settings.loop).train
  check_options(settings.loop, loop, asked)
  hosts.compare(
    workdir.flat(
      {"config": settings.to_dict(), "code": runtime.versions()}
      | {f"--{name}": value for name, value in asked.items()}
      | {"--bucket": _BUCKET.value}
    )
  )
  if _WORKDIR.value is None:
    raise ValueError("no --workdir; say where the run's files should go")
  runtime.start(settings.cpu_devices)
  workdir.prepare(
    _WORKDIR.value,
    _BUCKET.value,
    accept_other_data=_ACCEPT_OTHER_DATA.value,
  )
  loop(settings, _WORKDIR.value, **asked)
  conclude(_WORKDIR.value)


def silence_libraries() -> None:
  """Leaves out what libraries tell, and Orbax's trace of every error.

  The error itself is raised, and said in one line.
  """
  logging.set_verbosity(logging.WARNING)
  logging.get_absl_logger().addFilter(
    lambda record: "orbax" not in pathlib.Path(record.pathname).parts
  )


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


def conclude(place: str) -> None:
  """Makes the report of a run that has ended, and prints its summary."""
  from r1jax.tools import report  # matplotlib takes a second to import.

  if hosts.is_first():
    print(f"report: {report.build([place])}", flush=True)
    summary = pathlib.Path(place) / "summary.json"
    if summary.exists():
      print(summary.read_text(), end="", flush=True)


def run() -> None:
  """`main` with its exit codes: 2 wrong input, 128 and the signal stopped."""
  debug = any(a in ("--debug", "-debug", "--debug=true") for a in sys.argv)
  console.outlive_streams()
  try:
    with interrupt.guard():
      app.run(main, flags_parser=config.parse_flags)
  except interrupt.Interrupted as stop:
    interrupt.give_up()
    if hosts.is_first():
      print(f"\n{_farewell()}", file=sys.stderr, flush=True)
    hosts.leave(128 + stop.signum)
  except KeyboardInterrupt:
    sys.exit(130)
  except (ValueError, OSError, flags.Error) as error:
    if debug:
      traceback.print_exc()
    print(f"error: {_reason(error)}", file=sys.stderr, flush=True)
    hosts.leave(2)
  except SystemExit as stop:
    hosts.leave(stop.code)
  except Exception:
    traceback.print_exc()
    hosts.leave(1)


def _reason(error: Exception) -> str:
  """What went wrong, where, and what to do, in one line."""
  if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
    if error.filename is None and flags.FLAGS.is_parsed():
      return f"{_WORKDIR.value}: {workdir.remedy(error)}"
    return workdir.remedy(error)
  return config.one_line(error)


def _farewell() -> str:
  from r1jax import checkpoint  # A wrong command need not wait for JAX.

  place = _WORKDIR.value if flags.FLAGS.is_parsed() else None
  step = None if place is None else checkpoint.latest_step(place)
  if step is None:
    return "stopped before the first checkpoint; nothing is kept"
  python = os.path.relpath(sys.executable)
  if python.startswith(".."):
    python = "python"
  command = shlex.join([python, "-m", "r1jax.main", *sys.argv[1:]])
  return f"stopped at step {step}; to go on, run the same command: {command}"


if __name__ == "__main__":
  run()
