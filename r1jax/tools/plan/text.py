"""The text output of a plan."""

from collections.abc import Mapping
from typing import Any

SHOWN = 12  # The number of meshes of a sweep to print.
ROWS = ("temporaries", "code")


def text(found: Mapping[str, Any]) -> str:
  """The report of `plan` or `sweep` as text."""
  if "ranked" in found:
    lines = ["estimates, the fastest first:"]
    for one in found["ranked"][:SHOWN]:
      lines.append(
        f"  {_mesh(one['mesh']):<50}  {one['seconds']:.4g} s, "
        f"{size(one['bytes'])}"
      )
    return "\n".join([*lines, "", *map(text, found["plans"])])
  room = found["memory_per_device"]
  lines = [
    f"{found['topology']}: {found['chips']} chips, {size(room)} per device; "
    f"mesh {_mesh(found['mesh'])}",
    "",
  ]
  for name, program in found["programs"].items():
    lines += [*_program(name, program, room), ""]
  lines.append("it fits" if found["fits"] else "it does NOT fit")
  return "\n".join(lines)


def _mesh(sizes: Mapping[str, int]) -> str:
  split = [f"{name} {n}" for name, n in sizes.items() if n > 1]
  return ", ".join(split) or "1 device"


def _program(name: str, made: Mapping[str, Any], room: float) -> list[str]:
  """The lines of one program."""
  rows = [(part, size(x)) for part, x in made["parts"].items()]
  rows += [(part, size(made[part])) for part in ROWS if part in made]
  for part, count in made.get("estimated", {}).items():
    rows.append((f"{part}, estimated", size(count)))
  if made.get("host"):
    rows.append(("in host memory", size(made["host"])))
  if "error" in made:
    rows.append(("it does not fit", made["error"].splitlines()[0]))
    return _aligned(name, rows)
  share = made["total"] / room
  rows.append(("all", f"{size(made['total'])}, {share:.0%} of the memory"))
  if "flops" in made:
    rows += [
      ("matmul FLOPs", f"{made['flops']:.3g}"),
      ("bytes moved", size(made["bytes"])),
    ]
  for one in made.get("collectives", ()):
    if one["bytes"]:
      what = f"{one['kind']} over {', '.join(one['axes']) or 'nothing'}"
      rows.append((what, f"{size(one['bytes'])} in {one['times']:.0f}"))
  if "largest_transfer" in made:
    rows.append(("the largest at once", size(made["largest_transfer"])))
  for part, seconds in made.get("bounds", {}).items():
    rows.append((f"least time, {part}", f"{seconds:.4g} s"))
  for kind, seconds in made.get("seconds", {}).items():
    mfu = made["mfu"][kind]
    rows.append((f"in all, {kind}", f"{seconds:.4g} s, MFU {mfu:.1%}"))
  if "compile_seconds" in made:
    rows.append(("compiled in", f"{made['compile_seconds']:.0f} s"))
  for path in made.get("loops_counted_once", ()):
    rows.append(("a loop counted once", path))
  for fault in made.get("faults", ()):
    rows.append(("FAULT", fault))
  return _aligned(name, rows)


def _aligned(name: str, rows: list[tuple[str, str]]) -> list[str]:
  width = max(len(label) for label, _ in rows)
  return [name, *(f"  {label:<{width}}  {value}" for label, value in rows)]


def size(count: float) -> str:
  """A number of bytes with its unit."""
  for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
    if count >= factor:
      return f"{count / factor:.2f} {unit}"
  return f"{count:.0f} B"
