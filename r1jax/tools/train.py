"""Runs one experiment; the same command goes on with it after a stop.

    r1jax train --config=experiments/demo.py --workdir=runs/demo

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
import pathlib
import shlex
import sys
import traceback
from typing import Any

from absl import flags, logging

from r1jax import config
from r1jax.runtime import (
  console,
  distributed,
  interrupt,
  process,
  profiler,
  workdir,
)
from r1jax.tools import command_line


def define_flags() -> None:
  """Defines the flags that `main` reads."""
  command_line.define_config_flags()
  flags.DEFINE_string(
    "workdir", None, "Where checkpoints, metrics and the report go."
  )
  flags.DEFINE_string(
    "profile", None, "FIRST:COUNT rounds (of sft: steps) to trace, from 0."
  )
  flags.DEFINE_bool("dump", False, "Write every rollout to WORKDIR/rollouts.")
  flags.DEFINE_string(
    "replay", None, "A workdir whose dumped rollouts are learned from."
  )
  flags.DEFINE_bool(
    "update_rows", False, "Write a row for every update to updates.jsonl."
  )
  flags.DEFINE_list(
    "sinks", None, "Where metrics go beside metrics.jsonl: tensorboard, wandb."
  )
  flags.DEFINE_string(
    "bucket", None, "Where checkpoints go instead: gs://bucket/run, s3://..."
  )
  flags.DEFINE_bool(
    "accept_other_data",
    False,
    "Go on although a file that the config names has changed.",
  )
  flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, of several."
  )
  flags.DEFINE_integer(
    "num_processes", None, "How many run this command together."
  )
  flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.")


def main() -> None:
  """Hands the config to the loop that it names, on every host of the job."""
  options = flags.FLAGS
  if not options.debug:
    silence_libraries()
  with distributed.job(
    options.coordinator_address, options.num_processes, options.process_id
  ):
    train()


def train() -> None:
  """`main` on one host."""
  flag = flags.FLAGS
  asked = options()
  settings = command_line.config()
  config.check(settings)
  loop = config.loop(settings.loop).train
  check_options(settings.loop, loop, asked)
  distributed.compare(
    workdir.flat(
      {"config": settings.to_dict(), "code": process.versions()}
      | {f"--{name}": value for name, value in asked.items()}
      | {"--bucket": flag.bucket}
    )
  )
  if flag.workdir is None:
    raise ValueError("no --workdir; say where the run's files should go")
  process.start(settings.cpu_devices)
  workdir.prepare(
    flag.workdir, flag.bucket, accept_other_data=flag.accept_other_data
  )
  loop(settings, flag.workdir, **asked)
  conclude(flag.workdir)


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
  flag = flags.FLAGS
  asked = {
    "profile": flag.profile and profiler.parse(flag.profile),
    "dump": flag.dump,
    "replay": flag.replay,
    "update_rows": flag.update_rows,
    "sinks": flag.sinks and tuple(flag.sinks),
  }
  return {name: value for name, value in asked.items() if value}


def check_options(loop: str, train, asked: dict[str, Any]) -> None:
  """Raises ValueError for what a loop, or this machine, cannot do."""
  for name in asked.keys() - inspect.signature(train).parameters.keys():
    raise ValueError(f"the loop {loop!r} has no --{name}")
  if sinks := asked.get("sinks"):
    from r1jax.runtime import metrics  # A wrong command need not wait for JAX.

    metrics.check_sinks(sinks)
  if replay := asked.get("replay"):
    if not (pathlib.Path(replay) / "rollouts").is_dir():
      raise ValueError(
        f"--replay={replay}: no rollouts in it; give the workdir of a run that "
        "was started with --dump"
      )


def conclude(place: str) -> None:
  """Makes the report of a run that has ended, and prints its summary."""
  from r1jax.tools.report import (
    command as report,  # matplotlib takes a second to import.
  )

  if distributed.is_first():
    print(f"report: {report.build([place])}", flush=True)
    summary = pathlib.Path(place) / "summary.json"
    if summary.exists():
      print(summary.read_text(), end="", flush=True)


def run(command: str) -> None:
  """Runs `main`; exits with 2 for wrong input, 128 + signal if stopped."""
  console.outlive_streams()
  try:
    with interrupt.guard():
      command_line.call(command, main, define_flags, __doc__)
  except interrupt.Interrupted as stop:
    interrupt.give_up()
    if distributed.is_first():
      print(f"\n{_farewell(command)}", file=sys.stderr, flush=True)
    distributed.leave(128 + stop.signum)
  except KeyboardInterrupt:
    sys.exit(130)
  except (ValueError, OSError, flags.Error) as error:
    if command_line.is_debugging():
      traceback.print_exc()
    print(f"error: {_reason(error)}", file=sys.stderr, flush=True)
    distributed.leave(2)
  except SystemExit as stop:
    distributed.leave(stop.code)
  except Exception:
    traceback.print_exc()
    distributed.leave(1)


def _reason(error: Exception) -> str:
  """What went wrong, where, and what to do, in one line."""
  if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
    if error.filename is None and flags.FLAGS.is_parsed():
      return f"{_WORKDIR.value}: {workdir.remedy(error)}"
    return workdir.remedy(error)
  return config.one_line(error)


def _farewell(command: str) -> str:
  from r1jax.runtime import checkpoint  # A wrong command need not wait for JAX.

  place = flags.FLAGS.workdir if flags.FLAGS.is_parsed() else None
  step = None if place is None else checkpoint.latest_step(place)
  if step is None:
    return "stopped before the first checkpoint; nothing is kept"
  again = shlex.join([*command.split(), *sys.argv[1:]])
  return f"stopped at step {step}; to go on, run the same command: {again}"
