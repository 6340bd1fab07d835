"""Every experiment fits its loop: each variant, each setting of its sweep."""

import ast
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from r1jax import config
from r1jax.models import transformer
from r1jax.training import models

ROOT = pathlib.Path(__file__).parent.parent
BASE = ROOT / "r1jax" / "base_r1"
FILES = sorted((ROOT / "experiments").rglob("*.py"))


def module(file):
  spec = importlib.util.spec_from_file_location(file.stem, file)
  made = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(made)
  return made


RUNS = [
  f"{file}:{variant}" if variant else str(file)
  for file in FILES
  for variant in ("", *getattr(module(file), "VARIANTS", ()))
]


def short(path):
  return str(pathlib.Path(path).relative_to(ROOT / "experiments"))


@pytest.mark.parametrize("path", RUNS, ids=short)
def test_sections_are_keyword_arguments(path):
  config.check(config.load(path))


@pytest.mark.parametrize("path", RUNS, ids=short)
def test_models_can_be_built(path):
  c = config.load(path)
  if c.get("model") is None:
    return  # Another model does the work, behind an endpoint.
  if "/base_r1" in c.model.get("path", "") and not BASE.exists():
    pytest.skip("no r1jax/base_r1; `make r1-base` makes it")
  model = transformer.Transformer(models.architecture(**c.model))
  params = jax.eval_shape(
    lambda key: transformer.init(model, key), jax.random.key(0)
  )
  for leaf in jax.tree.leaves(params):
    assert jnp.issubdtype(leaf.dtype, jnp.floating)


@pytest.mark.parametrize("file", FILES, ids=short)
def test_sweeps_only_touch_known_fields(file):
  for setting in config.sweep(str(file)):
    config.check(config.load(str(file), setting))


@pytest.mark.parametrize("file", FILES, ids=short)
def test_every_experiment_says_how_it_is_run(file):
  text = ast.get_docstring(ast.parse(file.read_text())) or ""
  command = f"--config={file.relative_to(ROOT)}"
  assert command in text, f"its docstring should give its command: {command}"


def test_a_variant_that_does_not_exist_is_refused():
  for file in FILES:
    if getattr(module(file), "VARIANTS", ()):
      with pytest.raises(ValueError, match="nonsense"):
        config.load(f"{file}:nonsense")


def test_students_have_positions_for_the_texts_of_the_paper():
  for variant in module(ROOT / "experiments" / "distill.py").STUDENTS:
    c = config.load(f"{ROOT / 'experiments' / 'distill.py'}:{variant}")
    assert models.architecture(**c.model).max_length >= 32_768, variant


def test_the_smallest_student_is_untied():
  c = config.load(str(ROOT / "experiments" / "distill.py"))
  assert not models.architecture(**c.model).tied
