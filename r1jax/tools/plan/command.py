"""Compile a run for a pod, without having one.

    r1jax plan --config=experiments/r1_zero.py --topology=v5p:8x16x16

It compiles the programs of the run with XLA:TPU, on a CPU, for a topology such
as v5p:8x16x16 (v6e:16x16*4 means four slices). For each program it prints the
memory per chip, FLOPs, bytes moved in memory, bytes sent by each kind of
collective and mesh axis, a lower bound on the time, and the MFU that this bound
allows. It needs libtpu; `make plan CONFIG=... TOPOLOGY=...` creates an
environment with it. For GPUs (h200:8x64 is 64 hosts of 8) nothing is compiled:
the sizes of arguments are exact, and the rest is estimated.

`--lengths=lognormal:MEAN:SIGMA` (or a file with a length per line) simulates a
hundred rounds of such completions through the packing of training. It reports
the share of slots that hold real tokens, the load of shards, and the MFU that
counts real tokens only.

`--run --lengths=lognormal:FIRST-LAST:SIGMA` adds up the hours of the whole run,
part by part, while the mean length grows linearly from FIRST to LAST.

`--largest=20` lists the instructions with the most bytes and with the most
FLOPs, and the lines of Python that asked for them. What depends on data counts
as `loads` declares it: experts have an even load, and bounds under a load by
Zipf's law are printed beside.

`--config.mesh.fsdp=32` and similar overrides try another mesh. `--sweep_mesh`
ranks all meshes by estimates and compiles the best three. `--measured_ici`
counts links between TPUs at the rate of measurements. `--json` prints one JSON
object as the last line. A topology that nobody can rent is planned with a
warning. The exit code is 0 if all programs fit and have no faults (see
`faults`), else 1.
"""

import os

# Set before JAX is imported, so that neither JAX nor libtpu looks for TPUs.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import json
import sys

from absl import flags
from ml_collections import ConfigDict

from r1jax import config as configs
from r1jax.models.config import ModelConfig
from r1jax.parallel.mesh import make_mesh, row_shards
from r1jax.tools import command_line
from r1jax.tools.plan import chips, meshes, slices, whole_run
from r1jax.tools.plan import text as tables
from r1jax.tools.plan.fill import Fill, Lengths, lognormal, simulate
from r1jax.tools.plan.fill import lengths as parse_lengths
from r1jax.tools.plan.hosts import host_memory
from r1jax.tools.plan.price import Compiled, compiled, estimated
from r1jax.tools.plan.programs import PER_STEP, PROGRAMS
from r1jax.training import inspection

BEST = 3  # The number of meshes that a sweep compiles.


def plan(
  config: ConfigDict,
  topology: chips.Topology,
  *,
  only: tuple[str, ...] = (),
  lengths: Lengths | None = None,
  largest: int = 0,
  log=lambda text: None,
) -> dict:
  """The costs of a config on a topology, as one JSON object.

  Args:
    config: of a run, with its mesh.
    topology: of chips.
    only: names of programs to plan, or their first words; empty means all.
    lengths: of completions, for a simulation of the rows of training; None
      plans full rows of the largest width only.
    largest: the number of instructions with the most bytes, and with the most
      FLOPs, to list for each program.
    log: called with messages about the progress.

  Raises ValueError for a loop without a plan, or a mesh that does not fit the
  topology.
  """
  if config.loop not in PROGRAMS:
    raise ValueError(configs.unknown("loop to plan", config.loop, PROGRAMS))
  if config.model and config.model.name == "lora":
    raise ValueError(
      "the training of an adapter is not planned; an upper bound is that of "
      "its model: set model.name to 'pretrained'"
    )
  return measure(config, topology, only, lengths, log, largest)[0]


def measure(
  config: ConfigDict,
  topology: chips.Topology,
  only: tuple[str, ...],
  lengths: Lengths | None,
  log,
  largest: int = 0,
) -> tuple[dict, dict[str, Compiled]]:
  """The report of `plan`, and the compiled programs by name."""
  mesh = planned_mesh(config, topology)
  if "rows" in config:
    inspection.check_rows(config.rows, mesh)
  elif lengths:
    raise ValueError(f"the loop {config.loop!r} has no rows for --lengths")
  fill = simulate(config, row_shards(mesh), lengths) if lengths else None
  programs = PROGRAMS[config.loop](config, mesh, fill)
  by_name = {program.name: program for program in programs}
  names = {name.split()[0] for name in by_name} | by_name.keys()
  for name in only:
    if name not in names:
      raise ValueError(configs.unknown("program", name, sorted(names)))
  report = {
    "topology": topology.name,
    "chips": topology.num_chips,
    "link_rate": topology.chip.link,
    "names": slices.names(topology),
    "warnings": slices.warnings(topology),
    "mesh": {name: size for name, size in mesh.shape.items() if size > 1},
    "memory_per_device": topology.memory(mesh.size),
    "host_memory": (
      host_memory(by_name["optimizer"]) if "optimizer" in by_name else {}
    ),
    "programs": {},
  }
  built = {}
  for program in programs:
    if only and not {program.name, program.name.split()[0]} & {*only}:
      continue
    log(f"{program.name} ...")
    if topology.chip.torus:
      built[program.name] = compiled(program, topology, largest)
      result = built[program.name].report
    else:
      result = estimated(program, topology)
    report["programs"][program.name] = result
  if fill:
    report["fill"] = filled(fill, programs[0].sizes, topology, report)
  results = report["programs"].values()
  report["fits"] = all(result["fits"] for result in results)
  report["sound"] = not any(result.get("faults") for result in results)
  return report, built


def plan_run(
  config: ConfigDict,
  topology: chips.Topology,
  *,
  lengths: whole_run.Schedule,
  only: tuple[str, ...] = (),
  largest: int = 0,
  log=lambda text: None,
) -> dict:
  """The plan of a GRPO run, and the hours of its parts under "run".

  Raises ValueError for another loop, a topology of GPUs, for which nothing is
  compiled, or a program that does not fit.
  """
  if config.loop != "grpo" or not topology.chip.torus or only:
    raise ValueError(
      "--run adds up all programs of a GRPO run, compiled for TPUs"
    )
  drawn = lognormal(lengths.mean, lengths.sigma)
  report, built = measure(config, topology, (), drawn, log, largest)
  brief = ConfigDict(config.to_dict())
  brief.sampling.max_tokens //= 8
  log("decode, with a short cache ...")
  mesh = planned_mesh(brief, topology)
  programs = {x.name: x for x in PROGRAMS["grpo"](brief, mesh, None)}
  built["decode short"] = compiled(programs["decode"], topology)
  for name, one in built.items():
    if "seconds" not in one.report:
      raise ValueError(f"{name} does not fit: {one.report['error']}")

  def seconds(name):
    share = 1 / programs["prefill"].prompts if name == "prefill" else 1
    return lambda fill=None: built[name].bounds(fill).serial * share

  parts = report["programs"]["optimizer"]["parts"]
  report["run"] = whole_run.hours(
    config,
    row_shards(mesh),
    topology,
    lengths,
    {name: seconds(name) for name in built},
    short=brief.sampling.max_tokens,
    saved=mesh.size
    * sum(parts.get(name, 0) for name in ("params", "optimizer", "reference")),
  )
  return report


def filled(
  fill: Fill, sizes: ModelConfig, topology: chips.Topology, report: dict
) -> dict:
  """The simulated fill, and the least time of updates with the MFU it allows.

  That MFU is useful: model FLOPs of real tokens over time and peak.
  """
  results, passes = report["programs"], {"gradient": PER_STEP, "score": 1}
  found = fill.report()
  found["compile_seconds"] = sum(
    result.get("compile_seconds", 0) for result in results.values()
  )
  for name, count in passes.items():
    parts = {w: results.get(f"{name} {w}", {}) for w in fill.microbatches}
    if not all("seconds" in part for part in parts.values()):
      continue
    flops = count * fill.forward_flops(sizes)
    seconds = {
      kind: sum(
        fill.microbatches[w] * part["seconds"][kind]
        for w, part in parts.items()
      )
      for kind in ("overlapped", "serial")
    }
    found[name] = {
      "seconds": seconds,
      "useful_mfu": {
        kind: flops / (x * topology.num_chips * topology.chip.flops)
        for kind, x in seconds.items()
      },
    }
  return found


def planned_mesh(config: ConfigDict, topology: chips.Topology):
  """The mesh of a config on the chips of a topology.

  Raises ValueError if a teacher does the work elsewhere.
  """
  if config.mesh is None:
    raise ValueError("samples come from a teacher; there is nothing to plan")
  devices = chips.devices(topology)
  slices = topology.num_slices if topology.chip.torus else 1
  sizes = dict(num_slices=slices) | config.mesh.to_dict()
  return make_mesh(**sizes, devices=devices)


def sweep(
  config: ConfigDict,
  topology: chips.Topology,
  *,
  lengths: Lengths | None = None,
  **options,
) -> dict:
  """The ranking of all meshes (see `ranked`), and plans of the best three."""
  if config.loop not in PROGRAMS:
    raise ValueError(configs.unknown("loop to plan", config.loop, PROGRAMS))
  if config.model and config.model.name == "lora":
    raise ValueError(
      "the training of an adapter is not planned; an upper bound is that of "
      "its model: set model.name to 'pretrained'"
    )
  devices = len(chips.devices(topology))
  ranking = meshes.ranked(config, topology, devices, lengths)
  plans = []
  for candidate in ranking[:BEST]:
    variant = ConfigDict(config.to_dict())
    variant.mesh = candidate.mesh
    plans.append(plan(variant, topology, lengths=lengths, **options))
  return {
    "ranked": [candidate._asdict() for candidate in ranking],
    "plans": plans,
    "fits": any(one["fits"] for one in plans),
    "sound": all(one["sound"] for one in plans),
  }


def define_flags() -> None:
  """Defines the flags that `main` reads."""
  command_line.define_config_flags()
  flags.DEFINE_string("topology", None, "The chips, such as v5p:8x16x16.")
  flags.DEFINE_list("programs", [], "Plan only these, such as gradient,decode.")
  flags.DEFINE_bool("sweep_mesh", False, "Rank all meshes; plan the best.")
  flags.DEFINE_bool(
    "measured_ici",
    False,
    "Count the links between TPUs at 90% of their nominal rate, as measured.",
  )
  flags.DEFINE_string(
    "lengths", None, "Lengths to simulate: lognormal:MEAN:SIGMA, or a file."
  )
  flags.DEFINE_bool(
    "run", False, "Add up the hours of the run; --lengths is its schedule."
  )
  flags.DEFINE_integer(
    "largest", 0, "List this many instructions by bytes, and by FLOPs."
  )
  flags.DEFINE_bool("json", False, "Print one JSON object as the last line.")


def main() -> int:
  """Prints the plan; returns the exit code."""
  options = flags.FLAGS
  if not options.topology:
    raise ValueError(f"--topology is not set; {chips.FORM}")
  settings = command_line.config()
  configs.check(settings)
  log = lambda text: print(text, file=sys.stderr, flush=True)
  topology, only = chips.topology(options.topology), options.programs
  if options.measured_ici:
    topology = chips.with_measured_links(topology)
  make = sweep if options.sweep_mesh else plan
  drawn = None
  if options.run:
    make, drawn = plan_run, whole_run.schedule(options.lengths or "")
  elif options.lengths:
    drawn = parse_lengths(options.lengths)
  report = make(
    settings,
    topology,
    only=tuple(only),
    lengths=drawn,
    largest=options.largest,
    log=log,
  )
  print(tables.text(report))
  if options.json:
    print(json.dumps(report))
  return 0 if report["fits"] and report["sound"] else 1
