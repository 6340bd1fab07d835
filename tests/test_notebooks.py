"""Notebooks are what their plain text says, were executed, and run."""

import json
import os
import pathlib
import re
import shutil

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
LARGEST = 300_000  # Bytes of a notebook, figures included.
SECONDS = 600  # Of a cell, on a machine that is busy.


def cells_of_text(path):
  """[(kind, source)] of a file in jupytext's percent format."""
  _, *cells = re.split(r"^# %%(.*)\n", path.read_text(), flags=re.MULTILINE)
  for kind, source in zip(cells[::2], cells[1::2], strict=True):
    if kind.strip() == "[markdown]":
      lines = source.strip().splitlines()
      yield "markdown", "\n".join(line[1:].strip() for line in lines)
    else:
      yield "code", source.strip()


def read(path):
  return json.loads(path.with_suffix(".ipynb").read_text())["cells"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_notebook_is_its_text(path):
  trimmed = lambda kind, source: (
    "\n".join(line.strip() for line in source.strip().splitlines())
    if kind == "markdown"
    else source.strip()
  )
  cells = [
    (cell["cell_type"], trimmed(cell["cell_type"], "".join(cell["source"])))
    for cell in read(path)
  ]
  assert cells == [*cells_of_text(path)], "run `make notebooks`"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_notebook_has_its_outputs_and_no_errors(path):
  code = [cell for cell in read(path) if cell["cell_type"] == "code"]
  counts = [cell["execution_count"] for cell in code]
  assert counts == [*range(1, len(code) + 1)], "run `make notebooks`"
  outputs = [output for cell in code for output in cell["outputs"]]
  assert outputs
  assert not [x for x in outputs if x["output_type"] == "error"]
  assert not [x for x in outputs if x.get("name") == "stderr"]
  assert path.with_suffix(".ipynb").stat().st_size < LARGEST


def test_every_notebook_has_a_text():
  notebooks = (ROOT / "notebooks").glob("*.ipynb")
  assert {x.stem for x in notebooks} == {x.stem for x in TEXTS}
  assert len(TEXTS) == 7


def execute(path, **environment):
  """Executes the text of a notebook anew; raises the error of a cell."""
  jupytext = pytest.importorskip("jupytext")
  nbclient = pytest.importorskip("nbclient")
  for folder in (ROOT / "runs").glob(f"notebook_{path.stem[0]}*"):
    shutil.rmtree(folder)  # Or its run would be finished already.
  paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
  nbclient.NotebookClient(
    jupytext.read(path),
    timeout=SECONDS,
    kernel_name="python3",
    resources={"metadata": {"path": str(path.parent)}},
  ).execute(
    env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment
  )


@pytest.mark.notebook
@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_its_fast_mode(path):
  execute(path, R1JAX_FAST="1", JAX_DISABLE_MOST_OPTIMIZATIONS="1")


@pytest.mark.soak
@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
  execute(path)
