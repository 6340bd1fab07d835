"""How fast we are, and others on the same machine in the same run.

    python -m r1jax.tools.benchmark model
    python -m r1jax.tools.benchmark grpo --prompt=32 --completion=128 --peers
    python -m r1jax.tools.benchmark rollouts
    python -m r1jax.tools.benchmark rewards
    python -m r1jax.tools.benchmark gpu

The last line printed is one JSON object; progress goes to stderr. The module
`benchmark_NAME` says what NAME measures and what its numbers mean.
"""

import importlib
import inspect
import json
from collections.abc import Callable
from typing import Any

from absl import flags, logging

from r1jax import config as configs
from r1jax import runtime

BENCHMARKS = {  # Imported on use: each needs what others do without.
  "model": "r1jax.tools.benchmark_model",
  "grpo": "r1jax.tools.benchmark_grpo",
  "rollouts": "r1jax.tools.benchmark_rollouts",
  "rewards": "r1jax.tools.benchmark_rewards",
  "gpu": "r1jax.tools.benchmark_gpu",
}


def benchmark(name: str) -> Callable[..., dict]:
  """The function that a benchmark is, of its name in its module."""
  if name not in BENCHMARKS:
    raise ValueError(configs.unknown("benchmark", name, BENCHMARKS))
  return getattr(importlib.import_module(BENCHMARKS[name]), name)


def settings(
  name: str, function: Callable[..., dict], given: dict[str, Any]
) -> dict[str, Any]:
  """`given`, if they are keyword arguments of `function`; else a ValueError."""
  accepted = inspect.signature(function).parameters
  for key in given:
    if key not in accepted:
      known = [f"--{other}" for other in accepted]
      raise ValueError(configs.unknown(f"flag of {name}", f"--{key}", known))
  return given


def main(argv: list[str]) -> None:
  """Runs one benchmark by name, and prints what it found."""
  if len(argv) != 2:
    raise ValueError(f"name one benchmark: {', '.join(BENCHMARKS)}")
  logging.set_verbosity(logging.INFO if flags.FLAGS.debug else logging.ERROR)
  runtime.start(cpu_devices=runtime.cores())
  function = benchmark(argv[1])
  own = flags.FLAGS.flags_by_module_dict()[argv[0]]
  given = {f.name: f.value for f in own if f.present and f.name != "debug"}
  print(json.dumps(function(**settings(argv[1], function, given))), flush=True)


def define_flags() -> None:
  """Defines the flags of all benchmarks; without one, its own default holds."""
  for name, text in {
    "prompt": "Tokens of a prompt.",
    "completion": "Tokens of a completion.",
    "prompts": "Of a step.",
    "group_size": "Completions of each prompt.",
    "steps": "That are timed, in every turn.",
    "turns": "In which we and the peers take turns.",
    "width": "Of the model.",
    "layers": "Of the model.",
    "completions_per_row": "At most, beside their prompt, in a packed row.",
    "microbatch_rows": "Packed rows that go through the model at once.",
    "batch": "Completions that are decoded at once.",
    "rows": "Packed rows of an update.",
    "row_width": "Tokens of each of them.",
  }.items():
    flags.DEFINE_integer(name, None, text, lower_bound=1)
  flags.DEFINE_enum("model", None, ["qwen2", "deepseek_v3"], "Which of ours.")
  flags.DEFINE_bool("peers", None, "Time the peers too.")
  for peer in ("trl", "tunix"):
    flags.DEFINE_string(
      f"{peer}_python", None, f"The interpreter that has {peer}."
    )
  flags.DEFINE_string("bench_dir", None, "Directory of the peers' scripts.")
  flags.DEFINE_float(
    "peer_timeout", None, "Seconds for one run of a peer.", lower_bound=1
  )
  flags.DEFINE_bool("debug", False, "Show stack traces and what libraries log.")


if __name__ == "__main__":
  define_flags()
  configs.run_tool(main)
