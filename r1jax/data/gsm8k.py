"""Grade-school mathematics (GSM8K, arXiv:2110.14168), or files in its form."""

from collections.abc import Sequence
from pathlib import Path

from r1jax.data import jsonl
from r1jax.data.split import in_test
from r1jax.types import Example

# Which problems of the file; the halves serve where there is but one file.
SPLITS = {
  "all": lambda problem: True,
  "train": lambda problem: not in_test("math/gsm8k", problem),
  "test": lambda problem: in_test("math/gsm8k", problem),
}


def load(*, path: str | Path, split: str = "all") -> Sequence[Example]:
  """The problems of a file, in its order; `id` is the file's name and the line.

  A row holds `problem` (or `question`) and `answer`: the answer alone, or a
  solution that ends in "#### " and the answer, as OpenAI wrote them.

  Args:
    path: a JSON-lines file.
    split: "all" of the file; or "train" or "test", nine tenths and the rest of
      it, by a hash of the problem.

  Raises FileNotFoundError or ValueError, naming the file and the line.
  """
  if not str(path):
    raise ValueError(
      "dataset.path is not set; give GSM8K's JSON-lines file, "
      "--config.dataset.path=FILE"
    )
  if split not in SPLITS:
    raise ValueError(f"split must be one of {[*SPLITS]}, got {split!r}")
  examples = []
  for number, row in jsonl.read(path):
    where = f"{path}:{number}"
    problem = jsonl.text(row, "problem", "question", where=where).strip()
    _, _, answer = jsonl.text(row, "answer", where=where).rpartition("####")
    if not answer.strip():
      raise ValueError(f"{where}: nothing follows #### in 'answer'")
    examples.append(
      Example(
        prompt=problem,
        answer=answer.strip().replace(",", ""),
        domain="math/gsm8k",
        id=f"{Path(path).name}:{number}",
      )
    )
  if not examples:
    raise ValueError(f"{path}: no problems in it")
  chosen = [example for example in examples if SPLITS[split](example.prompt)]
  if not chosen:
    raise ValueError(
      f"{path}: of its {len(examples)} problems none is for {split!r}; give a "
      "longer file"
    )
  return chosen
