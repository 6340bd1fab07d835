"""Code from real datasets: reference solutions pass, and broken ones do not."""

import json
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from r1jax.rewards import code
from r1jax.types import Completion, Example

ROOT = pathlib.Path(__file__).parent.parent.parent
SHARED = ROOT / "../shared/data"

needs_data = pytest.mark.skipif(
  not SHARED.exists(), reason="there is no ../shared/data"
)


def load(path, count):
  """The first `count` examples of a file, and their reference solutions."""
  lines = (SHARED / path).read_text().splitlines()[:count]
  for row in map(json.loads, lines):
    example = Example(row["prompt"], "", "code", row["task_id"], row)
    yield example, row["reference_solution"]


def broken(row, solution):
  """The solution with its body replaced by `pass`, and with a syntax error."""
  name = row["entry_point"]
  yield f"def {name}(*args, **kwargs):\n  pass\n"
  yield solution + "\n)"


def check_references(path, count):
  def judge(example, program):
    text = Completion(f"</think>\n```python\n{program}\n```")
    return code.judge(example, text, seconds=60.0)

  def mistakes(example, solution):
    verdict = judge(example, solution)
    yield from [verdict] if verdict.score != 1.0 else []
    for program in broken(example.metadata, solution):
      yield from [program] if judge(example, program).score else []

  with ThreadPoolExecutor(os.cpu_count()) as threads:
    found = threads.map(
      lambda pair: [(pair[0].id, each) for each in mistakes(*pair)],
      load(path, count),
    )
    assert [each for mistakes in found for each in mistakes] == []


FILES = [
  "eval/code_humaneval.jsonl",
  "eval/code_mbpp_test.jsonl",
  "train/code_mbpp_train_val.jsonl",
]


@needs_data
@pytest.mark.parametrize("path", FILES)
def test_reference_solutions_pass_and_broken_ones_do_not(bwrap, path):
  check_references(path, 5)


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("path", FILES)
def test_all_reference_solutions_pass_and_broken_ones_do_not(bwrap, path):
  check_references(path, None)
