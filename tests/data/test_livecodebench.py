"""LiveCodeBench's rows: prompts, dates, and tests that may be a pickle."""

import base64
import json
import os
import pickle
import zlib

import pytest

from r1jax.data import livecodebench

STDIN = [
  {"input": "1 2\n", "output": "3\n", "testtype": "stdin"},
  {"input": "4 5\n", "output": "9\n", "testtype": "stdin"},
]
FUNCTION = [
  {"input": '[4, 4]\n"a"', "output": "true", "testtype": "functional"},
  {"input": "[]\nnull", "output": "null", "testtype": "functional"},
]


def packed(value):
  data = zlib.compress(pickle.dumps(value))
  return base64.b64encode(data).decode()


def row(public=STDIN[:1], private=STDIN[1:], **fields):
  return {
    "question_content": "Add two numbers.",
    "starter_code": "",
    "contest_date": "2024-08-03T00:00:00",
    "question_id": "abc_a",
    "difficulty": "easy",
    "metadata": "{}",
    "public_test_cases": json.dumps(public),
    "private_test_cases": packed(json.dumps(private)),
  } | fields


@pytest.fixture
def write(tmp_path):
  def write(*rows):
    file = tmp_path / "lcb.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file

  return write


def test_a_program_that_reads_standard_input_has_all_its_cases(write):
  (example,) = livecodebench.load(path=write(row()))
  assert example.id == "abc_a" and example.domain == "code/livecodebench"
  assert example.metadata["tests"] == [
    dict(input="1 2\n", output="3\n"),
    dict(input="4 5\n", output="9\n"),
  ]
  assert example.prompt == (
    "### Question:\nAdd two numbers.\n\n### Format: Read the inputs from stdin "
    "solve the problem and write the answer to stdout (do not directly test "
    "on the sample inputs). Enclose your code within delimiters as follows. "
    "Ensure that when the python program runs, it reads the inputs, runs the "
    "algorithm and writes output to STDOUT.\n```python\n# YOUR CODE HERE\n"
    "```\n\n"
    "### Answer: (use the provided format with backticks)\n\n"
  )


@pytest.mark.parametrize(
  "starter, call",
  [
    ("class Solution:\n  def f(self, x, y):\n", "Solution().f"),
    ("def f(x, y):\n", "f"),
  ],
)
def test_a_function_is_tested_by_assertions(write, starter, call):
  fields = dict(starter_code=starter, metadata='{"func_name": "f"}')
  (example,) = livecodebench.load(
    path=write(row(FUNCTION[:1], FUNCTION[1:], **fields))
  )
  assert example.metadata["tests"] == [
    f"assert {call}([4, 4], 'a') == True",
    f"assert {call}([], None) == None",
  ]
  assert f"```python\n{starter}\n```" in example.prompt


def test_private_cases_may_be_plain_json(write):
  plain = row(private_test_cases=json.dumps(STDIN[1:]))
  (example,) = livecodebench.load(path=write(plain))
  assert len(example.metadata["tests"]) == 2


def test_a_window_of_dates_chooses_contests(write):
  dates = ("2024-07-31", "2024-08-01T12:00:00", "2025-01-31", "2025-02-01")
  file = write(*(row(contest_date=d, question_id=d) for d in dates))
  chosen = livecodebench.load(path=file, start="2024-08-01", end="2025-01-31")
  assert [example.id for example in chosen] == [*dates[1:3]]
  with pytest.raises(ValueError, match="no problem from 2026-01-01 to -"):
    livecodebench.load(path=file, start="2026-01-01")


class Evil:
  def __reduce__(self):
    return os.system, ("touch /tmp/r1jax_was_here",)


@pytest.mark.parametrize(
  "field, message",
  [
    (packed(Evil()), "refused to load .*system"),
    (packed({"a": 1}), "hold dict, not text"),
    (packed(json.dumps({"a": 1})), "should be a list of objects"),
    (packed(json.dumps([{"input": "1"}])), "should be a list of objects"),
    ("!!", "not JSON, nor packed"),
    (base64.b64encode(b"no zlib").decode(), "not JSON, nor packed"),
    (base64.b64encode(zlib.compress(b"no")).decode(), "cannot be unpickled"),
  ],
)
def test_hostile_and_damaged_cases_are_refused_by_line(write, field, message):
  file = write(row(), row(private_test_cases=field))
  with pytest.raises(ValueError, match=rf"lcb.jsonl:2: .*{message}"):
    livecodebench.load(path=file)
  assert not os.path.exists("/tmp/r1jax_was_here")


def test_a_bomb_is_not_decompressed(write, monkeypatch):
  monkeypatch.setattr(livecodebench, "MAX_BYTES", 1000)
  file = write(row(private_test_cases=packed("x" * 100_000)))
  with pytest.raises(ValueError, match="more than 1,000 bytes"):
    livecodebench.load(path=file)


def test_a_missing_field_is_named_with_its_line(write):
  broken = row()
  del broken["question_content"]
  with pytest.raises(ValueError, match="lcb.jsonl:1: no field 'question_con"):
    livecodebench.load(path=write(broken))
