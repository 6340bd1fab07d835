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
import signal
import sys
import traceback
from typing import Any

import ml_collections
from absl import flags, logging

from r1jax import config as configs
from r1jax.runtime import (
  console,
  distributed,
  interrupt,
  process,
  profiler,
)
from r1jax.runtime import workdir as workdirs
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
  flag = flags.FLAGS
  if not flag.debug:
    silence_libraries()
  with distributed.job(
    flag.coordinator_address, flag.num_processes, flag.process_id
  ):
    settings = command_line.config()
    if flag.workdir is None:
      configs.check(settings)
      raise ValueError("no --workdir; say where the run's files should go")
    launch(
      settings, flag.workdir, flag.bucket, flag.accept_other_data, **options()
    )


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  *,
  bucket: str | None = None,
  accept_other_data: bool = False,
  **options: Any,
) -> Any:
  """Runs an experiment, or goes on with it, as `r1jax train` does.

  Where JAX has computed already, it keeps the devices that it has.

  Args:
    config: of `r1jax.load_config`, with what you have changed in it.
    workdir: where checkpoints, metrics and the report go.
    bucket: where checkpoints go instead.
    accept_other_data: goes on although a file that the config names changed.
    **options: `profile`, `dump`, `replay`, `update_rows` and `sinks`; see the
      loop's own `train`.

  Returns the state after the last step: an `RLState` or a `TrainState`.

  Raises ValueError for what is wrong with the arguments, and KeyboardInterrupt
  for Ctrl-C, after the last whole update was saved.
  """
  try:
    with interrupt.guard():
      return launch(config, workdir, bucket, accept_other_data, **options)
  except interrupt.Interrupted as stop:
    if stop.signum == signal.SIGINT:
      raise KeyboardInterrupt from None
    raise SystemExit(128 + stop.signum) from None


def launch(
  config: ml_collections.ConfigDict,
  workdir: str,
  bucket: str | None,
  accept_other_data: bool,
  **options: Any,
) -> Any:
  """As `train`, with signals as they are."""
  configs.check(config)
  loop = configs.loop(config.loop).train
  check_options(config.loop, loop, options)
  distributed.compare(
    workdirs.flat(
      {"config": config.to_dict(), "code": process.versions()}
      | {f"--{name}": value for name, value in options.items()}
      | {"--bucket": bucket}
    )
  )
  process.start(config.cpu_devices)
  workdirs.prepare(workdir, bucket, accept_other_data=accept_other_data)
  state = loop(config, workdir, **options)
  conclude(workdir)
  return state


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
      return f"{flags.FLAGS.workdir}: {workdirs.remedy(error)}"
    return workdirs.remedy(error)
  return configs.one_line(error)


def _farewell(command: str) -> str:
  from r1jax.runtime import checkpoint  # A wrong command need not wait for JAX.

  place = flags.FLAGS.workdir if flags.FLAGS.is_parsed() else None
  step = None if place is None else checkpoint.latest_step(place)
  if step is None:
    return "stopped before the first checkpoint; nothing is kept"
  again = shlex.join([*command.split(), *sys.argv[1:]])
  return f"stopped at step {step}; to go on, run the same command: {again}"
