r"""Loads problems of any kind from a file.

    dataset=dict(name="problems", path="math500.jsonl")
    dataset=dict(name="problems", path="mbpp.parquet", domain="code")
    dataset=dict(
      name="problems", path="mine.json.gz", domain="code/mine",
      fields=dict(prompt="task.text", tests="task.checks"),
    )

The domain selects the grader (see `r1jax.rewards.accuracy`). The metadata of an
example hold all fields of its row, both under their own names and under those
of `FIELDS`, for graders that need more than the answer.
"""

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from r1jax.data import jsonl, rows
from r1jax.data.split import in_test
from r1jax.types import Example

logger = logging.getLogger(__name__)

# Names of fields in published data sets. The first one that exists and is not
# null is used. A dot separates the keys of nested objects.
FIELDS: dict[str, tuple[str, ...]] = {
  "prompt": ("problem", "question", "prompt", "text"),
  "answer": (
    *("answer", "final_answer", "expected_answer", "ground_truth"),
    *("reward_model.ground_truth", "solution"),
  ),
  "tests": ("tests", "test_list", "test", "input_output"),
  "choices": ("choices", "options"),
}
# Domains that are graded by a field other than the answer, or the prompt alone.
UNANSWERED = {
  "code": "tests",
  "countdown": "target",
  "general": "prompt",
  "harmless": "prompt",
  "helpful": "prompt",
  "instructions": "instruction_id_list",
}
SPLITS = ("all", "train", "test")
QUESTION = "{question}"
SHOWN = 10  # Skipped rows that are logged one by one.

# A text whose only number has commas between its thousands.
THOUSANDS = re.compile(
  r"([^\d,.;()\[\]{}<>|_^]*)([1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?)([^\d,]*)"
)
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
LABEL = re.compile(r"\(?([A-Z])[).:]\s*")  # The letter before a choice.
CURRENCY = re.compile(r"\\?\$|[€£¥]")


def load(
  *,
  path: str | Path,
  domain: str = "math",
  fields: Mapping[str, str | Sequence[str]] = {},
  prompt: str = QUESTION,
  split: str = "all",
  max_skipped: float = 0.1,
) -> Sequence[Example]:
  r"""Returns the problems of a file in its order, with the id "file:line".

  An answer is text, a number, or a list of these. If a text marks its answer,
  with "####" or \boxed, the answer is what the last mark says. Commas between
  the thousands of a number are removed. The choices of a multiple-choice
  problem are added to its prompt with their letters.

  Invalid rows are skipped, with a warning in the log.

  Args:
    path: JSON lines, a JSON array (.json) or Parquet (.parquet), which may be
      compressed (.gz).
    domain: the domain of all problems: "math", "code", "choice", "logic" or
      "instructions", optionally followed by "/" and a name for the metrics.
    fields: the fields of a row that hold "prompt", "answer", "domain" or an
      entry of the metadata, in place of those in `FIELDS`: a name, or several
      of which the first that exists is used.
    prompt: text around each question, which holds "{question}" once, such as
      the request for an answer in a box. The splits do not depend on it.
    split: "all", or "train" or "test": nine tenths or one tenth of the
      problems, by a hash of their content.
    max_skipped: the share of rows that may be skipped.

  Raises FileNotFoundError, or ValueError that names the file and the line.
  """
  if not str(path):
    raise ValueError(
      "dataset.path is not set; give a file of problems, "
      "--config.dataset.path=FILE"
    )
  if split not in SPLITS:
    raise ValueError(f"split must be one of {[*SPLITS]}, got {split!r}")
  if prompt.count(QUESTION) != 1:
    raise ValueError(f"prompt must hold {QUESTION} once, got {prompt!r:.80}")
  names = FIELDS | {
    name: (paths,) if isinstance(paths, str) else tuple(paths)
    for name, paths in fields.items()
  }
  file, examples, faults = Path(path).name, [], []
  for number, row in rows.read(path):
    try:
      if isinstance(row, ValueError):
        raise row
      examples.append(_example(row, names, domain, f"{file}:{number}"))
    except ValueError as error:
      where = f"{path}:{number}: "
      faults.append(where + str(error).removeprefix(where))
  count = len(examples) + len(faults)
  if not count:
    raise ValueError(f"{path}: no problems in it")
  summary = f"{len(faults):,} of {count:,} rows of {path} cannot be used"
  if not examples or len(faults) > max_skipped * count:
    raise ValueError(f"{faults[0]} ({summary}; max_skipped is {max_skipped:g})")
  for fault in faults[:SHOWN]:
    logger.warning("skipped %s", fault)
  if faults:
    logger.warning("skipped: %s", summary)
  chosen = [
    example._replace(prompt=prompt.replace(QUESTION, example.prompt))
    for example in examples
    if split == "all"
    or in_test(example.domain, example.prompt) == (split == "test")
  ]
  if not chosen:
    raise ValueError(
      f"{path}: none of its {len(examples)} problems is in the split "
      f"{split!r}; use a longer file"
    )
  return chosen


def _example(
  row: Mapping[str, Any],
  names: Mapping[str, Sequence[str]],
  domain: str,
  id: str,
) -> Example:
  """Returns a row as an example; raises ValueError if it cannot be used."""
  fields = {name: _find(row, paths) for name, paths in names.items()}
  values = {name: v for name, (_, v) in fields.items() if v is not None}
  if "domain" in values:
    domain = _text(*fields["domain"])
  family = domain.partition("/")[0]
  graded = UNANSWERED.get(family, "answer")  # The field for the grader.
  metadata = dict(row)
  for name in values.keys() - {"prompt", "answer", "domain"}:
    metadata[name] = values[name]
  if family == "code" and "tests" in values:
    metadata["tests"] = _tests(values["tests"])
  if family == "choice" and "choices" in values:
    metadata["choices"] = _choices(values["choices"])
  if values.get(graded, metadata.get(graded)) is None:
    raise ValueError(
      f"{fields.get(graded, [graded])[0]!r} is null or missing; problems of "
      f"the domain {family!r} need it"
    )
  prompt = _prompt(*fields["prompt"])
  metadata.pop(fields["prompt"][0], None)
  if family == "choice":
    prompt = _with_choices(prompt, metadata.get("choices") or ())
  answer = ""
  if graded == "answer":
    answer = _answer(*fields["answer"], family, metadata.get("choices") or ())
    metadata.pop(fields["answer"][0], None)
  return Example(prompt, answer, domain, id, metadata)


def _find(row: Mapping[str, Any], paths: Sequence[str]) -> tuple[str, Any]:
  """Returns the first path that leads to a value, and the value.

  Without a value it returns a name for error messages, and None.
  """
  for path in paths:
    value: Any = row
    if path in row:
      value = row[path]
    else:
      for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is not None:
      return path, value
  existing = [path for path in paths if path in row]
  return (existing or [" or ".join(paths)])[0], None


def _text(name: str, value: Any) -> str:
  """Returns text or a number as text; raises ValueError for other values."""
  is_number = isinstance(value, int | float | Decimal)
  if is_number and not isinstance(value, bool) and math.isfinite(value):
    return jsonl.number_text(value)
  if not isinstance(value, str) or not value.strip():
    raise ValueError(f"{name!r} must be text, got {value!r:.80}")
  return value.strip()


def _prompt(name: str, value: Any) -> str:
  """Returns the question, from text or from a single message of a user."""
  if not isinstance(value, list):
    return _text(name, value)
  messages = [part if isinstance(part, Mapping) else {} for part in value]
  if [message.get("role") for message in messages] != ["user"]:
    raise ValueError(
      f"{name!r} must be text or one message of a user, got {value!r:.80}"
    )
  return _text(name, messages[0].get("content"))


def _with_choices(prompt: str, choices: Sequence[str]) -> str:
  """Returns the question and, unless it has their letters, the choices."""
  letters = _letters(len(choices))
  if all(re.search(rf"\b{letter}[).:．、]", prompt) for letter in letters):
    return prompt
  lines = (f"{letter}. {text}" for letter, text in zip(letters, choices))
  return "\n".join([prompt, *lines])


def _answer(name: str, value: Any, family: str, choices: Sequence[str]) -> str:
  """Returns the reference answer in the form that the domain's grader needs."""
  if family == "logic":
    plain = isinstance(value, str)
    return _text(name, value) if plain else json.dumps(value)
  if family == "choice" and type(value) is int and choices:
    if not 0 <= value < len(choices):
      raise ValueError(f"{name!r} is {value}, but has {len(choices)} choices")
    return _letters(len(choices))[value]
  if isinstance(value, list) and value:
    return ", ".join(_answer(name, part, family, choices) for part in value)
  text = _text(name, value)
  if text.startswith('["') and (parts := _listed(text)):
    return _answer(name, parts, family, choices)
  _, marked, answer = text.rpartition("####")
  if marked and not answer.strip():
    raise ValueError(f"nothing follows #### in {name!r}")
  if not marked:
    boxed = _last_boxed(text)
    if boxed is None and name == "solution" and "\n" in text:
      raise ValueError(f"{name!r} does not mark its answer by #### or \\boxed")
    answer = text if boxed is None else boxed
  return _plain_number(answer.strip()) if family == "math" else answer.strip()


def _listed(text: str) -> list[str] | None:
  """Returns the strings of a JSON list; None if the text is not one."""
  try:
    parts = json.loads(text)
  except ValueError:
    return None
  return parts if all(isinstance(part, str) for part in parts) else None


def _plain_number(answer: str) -> str:
  """Returns the answer, without commas between thousands if it is a number."""
  match = THOUSANDS.fullmatch(answer)
  if not match:
    return answer
  before, number, after = match.groups()
  if "$" not in after:  # Not a formula between dollar signs.
    before = CURRENCY.sub("", before)
  return before + number.replace(",", "") + after


def _last_boxed(text: str) -> str | None:
  r"""Returns the content of the last \boxed{...}; None if it is not closed."""
  _, boxed, rest = text.rpartition(r"\boxed{")
  depth = 1
  for match in BRACE.finditer(rest) if boxed else ():
    depth += {"{": 1, "}": -1}.get(match[0], 0)
    if not depth:
      return rest[: match.start()]
  return None


def _tests(value: Any) -> Any:
  """Returns tests as the code reward needs them: Python text or a list."""
  if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
    try:
      value = json.loads(value)
    except ValueError:
      return value
  if isinstance(value, Mapping) and {"inputs", "outputs"} <= value.keys():
    cases = zip(value["inputs"], value["outputs"], strict=True)
    return [dict(input=stdin, output=stdout) for stdin, stdout in cases]
  if isinstance(value, list) and all(isinstance(test, str) for test in value):
    return "\n".join(value)
  return value


def _choices(value: Any) -> list[str]:
  """Returns the texts of the choices, without their letters."""
  if isinstance(value, Mapping):  # {"text": [...]}, or {"A": ..., "B": ...}.
    value = value.get("text", [*value.values()])
  if not isinstance(value, list):
    raise ValueError(f"choices must be a list, got {value!r:.80}")
  texts = [_text("choices", choice) for choice in value]
  labels = [LABEL.match(text) for text in texts]
  if [label and label[1] for label in labels] == _letters(len(texts)):
    texts = [text[label.end() :] for text, label in zip(texts, labels)]
  return texts


def _letters(count: int) -> list[str]:
  return [chr(ord("A") + i) for i in range(count)]
