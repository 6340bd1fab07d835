"""Imports point one way, and files fit in the head."""

import ast
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
LAYERS = (  # Lowest first. Rooms of one layer do not import each other, ...
  {"r1jax_kernels"},
  {"r1jax.text"},
  {"r1jax.types", "r1jax.config"},
  {"r1jax.runtime"},
  {"r1jax.ops"},
  {"r1jax.parallel"},
  {"r1jax.models", "r1jax.data", "r1jax.rewards", "r1jax.losses"},
  {"r1jax.hf"},
  {"r1jax.rollouts"},
  {"r1jax.training"},
  {"r1jax.tools"},
  {"r1jax.__main__"},
)
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}
# ... and the kernels have one door.
DOOR = {"r1jax.ops", "r1jax_kernels"}
LONG = {"r1jax.models.config"}  # A table of presets.


def name(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  if parts[0] == "kernels":
    parts = ("r1jax_kernels", *parts[1:])
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
  name(path): path
  for folder in ("r1jax", "kernels")
  for path in (ROOT / folder).rglob("*.py")
}
FILES = sorted(
  path
  for folder in ("r1jax", "kernels", "tests", "experiments")
  for path in (ROOT / folder).rglob("*.py")
)


def unit(module):
  """The layered unit that a dotted name belongs to, if it is ours."""
  parts = module.split(".")
  found = (u for u in (".".join(parts[:2]), parts[0]) if u in RANK)
  return next(found, None)


def imports(module, path):
  """Dotted names that a file imports, wherever in it; relative ones too."""
  package = module.split(".")
  if path.stem != "__init__":
    package = package[:-1]
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      up = package[: len(package) - node.level + 1] if node.level else []
      base = ".".join([*up, node.module or ""]).strip(".")
      yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(module, imported):
  own, other = unit(module), unit(imported)
  if other is None or other == own:
    return None
  if own is None:
    return f"{module} belongs to no layer: add it to LAYERS"
  if RANK[other] >= RANK[own]:
    return f"{module} imports {imported}, which is not below it"
  return None


def test_imports_point_down():
  found = (
    violations(module, imported)
    for module, path in sorted(MODULES.items())
    for imported in imports(module, path)
  )
  assert not [*filter(None, found)]


def test_every_module_has_a_layer():
  outside = {m for m in MODULES if unit(m) is None} - {"r1jax"}
  assert not outside, "add them to LAYERS"


def test_only_the_door_knows_the_kernels():
  knowing = {
    module
    for module, path in MODULES.items()
    if any(i.split(".")[0] == "r1jax_kernels" for i in imports(module, path))
  }
  assert {unit(m) for m in knowing} <= DOOR
  for path in (ROOT / "tests").rglob("*.py"):
    if "kernels" not in path.relative_to(ROOT).parts and path != (
      pathlib.Path(__file__)
    ):
      assert "r1jax_kernels" not in path.read_text(), path


def test_experiments_import_no_sibling():
  for path in (ROOT / "experiments").rglob("*.py"):
    roots = {i.split(".")[0] for i in imports("experiments", path)}
    known = {"ml_collections", "r1jax", *sys.stdlib_module_names}
    assert roots <= known, path


def test_kernels_and_experiments_are_no_packages():
  assert not list((ROOT / "kernels").rglob("__init__.py"))
  assert not list((ROOT / "experiments").rglob("__init__.py"))


def test_every_folder_of_modules_is_a_package():
  """An installed package holds no other folders."""
  folders = {path.parent for path in (ROOT / "r1jax").rglob("*.py")}
  assert not [f for f in folders if not (f / "__init__.py").exists()]


def test_the_rewards_do_not_import_jax():
  for module, path in MODULES.items():
    if unit(module) == "r1jax.rewards":
      roots = {i.split(".")[0] for i in imports(module, path)}
      assert not roots & {"jax", "flax", "optax"}, module


def test_files_fit_in_the_head():
  """In 400 lines; kernels and tables in 600."""
  bound = {
    path: 600
    if name(path) in LONG or unit(name(path)) == "r1jax_kernels"
    else 400
    for path in FILES
  }
  sizes = {path: len(path.read_text().splitlines()) for path in FILES}
  assert not {p: n for p, n in sizes.items() if n > bound[p]}


def test_the_rules_notice():
  # A rule that cannot fail is no rule.
  assert violations("r1jax.losses.grpo", "r1jax.models.moe")
  assert violations("r1jax.rollouts.engine", "r1jax.training.grpo")
  assert violations("r1jax.somewhere", "r1jax.types")
  assert violations("r1jax_kernels.norm", "r1jax.types")
  assert violations("r1jax.models.transformer", "r1jax.hf.loading")
  assert not violations("r1jax.hf.layout", "r1jax.models.config")
  assert not violations("r1jax.training.grpo", "r1jax.losses.grpo")
  assert not violations("r1jax.models.moe", "r1jax.ops.experts")
