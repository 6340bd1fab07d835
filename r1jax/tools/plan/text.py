"""The text output of a plan."""

from collections.abc import Mapping
from typing import Any

from r1jax.tools.plan import slices
from r1jax.tools.plan.whole_run import PAPER

SHOWN = 12  # The number of meshes of a sweep to print.
ROWS = ("temporaries", "code")


def text(report: Mapping[str, Any]) -> str:
  """The report of `plan` or `sweep` as text."""
  if "ranked" in report:
    lines = ["estimates, the fastest first:"]
    for one in report["ranked"][:SHOWN]:
      lines.append(
        f"  {_mesh(one['mesh']):<50}  {one['seconds']:.4g} s, "
        f"{size(one['bytes'])}, {one['use']:.0%} of the slots in use"
      )
    return "\n".join([*lines, "", *map(text, report["plans"])])
  room = report["memory_per_device"]
  lines = [
    f"{report['topology']}: {report['chips']} chips, {size(room)} per device, "
    f"links of {report['link_rate'] / 1e9:.0f} GB/s; mesh "
    f"{_mesh(report['mesh'])}",
  ]
  if report["names"]:
    lines.append(slices.text(report["names"]))
  lines += [f"WARNING: {warning}" for warning in report["warnings"]]
  lines.append("")
  for name, program in report["programs"].items():
    lines += [*_program(name, program, room), ""]
  if hosts := dict(report["host_memory"]):
    devices = hosts.pop("devices")
    rows = [(f"to {phase}", size(x)) for phase, x in hosts.items()]
    lines += [*_aligned(f"memory of a host with {devices} devices", rows), ""]
  if "fill" in report:
    lines += [*_fill(report["fill"]), ""]
  if "run" in report:
    lines += [*_run(report["run"]), ""]
  lines.append("it fits" if report["fits"] else "it does NOT fit")
  return "\n".join(lines)


def _fill(found: Mapping[str, Any]) -> list[str]:
  """The lines of a simulation of rows."""
  each = ", ".join(
    f"{count:.2f} of width {width}"
    for width, count in found["microbatches"].items()
  )
  rows = [
    ("slots that hold real tokens", f"{found['slots_in_use']:.1%}"),
    (
      "least loaded shard / mean",
      f"{found['least_loaded_shard']:.2f}, at least "
      f"{found['least_loaded_shard_ever']:.2f}",
    ),
    ("microbatches of an update", each),
    ("all compiled in", f"{found['compile_seconds']:.0f} s"),
  ]
  for name, title in (("gradient", "gradients"), ("score", "scoring")):
    if name in found:
      low, high = (found[name]["seconds"][k] for k in ("overlapped", "serial"))
      best, least = (
        found[name]["useful_mfu"][k] for k in ("overlapped", "serial")
      )
      rows.append(
        (
          f"{title} of an update",
          f"{low:.4g} to {high:.4g} s, useful MFU {least:.1%} to {best:.1%}",
        )
      )
  return _aligned("simulated lengths", rows)


def _run(found: Mapping[str, Any]) -> list[str]:
  """The lines of a whole run."""
  rows = [(part, f"{hours:.1f} h") for part, hours in found["hours"].items()]
  rows += [("all", f"{found['total']:.0f} h"), ("for comparison", PAPER)]
  means = ", ".join(
    f"{one['mean']:.0f}: {one['slots_in_use']:.0%}" for one in found["stages"]
  )
  return _aligned("the whole run", [*rows, ("slots in use by mean", means)])


def _mesh(sizes: Mapping[str, int]) -> str:
  split = [f"{name} {n}" for name, n in sizes.items() if n > 1]
  return ", ".join(split) or "1 device"


def _program(name: str, result: Mapping[str, Any], room: float) -> list[str]:
  """The lines of one program."""
  rows = [(part, size(x)) for part, x in result["parts"].items()]
  rows += [(part, size(result[part])) for part in ROWS if part in result]
  for part, count in result.get("estimated", {}).items():
    rows.append((f"{part}, estimated", size(count)))
  if result.get("host"):
    rows.append(("in host memory", size(result["host"])))
  if "error" in result:
    rows.append(("it does not fit", result["error"].splitlines()[0]))
    return _aligned(name, rows)
  share = result["total"] / room
  rows.append(("all", f"{size(result['total'])}, {share:.0%} of the memory"))
  if "flops" in result:
    rows += [
      ("matmul FLOPs", f"{result['flops']:.3g}"),
      ("bytes moved", size(result["bytes"])),
    ]
  for one in result.get("collectives", ()):
    if one["bytes"]:
      what = f"{one['kind']} over {', '.join(one['axes']) or 'nothing'}"
      rows.append((what, f"{size(one['bytes'])} in {one['times']:.0f}"))
  if "largest_transfer" in result:
    rows.append(("the largest at once", size(result["largest_transfer"])))
  for part, seconds in result.get("bounds", {}).items():
    rows.append((f"least time, {part}", f"{seconds:.4g} s"))
  for kind, seconds in result.get("seconds", {}).items():
    mfu = result["mfu"][kind]
    rows.append((f"in all, {kind}", f"{seconds:.4g} s, MFU {mfu:.1%}"))
  if "compile_seconds" in result:
    rows.append(("compiled in", f"{result['compile_seconds']:.0f} s"))
  if "zipf" in result:
    for kind, seconds in result["zipf"]["seconds"].items():
      mfu = result["zipf"]["mfu"][kind]
      rows.append((f"{kind}, Zipf routing", f"{seconds:.4g} s, MFU {mfu:.1%}"))
  for fault in result.get("faults", ()):
    rows.append(("FAULT", fault))
  lines = _aligned(name, rows)
  for kind, found in result.get("largest", {}).items():
    title = {"flops": "FLOPs"}.get(kind, kind)
    lines += [f"  the most {title}:", *map(_instruction, found)]
  return lines


def _instruction(one: Mapping[str, Any]) -> str:
  """The line of an instruction, and where it comes from."""
  return (
    f"    {size(one['bytes']):>11} {one['flops']:>9.3g} FLOPs, "
    f"{one['times']:.0f} x {one['name']} {one['shapes']}\n"
    f"      {one['source'] or 'unknown'}  {one['path']}"
  )


def _aligned(name: str, rows: list[tuple[str, str]]) -> list[str]:
  width = max(len(label) for label, _ in rows)
  return [name, *(f"  {label:<{width}}  {value}" for label, value in rows)]


def size(count: float) -> str:
  """A number of bytes with its unit."""
  for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
    if count >= factor:
      return f"{count / factor:.2f} {unit}"
  return f"{count:.0f} B"
