"""Run an experiment; the same command resumes it after a stop.

    r1jax train --config=experiments/demo.py --workdir=runs/demo

Any value of the config can be overridden, as in `--config.seed=1`. Errors in
the command, its input or its workdir are one line, with exit code 2; `--debug`
adds the stack trace. After Ctrl-C (exit code 130), SIGTERM (143) or SIGHUP
(129), the run saves a checkpoint and exits. It continues if the reader of its
output exits, as in `| head`.

Other flags do not change the numbers of a run: a profiler trace of some rounds
(`--profile=3:2`), all rollouts written to disk (`--dump`), a row of metrics for
every update (`--update_rows`), further sinks of metrics (`--sinks=wandb`). With
`--replay=WORKDIR`, the rollouts are read from another run instead of sampled.

In a job of several hosts, every host runs the same command. On TPU pods, SLURM,
Open MPI and Kubernetes, the hosts find each other; elsewhere, set
`--coordinator_address`, `--num_processes` and `--process_id`. The workdir must
be on a file system that all hosts share, or `--bucket=gs://bucket/run` must
name a place for the checkpoints; the workdir is then local to the first host.
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
    "workdir", None, "The folder of checkpoints, metrics and the report."
  )
  flags.DEFINE_string(
    "profile", None, "FIRST:COUNT rounds (in SFT, steps) to trace, from 0."
  )
  flags.DEFINE_bool("dump", False, "Write every rollout to WORKDIR/rollouts.")
  flags.DEFINE_string(
    "replay", None, "A workdir whose dumped rollouts to train on."
  )
  flags.DEFINE_bool(
    "update_rows", False, "Write a row for every update to updates.jsonl."
  )
  flags.DEFINE_list(
    "sinks", None, "Sinks of metrics besides metrics.jsonl: tensorboard, wandb."
  )
  flags.DEFINE_string(
    "bucket", None, "Location of checkpoints: gs://bucket/run, s3://..."
  )
  flags.DEFINE_bool(
    "accept_other_data",
    False,
    "Resume although a file that the config names has changed.",
  )
  flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0 of the job."
  )
  flags.DEFINE_integer("num_processes", None, "Number of processes of the job.")
  flags.DEFINE_integer("process_id", None, "Id of this process, from 0.")


def main() -> None:
  """Runs the loop that the config names, on every host of the job."""
  flag = flags.FLAGS
  if not flag.debug:
    silence_libraries()
  with distributed.job(
    flag.coordinator_address, flag.num_processes, flag.process_id
  ):
    settings = command_line.config()
    if flag.workdir is None:
      configs.check(settings)
      raise ValueError("--workdir is not set; set it to a folder")
    launch(
      settings,
      flag.workdir,
      flag.bucket,
      flag.accept_other_data,
      **parse_loop_options(),
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
  check_loop_options(config.loop, loop, options)
  distributed.require_equal(
    workdirs.flatten(
      {"config": config.to_dict(), "code": process.versions()}
      | {f"--{name}": value for name, value in options.items()}
      | {"--bucket": bucket}
    )
  )
  process.start(config.cpu_devices)
  workdirs.prepare(workdir, bucket, accept_other_data=accept_other_data)
  state = loop(config, workdir, **options)
  write_report(workdir)
  return state


def silence_libraries() -> None:
  """Hides log messages of libraries, and Orbax's stack traces.

  Errors are still raised and reported in one line.
  """
  logging.set_verbosity(logging.WARNING)
  logging.get_absl_logger().addFilter(
    lambda record: "orbax" not in pathlib.Path(record.pathname).parts
  )


def parse_loop_options() -> dict[str, Any]:
  """The keyword arguments of the loop's `train` that the flags set."""
  flag = flags.FLAGS
  loop_options = {
    "profile": flag.profile and profiler.parse(flag.profile),
    "dump": flag.dump,
    "replay": flag.replay,
    "update_rows": flag.update_rows,
    "sinks": flag.sinks and tuple(flag.sinks),
  }
  return {name: value for name, value in loop_options.items() if value}


def check_loop_options(loop: str, train, loop_options: dict[str, Any]) -> None:
  """Raises ValueError for options that the loop or this machine lacks."""
  for name in loop_options.keys() - inspect.signature(train).parameters.keys():
    raise ValueError(f"the loop {loop!r} has no --{name}")
  if sinks := loop_options.get("sinks"):
    # Imported late, so that wrong flags are reported without waiting for JAX.
    from r1jax.runtime import metrics

    metrics.check_sinks(sinks)
  if replay := loop_options.get("replay"):
    if not (pathlib.Path(replay) / "rollouts").is_dir():
      raise ValueError(
        f"--replay={replay}: it has no rollouts; use the workdir of a run that "
        "was started with --dump"
      )


def write_report(place: str) -> None:
  """Writes the report of a finished run, and prints its summary."""
  # Imported late, because matplotlib takes a second to import.
  from r1jax.tools.report import command as report
  from r1jax.tools.report import stages

  if distributed.is_first():
    whole = stages.is_pipeline(place)
    page = stages.build(place) if whole else report.build([place])
    print(f"report: {page}", flush=True)
    summary = pathlib.Path(place) / "summary.json"
    if summary.exists():
      print(summary.read_text(), end="", flush=True)


def run(command: str) -> None:
  """Runs `main`; exits with 2 for wrong input, 128 + signal if interrupted.

  Other errors, such as a host that is lost, exit with 1, on all hosts.
  """
  console.tolerate_closed_streams()
  try:
    with interrupt.guard():
      command_line.call(command, main, define_flags, __doc__)
  except interrupt.Interrupted as stop:
    interrupt.restore_default_handlers()
    if distributed.is_first():
      print(f"\n{_stop_message(command)}", file=sys.stderr, flush=True)
    distributed.exit_process(128 + stop.signum)
  except KeyboardInterrupt:
    sys.exit(130)
  except (ValueError, OSError, flags.Error) as error:
    if command_line.is_debugging():
      traceback.print_exc()
    print(f"error: {_reason(error)}", file=sys.stderr, flush=True)
    distributed.exit_process(distributed.exit_code(error))
  except SystemExit as stop:
    distributed.exit_process(stop.code)
  except Exception:
    traceback.print_exc()
    distributed.exit_process(1)


def _reason(error: Exception) -> str:
  """An error with its file and advice, in one line."""
  if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
    if error.filename is None and flags.FLAGS.is_parsed():
      return f"{flags.FLAGS.workdir}: {workdirs.explain(error)}"
    return workdirs.explain(error)
  return configs.one_line(error)


def _stop_message(command: str) -> str:
  """The last message of an interrupted run."""
  # Imported late, so that wrong flags are reported without waiting for JAX.
  from r1jax.training import pipeline

  place = flags.FLAGS.workdir if flags.FLAGS.is_parsed() else None
  stage = place and pipeline.under_way(pathlib.Path(place))
  saved = None if place is None else _saved(stage or place)
  if saved is None and not stage:
    return "stopped before the first checkpoint; nothing was saved"
  at = f" in stage {stage.name}" if stage else ""
  at += f" at {saved}" if saved else ""
  again = shlex.join([*command.split(), *sys.argv[1:]])
  return f"stopped{at}; to resume, run the same command: {again}"


def _saved(workdir: str | pathlib.Path) -> str | None:
  """What a run has saved: "step 7" or "shard 3"; None for nothing."""
  from r1jax.data import shard_writer
  from r1jax.runtime import checkpoint

  if (step := checkpoint.latest_step(workdir)) is not None:
    return f"step {step}"
  folder = pathlib.Path(workdir) / shard_writer.KEPT
  count = max(
    shard_writer.finished(folder, format) for format in shard_writer.FORMATS
  )
  return f"shard {count}" if count else None
