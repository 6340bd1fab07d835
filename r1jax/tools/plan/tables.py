"""The table of plans in the documentation: the paper's runs on TPU pods.

    python -m r1jax.tools.plan.tables

It plans each of RUNS in a separate process, which takes minutes each, and
prints one row of Markdown for each program.
"""

import json
import subprocess
import sys

from r1jax.tools.plan.text import size

ZERO, STUDENT = "experiments/r1_zero.py", "experiments/distill.py"
# (topology, config, flags)
RUNS = (
  ("v5p:8x8x8", ZERO, ()),
  ("v5p:8x16x16", ZERO, ()),
  ("v5p:4x4x4", f"{STUDENT}:qwen_32b", ()),
  ("v5p:4x4x4", f"{STUDENT}:llama_70b", ()),
  # Only `data` extends over slices, so each slice holds the whole state. For
  # R1-Zero (12 bytes per weight) that would be 29.8 of the 31.25 GiB per chip
  # on the largest v6e slice, 256 chips: too much to train it there.
  ("v6e:8x8*2", f"{STUDENT}:qwen_32b", ()),
  ("v5e:8x8", f"{ZERO}:qwen_math_7b", ()),
  ("v6e:4x4", f"{ZERO}:qwen_math_7b", ("--config.mesh.fsdp=4",)),
)
HEAD = (
  "| topology | run | program | per chip, of its memory | least time | MFU | "
  "compiled in |\n|---|---|---|---|---|---|---|"
)


def rows(topology: str, config: str, flags: tuple[str, ...]):
  """Rows of Markdown, one per program, or one with the error."""
  run = " ".join([config.removeprefix("experiments/"), *flags])
  done = subprocess.run(
    [
      *(sys.executable, "-m", "r1jax", "plan"),
      *(f"--topology={topology}", f"--config={config}", "--json", *flags),
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode not in (0, 1) or not done.stdout:
    yield f"| {topology} | `{run}` | {done.stderr.splitlines()[-1]} |"
    return
  report = json.loads(done.stdout.splitlines()[-1])
  for name, program in report["programs"].items():
    cells = [topology, f"`{run}`", name]
    if "error" in program:
      cells.append(program["error"].splitlines()[0])
    else:
      share = program["total"] / report["memory_per_device"]
      seconds, mfu = program["seconds"], program["mfu"]
      cells += [
        f"{size(program['total'])}, {share:.0%}",
        f"{seconds['overlapped']:.3g}-{seconds['serial']:.3g} s",
        f"{mfu['serial']:.0%}-{mfu['overlapped']:.0%}",
        f"{program['compile_seconds']:.0f} s",
        *program["faults"],
      ]
    yield f"| {' | '.join(cells)} |"


def main() -> None:
  """Prints the table."""
  print(HEAD, flush=True)
  for run in RUNS:
    for row in rows(*run):
      print(row, flush=True)


if __name__ == "__main__":
  main()
