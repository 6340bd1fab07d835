r"""Problems of any kind from a file, for the grader that a config names.

    dataset=dict(name="problems", path="math500.jsonl")
    dataset=dict(name="problems", path="mbpp.parquet", domain="code")
    dataset=dict(
      name="problems", path="mine.json.gz", domain="code/mine",
      fields=dict(prompt="task.text", tests="task.checks"),
    )

The domain picks the grader (see `r1jax.rewards.accuracy`), and what that reads
beside the answer is in the metadata: all fields of the row under their own
names, and under those of `FIELDS`.
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

# Where the published sets keep it: the first field that is there and not null.
# A dot leads into an object.
FIELDS: dict[str, tuple[str, ...]] = {
  "prompt": ("problem", "question", "prompt", "text"),
  "answer": (
    *("answer", "final_answer", "expected_answer", "ground_truth"),
    *("reward_model.ground_truth", "solution"),
  ),
  "tests": ("tests", "test_list", "test", "input_output"),
  "choices": ("choices", "options"),
}
# Graded by these, and not by an answer.
UNANSWERED = {
  "code": "tests",
  "countdown": "target",
  "instructions": "instruction_id_list",
}
SPLITS = ("all", "train", "test")
SHOWN = 10  # Rows whose faults are told one by one.

# One number with its thousands apart, and no other digit or comma around it.
THOUSANDS = re.compile(
  r"([^\d,.;()\[\]{}<>|_^]*)([1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?)([^\d,]*)"
)
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
LABEL = re.compile(r"\(?([A-Z])[).:]\s*")  # Of a choice.
CURRENCY = re.compile(r"\\?\$|[€£¥]")


def load(
  *,
  path: str | Path,
  domain: str = "math",
  fields: Mapping[str, str | Sequence[str]] = {},
  split: str = "all",
  max_skipped: float = 0.1,
) -> Sequence[Example]:
  r"""The problems of a file, in its order; `id` is the file's name and line.

  An answer is text, a number, or a list of them. Of a text that marks its
  answer it is what follows the last "####", or the last \boxed. Commas between
  the thousands of a number are left out, and no others. A problem of choices
  has these below it, with their letters.

  A row that cannot be used is skipped, and the log says why.

  Args:
    path: JSON lines, a JSON array (.json) or Parquet (.parquet), or one of them
      through gzip (.gz).
    domain: of all problems; "math", "code", "choice", "logic", "instructions",
      or any of these and "/" and a name for the metrics.
    fields: where a row keeps "prompt", "answer", "domain" or an entry of the
      metadata, in place of what `FIELDS` says: the name of a field, or several
      of which the first that is there counts.
    split: "all" of the file; or "train" or "test", nine tenths and the rest of
      it, by a hash of the problem.
    max_skipped: share of the rows that may be skipped.

  Raises FileNotFoundError, or ValueError that names the file and the line.
  """
  if not str(path):
    raise ValueError(
      "dataset.path is not set; give a file of problems, "
      "--config.dataset.path=FILE"
    )
  if split not in SPLITS:
    raise ValueError(f"split must be one of {[*SPLITS]}, got {split!r}")
  names = FIELDS | {
    name: (found,) if isinstance(found, str) else tuple(found)
    for name, found in fields.items()
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
  told = f"{len(faults):,} of {count:,} rows of {path} cannot be used"
  if not examples or len(faults) > max_skipped * count:
    raise ValueError(f"{faults[0]} ({told}; max_skipped is {max_skipped:g})")
  for fault in faults[:SHOWN]:
    logger.warning("skipped %s", fault)
  if faults:
    logger.warning("skipped: %s", told)
  if split == "all":
    return examples
  chosen = [
    example
    for example in examples
    if in_test(example.domain, example.prompt) == (split == "test")
  ]
  if not chosen:
    raise ValueError(
      f"{path}: of its {len(examples)} problems none is for {split!r}; give a "
      "longer file"
    )
  return chosen


def _example(
  row: Mapping[str, Any],
  names: Mapping[str, Sequence[str]],
  domain: str,
  id: str,
) -> Example:
  """A row as an example; raises ValueError if it cannot be used."""
  found = {name: _find(row, paths) for name, paths in names.items()}
  own = {name: value for name, (_, value) in found.items() if value is not None}
  if "domain" in own:
    domain = _text(*found["domain"])
  family = domain.partition("/")[0]
  reads = UNANSWERED.get(family, "answer")
  metadata = dict(row)
  for name in own.keys() - {"prompt", "answer", "domain"}:
    metadata[name] = own[name]
  if family == "code" and "tests" in own:
    metadata["tests"] = _tests(own["tests"])
  if family == "choice" and "choices" in own:
    metadata["choices"] = _choices(own["choices"])
  if own.get(reads, metadata.get(reads)) is None:
    raise ValueError(
      f"{found.get(reads, [reads])[0]!r} is null or missing; a problem of "
      f"{family!r} is graded by it"
    )
  prompt = _prompt(*found["prompt"])
  metadata.pop(found["prompt"][0], None)
  if family == "choice":
    prompt = _with_choices(prompt, metadata.get("choices") or ())
  answer = ""
  if reads == "answer":
    answer = _answer(*found["answer"], family, metadata.get("choices") or ())
    metadata.pop(found["answer"][0], None)
  return Example(prompt, answer, domain, id, metadata)


def _find(row: Mapping[str, Any], paths: Sequence[str]) -> tuple[str, Any]:
  """The first path that leads to a value, and this; or a path's name, None."""
  for path in paths:
    value: Any = row
    if path in row:
      value = row[path]
    else:
      for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is not None:
      return path, value
  there = [path for path in paths if path in row]
  return (there or [" or ".join(paths)])[0], None


def _text(name: str, value: Any) -> str:
  """The value as text, if it is text or a number."""
  is_number = isinstance(value, int | float | Decimal)
  if is_number and not isinstance(value, bool) and math.isfinite(value):
    return jsonl.number_text(value)
  if not isinstance(value, str) or not value.strip():
    raise ValueError(f"{name!r} must be text, got {value!r:.80}")
  return value.strip()


def _prompt(name: str, value: Any) -> str:
  """A question; or of a conversation, what the user alone says in it."""
  if not isinstance(value, list):
    return _text(name, value)
  messages = [part if isinstance(part, Mapping) else {} for part in value]
  if [message.get("role") for message in messages] != ["user"]:
    raise ValueError(
      f"{name!r} must be text or one message of a user, got {value!r:.80}"
    )
  return _text(name, messages[0].get("content"))


def _with_choices(prompt: str, choices: Sequence[str]) -> str:
  """The question with the choices below it, unless it has their letters."""
  letters = _letters(len(choices))
  if all(re.search(rf"\b{letter}[).:．、]", prompt) for letter in letters):
    return prompt
  lines = (f"{letter}. {text}" for letter, text in zip(letters, choices))
  return "\n".join([prompt, *lines])


def _answer(name: str, value: Any, family: str, choices: Sequence[str]) -> str:
  """The reference answer, as the family's grader takes it."""
  if family == "logic":
    plain = isinstance(value, str)
    return _text(name, value) if plain else json.dumps(value)
  if family == "choice" and type(value) is int and choices:
    if not 0 <= value < len(choices):
      raise ValueError(f"{name!r} is {value}, of {len(choices)} choices")
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
  """The strings of a list that is written as JSON; None if it is none."""
  try:
    parts = json.loads(text)
  except ValueError:
    return None
  return parts if all(isinstance(part, str) for part in parts) else None


def _plain_number(answer: str) -> str:
  """The answer; if it is one number, without commas between thousands."""
  match = THOUSANDS.fullmatch(answer)
  if not match:
    return answer
  before, number, after = match.groups()
  if "$" not in after:  # Not a formula between dollar signs.
    before = CURRENCY.sub("", before)
  return before + number.replace(",", "") + after


def _last_boxed(text: str) -> str | None:
  r"""What the last \boxed{...} holds; None without one that is closed."""
  _, boxed, rest = text.rpartition(r"\boxed{")
  depth = 1
  for match in BRACE.finditer(rest) if boxed else ():
    depth += {"{": 1, "}": -1}.get(match[0], 0)
    if not depth:
      return rest[: match.start()]
  return None


def _tests(value: Any) -> Any:
  """Tests as the code reward takes them: Python text, or a list of cases."""
  if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
    try:
      value = json.loads(value)
    except ValueError:
      return value
  if isinstance(value, Mapping) and {"inputs", "outputs"} <= value.keys():
    cases = zip(value["inputs"], value["outputs"], strict=True)
    return [dict(input=given, output=wanted) for given, wanted in cases]
  if isinstance(value, list) and all(isinstance(test, str) for test in value):
    return "\n".join(value)
  return value


def _choices(value: Any) -> list[str]:
  """The texts of the choices, without letters of their own."""
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
