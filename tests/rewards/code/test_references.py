"""Code from real datasets: reference solutions pass, and broken ones do not."""

import ast
import json
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from r1jax.rewards.code import programs
from r1jax.types import Completion, Example

ROOT = pathlib.Path(__file__).parents[3]
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
  try:
    tree = ast.parse(solution)
  except SyntaxError:
    tree = ast.parse(row["prompt"] + solution)
  for node in tree.body:
    if isinstance(node, ast.FunctionDef) and node.name == row["entry_point"]:
      node.body = [ast.Pass()]
  yield ast.unparse(tree)
  yield solution + "\n)"


def check_references(path, count):
  def judge(example, program):
    text = Completion(f"</think>\n```python\n{program}\n```")
    return programs.judge(example, text, seconds=60.0)

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


@needs_data
@pytest.mark.parametrize(
  "path",
  [
    pytest.param(path, marks=mark)
    for path, mark in zip(
      FILES, (pytest.mark.slow, pytest.mark.soak, pytest.mark.soak)
    )
  ],
)
def test_all_reference_solutions_pass_and_broken_ones_do_not(bwrap, path):
  check_references(path, None)


@needs_data
def test_programs_are_held_to_every_case(bwrap):
  path = SHARED / "eval/code_stdin_codecontests.jsonl"
  for row in map(json.loads, path.read_text().splitlines()[:2]):
    example = Example(row["prompt"], "", "code", row["task_id"], row)
    answers = {case["input"]: case["output"] for case in row["tests"]}
    all_but_one = dict([*answers.items()][:-1])
    for known, score in ((answers, 1.0), (all_but_one, 0.0), ({}, 0.0)):
      program = f"import sys\nprint({known}.get(sys.stdin.read(), 'x'))"
      text = Completion(f"</think>\n```python\n{program}\n```")
      assert programs.reward(example, text, seconds=60.0) == score


@pytest.mark.slow
@pytest.mark.skipif(
  not (ROOT / "../shared/cases").exists(), reason="there is no ../shared/cases"
)
def test_known_faults_are_graded_as_they_should_be(bwrap):
  mistakes = []
  lines = (ROOT / "../shared/cases/code.jsonl").read_text().splitlines()
  for number, case in enumerate(map(json.loads, lines)):
    for test in case["tests"]:
      if isinstance(test, dict) and "times" in test:
        test["input"] *= test["times"]
    prompt = case.get("prompt", "")
    example = Example(prompt, "", "code", f"case {number}", case)
    text = Completion(
      f"</think>\n```{case['language']}\n{case['program']}\n```"
    )
    seconds = case.get("timeout", 31.0) - 1.0
    try:
      score = programs.reward(example, text, seconds=seconds)
    except ValueError as error:
      assert f"case {number}" in str(error)
      score = None
    wanted = case["want"] if isinstance(case["want"], list) else [case["want"]]
    mistakes += [(case["kind"], score)] if score not in wanted else []
  assert mistakes == []
