"""The command line of all tools: flags, help, error messages, exit codes.

A tool is a module with two functions: `define_flags()`, and `main()`, which
reads `absl.flags.FLAGS` and returns the exit code; None means 0. A tool that
takes positional arguments defines `main(arguments)` instead.

Errors are one line; --debug adds the stack trace. Exit codes: 2 for wrong
input, 1 for an unexpected error, 130 for Ctrl-C.
"""

import difflib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from r1jax import config as configs

HELP = ("-h", "--help", "-help", "--helpfull")


def run(
  command: str, main: Callable, define_flags: Callable[[], None], text: str
) -> None:
  """Runs a tool on `sys.argv[1:]` and exits with its code.

  Args:
    command: what a user types to start it, such as "r1jax plan".
    main: the main function of the tool.
    define_flags: defines the flags of the tool.
    text: printed by `--help` before the flags.
  """
  try:
    call(command, main, define_flags, text)
  except KeyboardInterrupt:
    sys.exit(130)
  except Exception as error:
    expected = isinstance(error, ValueError | OSError | flags.Error)
    if is_debugging():
      traceback.print_exc()
    kind = "" if expected else f"{type(error).__name__}: "
    line = f"error: {kind}{configs.one_line(error)}"
    print(line, file=sys.stderr, flush=True)
    sys.exit(2 if expected else 1)


def call(
  command: str, main: Callable, define_flags: Callable[[], None], text: str
) -> None:
  """Runs a tool like `run`, but raises its errors."""
  define_flags()
  if set(HELP) & set(sys.argv[1:]):
    print(inspect.cleandoc(text), "", *describe_flags(define_flags), sep="\n")
    sys.exit(0)
  flags.DEFINE_bool("debug", False, "Show stack traces and library logs.")
  arguments = parse([command, *sys.argv[1:]])
  takes_arguments = inspect.signature(main).parameters
  if arguments and not takes_arguments:
    raise ValueError(f"unknown argument {arguments[0]!r}; flags start with --")
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO if flags.FLAGS.debug else logging.ERROR)
  sys.exit(main(arguments) if takes_arguments else main())


def is_debugging() -> bool:
  """Whether `--debug` is set, even if the flags could not be parsed."""
  return bool({"--debug", "-debug", "--debug=true"} & set(sys.argv))


def describe_flags(define_flags: Callable[[], None]) -> Iterator[str]:
  """Lines that describe the flags of a tool, and `--debug`."""
  known = flags.FLAGS.flags_by_module_dict()
  yield "Flags:"
  for module in (define_flags.__module__, __name__):
    for flag in known.get(module, ()):
      default = flag.default not in (None, False, "", [])
      yield f"  --{flag.name}{f'={flag.default}' if default else ''}"
      yield f"      {flag.help}"
  yield "  --debug\n      Show stack traces and library logs."


def define_config_flags() -> None:
  """Defines `--config` with its `--config.key=value`, and `--sweep`."""
  config_flags.DEFINE_config_file(
    "config", help_string="A file of experiments/, or FILE:VARIANT."
  )
  flags.DEFINE_integer(
    "sweep", None, "Apply the i-th override of the config file's sweep()."
  )


def config() -> ml_collections.ConfigDict:
  """The config of `--config`, overridden by `--sweep`, then by `--config.key`.

  Raises ValueError without `--config`, or if `--sweep` is out of range.
  """
  flag = flags.FLAGS["config"]
  if flag.value is None:
    raise ValueError("--config is not set; set it to a file of experiments/")
  index = flags.FLAGS.sweep
  if index is not None:
    path = config_flags.get_config_filename(flag)
    settings = configs.sweep(path)
    if not 0 <= index < len(settings):
      raise ValueError(
        f"--sweep={index}, but {path} has {len(settings)} settings"
      )
    configs.override(flag.value, settings[index])
    configs.override(flag.value, config_flags.get_override_values(flag))
  return flag.value


def parse(argv: list[str]) -> list[str]:
  """Parses the flags of `argv`; returns the positional arguments.

  Raises ValueError for an unknown flag or config key, with the closest one that
  exists.
  """
  path, keys = None, []
  for argument, following in zip(argv[1:], [*argv[2:], ""]):
    name, equals, value = argument.partition("=")
    name = name.removeprefix("-").removeprefix("-")
    if not argument.startswith("-"):
      continue
    if name == "config":
      path = value if equals else following
    elif name.startswith("config."):
      keys.append(name.removeprefix("config."))
  if path is not None:
    loaded = configs.load(path)
    for key in keys:
      configs.find(loaded, key)
  elif keys:
    raise ValueError(f"--config.{keys[0]} needs --config=FILE")
  try:
    return flags.FLAGS(argv)[1:]
  except flags.UnrecognizedFlagError as error:
    close = difflib.get_close_matches(error.flagname, list(flags.FLAGS), 1)
    hint = f"; did you mean --{close[0]}?" if close else "; see --help"
    raise ValueError(f"unknown flag --{error.flagname}{hint}") from error
  except flags.Error as error:
    raise ValueError(configs.one_line(error)) from error
