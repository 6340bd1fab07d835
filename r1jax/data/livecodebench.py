"""Loads LiveCodeBench's problems from the files of its releases.

A row has `question_content`, `starter_code`, `contest_date`, `question_id`,
`metadata` (JSON with the name of a function) and two fields of test cases. The
private ones are JSON, or JSON in a pickle, compressed and in base64. Unpickling
can run any code, so an unpickler is used that makes no objects but text.
"""

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1jax.data import rows
from r1jax.types import Example

DOMAIN = "code/livecodebench"
MAX_BYTES = 2**30  # Of one row's tests, decompressed.

# Of the benchmark's own prompts for chat models.
PROMPT = """\
### Question:
{question}

### Format: {format}
```python
{starter}
```

### Answer: (use the provided format with backticks)

"""
STARTER = (
  "You will use the following starter code to write the solution to the "
  "problem and enclose your code within delimiters."
)
STDIN = (
  "Read the inputs from stdin solve the problem and write the answer to stdout "
  "(do not directly test on the sample inputs). Enclose your code within "
  "delimiters as follows. Ensure that when the python program runs, it reads "
  "the inputs, runs the algorithm and writes output to STDOUT."
)


def load(
  *, path: str | Path, start: str = "", end: str = ""
) -> Sequence[Example]:
  """Returns the problems of a file, in its order.

  Args:
    path: JSON lines, a JSON array or Parquet; see `data.rows`.
    start: the first date of a contest, as "2024-08-01"; "" for any.
    end: the last one, likewise.

  Raises FileNotFoundError, or ValueError that names the file and the line, and
  if no problem is left.
  """
  examples = []
  for number, row in rows.read(path):
    where = f"{path}:{number}"
    if isinstance(row, ValueError):
      raise row
    try:
      date = str(row["contest_date"])[:10]
      if (start and date < start) or (end and date > end):
        continue
      examples.append(_example(row, f"{Path(path).name}:{number}"))
    except (KeyError, TypeError, ValueError) as error:
      missing = isinstance(error, KeyError)
      text = f"no field {error}" if missing else " ".join(str(error).split())
      raise ValueError(f"{where}: {text}") from None
  if not examples:
    raise ValueError(f"{path}: no problem from {start or '-'} to {end or '-'}")
  return examples


def _example(row: Mapping[str, Any], id: str) -> Example:
  starter = row.get("starter_code") or ""
  prompt = PROMPT.format(
    question=row["question_content"],
    format=STARTER if starter else STDIN,
    starter=starter or "# YOUR CODE HERE",
  )
  cases = cases_of(row["public_test_cases"])
  cases += cases_of(row["private_test_cases"])
  metadata = json.loads(row.get("metadata") or "{}")
  tests: Any = [
    {key: case[key] for key in ("input", "output")} for case in cases
  ]
  if any(case.get("testtype") == "functional" for case in cases):
    name = metadata["func_name"]
    call = f"Solution().{name}" if "class Solution" in starter else name
    tests = [assertion(call, case) for case in cases]
  return Example(
    prompt,
    "",
    DOMAIN,
    str(row.get("question_id") or id),
    {
      "tests": tests,
      "difficulty": row.get("difficulty"),
      "contest_date": row["contest_date"],
    },
  )


def assertion(call: str, case: Mapping[str, str]) -> str:
  """Returns a functional test in Python: an input line is an argument."""
  arguments = [json.loads(line) for line in case["input"].splitlines() if line]
  shown = ", ".join(map(repr, arguments))
  return f"assert {call}({shown}) == {json.loads(case['output'])!r}"


def cases_of(text: str) -> list[dict[str, str]]:
  """Returns a list of cases {"input", "output", "testtype"} from a field.

  Raises ValueError for anything but such a list.
  """
  try:
    cases = json.loads(text)
  except ValueError:
    cases = json.loads(_unpacked(text))
  if not isinstance(cases, list) or not all(
    isinstance(case, dict) and {"input", "output"} <= case.keys()
    for case in cases
  ):
    raise ValueError(
      f"test cases should be a list of objects, got {text!r:.60}"
    )
  return cases


def _unpacked(text: str) -> str:
  """Returns the text in a pickle that is compressed and in base64."""
  try:
    stream = zlib.decompressobj()
    data = stream.decompress(base64.b64decode(text, validate=True), MAX_BYTES)
  except (binascii.Error, zlib.error, ValueError) as error:
    raise ValueError(f"test cases are not JSON, nor packed: {error}") from None
  if stream.unconsumed_tail:
    raise ValueError(f"test cases take more than {MAX_BYTES:,} bytes")
  try:
    value = _TextUnpickler(io.BytesIO(data)).load()
  except Exception as error:  # Damaged pickles raise almost anything.
    raise ValueError(f"test cases cannot be unpickled: {error}") from None
  if not isinstance(value, str):
    raise ValueError(f"test cases hold {type(value).__name__}, not text")
  return value


class _TextUnpickler(pickle.Unpickler):
  """An unpickler of plain values, which refuses all classes and functions."""

  def find_class(self, module: str, name: str) -> Any:
    raise pickle.UnpicklingError(f"refused to load {module}.{name}")
