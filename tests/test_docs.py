"""What the docs show exists: names, files, commands, config keys, metrics."""

import ast
import doctest
import importlib
import pathlib
import re
import shlex

import pytest

import r1jax
from r1jax import __main__ as commands
from r1jax import config as configs
from r1jax.runtime.metrics import METRICS, pattern_of

ROOT = pathlib.Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FOLDERS = ("r1jax", "experiments", "launch", "tests", "kernels", "notebooks")
FAMILIES = {name.split("/")[0] for name in METRICS}
# Modules whose examples compile a model.
COMPILES = ("r1jax.tools.model",)
EXAMPLES = sorted(
  ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
    ".__init__"
  )
  for path in (ROOT / "r1jax").rglob("*.py")
  if re.search(r"^\s*>>> ", path.read_text(), re.MULTILINE)
)

by_name = pytest.mark.parametrize(
  "page", PAGES, ids=lambda page: str(page.relative_to(ROOT))
)


def blocks(page, language):
  return [
    text for name, text in FENCE.findall(page.read_text()) if name == language
  ]


def command_lines(page):
  """The words of each command in the page's blocks without a language."""
  for block in blocks(page, ""):
    for line in block.replace("\\\n", " ").splitlines():
      if re.match(r"(r1jax|make|launch/\w+\.sh) ", line):
        yield shlex.split(line, comments=True)


@by_name
def test_python_on_a_page_compiles_and_calls_what_there_is(page):
  for block in blocks(page, "python"):
    for node in ast.walk(ast.parse(block)):
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.value.id == "r1jax":
          assert node.attr in r1jax.__all__, node.attr


@by_name
def test_commands_on_a_page_exist(page):
  makefile = (ROOT / "Makefile").read_text()
  for words in command_lines(page):
    if words[0] == "make":
      assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
    elif words[0] == "r1jax":
      assert words[1] in commands.COMMANDS, words
    else:
      assert (ROOT / words[0]).exists(), words


@by_name
def test_configs_and_their_keys_on_a_page_exist(page):
  for words in command_lines(page):
    values = dict(word.split("=", 1) for word in words if "=" in word)
    path = values.get("--config", values.get("CONFIG", ""))
    if not path.startswith("experiments/"):
      continue
    file, colon, variant = path.partition(":")
    config = configs.load(f"{ROOT / file}{colon}{variant}")
    for key in values:
      if key.startswith("--config."):
        configs.find(config, key.removeprefix("--config."))


@by_name
def test_files_and_metrics_on_a_page_exist(page):
  text = FENCE.sub("", page.read_text())
  for name in re.findall(r"`([\w@.]+(?:/[\w@.]+)+/?)`", text):
    if name.split("/")[0] in FOLDERS:
      assert (ROOT / name).exists(), name
    elif name.split("/")[0] in FAMILIES and page.name != "coming_from.md":
      assert pattern_of(name), name


def test_every_page_is_in_the_navigation():
  navigation = (ROOT / "mkdocs.yml").read_text()
  pages = {str(page.relative_to(ROOT / "docs")) for page in DOCS}
  assert pages == {*re.findall(r"[\w/]+\.md", navigation.split("nav:")[-1])}


@pytest.mark.parametrize(
  "module",
  [
    pytest.param(name, marks=pytest.mark.slow if name in COMPILES else ())
    for name in EXAMPLES
  ],
)
def test_examples_in_docstrings_are_right(module):
  failed, tried = doctest.testmod(
    importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE
  )
  assert tried and not failed


def test_the_terms_of_the_loss_and_the_rewards_have_examples():
  assert {
    "r1jax.losses.advantages",
    "r1jax.losses.aggregation",
    "r1jax.losses.kl",
    "r1jax.rewards.accuracy",
    "r1jax.rewards.format",
  } <= {*EXAMPLES}
