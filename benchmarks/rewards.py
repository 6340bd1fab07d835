"""How fast answers are graded, and a plain loop on the same machine.

    python -m benchmarks.rewards

8,192 completions of mathematics, half of them of MATH's kind and half of
GSM8K's, come from `DATA`: sampled ones, as far as there are, then the data
sets' own solutions, every fourth of MATH's with another problem's gold answer.
One side is a loop over math-verify, as most frameworks grade; the other is the
grader pool. Both grade the same answers in the same run, and the verdicts are
compared.
"""

import functools
import importlib.util
import operator
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import command
from r1jax.data import jsonl
from r1jax.rewards import accuracy
from r1jax.rewards.maths import answers, latex, verifier
from r1jax.rewards.pool.pool import Call, GraderPool
from r1jax.types import Completion, Example

DATA = Path(os.environ.get("R1JAX_DATA", "../shared/data"))
SIZE = 4096  # Completions of each half.
TIMEOUT = 5.0
HOSTILE_TIMEOUT = 1.0
PROGRAMS = 100
# Some pass the guards, and only the limit of time ends them.
HOSTILE = (
  r"\sum_{k=1}^{99999} \frac{1}{k^{9999}+1}",
  r"\int_0^1 \sin(x^x)^{x^{99}} \exp(\cos(x^{77})) dx",
  "9^{9^{9^{9}}}",
  "(" * 300 + "1" + ")" * 300,
  r"\frac{1}{" * 14 + "x" + "}" * 14,
  r"\prod_{n=1}^{9999} (x+n)^{n}",
)

Row = tuple[Example, Completion]


def rewards() -> dict:
  """Seconds and ratios, and what share was decided without math-verify."""
  halves = {"math": of_math(), "gsm8k": of_gsm8k()}
  report = {
    "machine": {"cores": os.cpu_count()},
    "completions": {
      name: {
        "rows": len(rows),
        "distinct_pairs": len({_pair(row) for row in rows}),
      }
      for name, rows in halves.items()
    },
  }
  start = time.perf_counter()
  with GraderPool(num_workers=os.cpu_count(), timeout=TIMEOUT) as pool:
    pool.warm()
    report["pool_start_seconds"] = round(time.perf_counter() - start, 2)
    _prepare_loop()
    totals, looped = {"loop": 0.0, "pool": 0.0}, {}
    for name, rows in halves.items():
      print(f"grading the {name} half ...", file=sys.stderr)
      looped[name], seconds = _timed(functools.partial(_loop_over, rows))
      report[name] = half = compare(pool, rows, looped[name], seconds)
      for side in totals:
        totals[side] += half[f"{side}_seconds"]
    report["all"] = {"ratio": round(totals["loop"] / totals["pool"], 2)}
    report["fast_path_off"] = without_fast_path(
      pool, halves["math"], looped["math"], report["math"]["loop_seconds"]
    )
  report["hostile"] = with_hostile(halves["math"] + halves["gsm8k"])
  if importlib.util.find_spec("r1jax.rewards.code.programs"):
    report["programs"] = programs()
  return report


def compare(
  pool: GraderPool, rows: Sequence[Row], looped: Sequence, seconds: float
) -> dict:
  """One half by the pool, beside what the loop said and took."""
  calls = [Call(accuracy.reward, row) for row in rows]
  pooled, pool_seconds = _timed(lambda: pool.map(calls))
  differing = [
    {
      "gold": row[0].answer,
      "answer": accuracy.extract(row[1]),
      "loop": one,
      "pool": other,
      "same_text": _same_text(*row),
    }
    for row, one, other in zip(rows, looped, pooled, strict=True)
    if one != other
  ]
  return {
    "loop_seconds": round(seconds, 2),
    "pool_seconds": round(pool_seconds, 2),
    "ratio": round(seconds / pool_seconds, 2),
    "right": sum(value == 1.0 for value in pooled),
    "decided_without_math_verify": round(decided(rows), 4),
    "same_verdicts": len(rows) - len(differing),
    # The gold's own text, which math-verify calls wrong: a time of day with
    # another space, which it reads as a formula.
    "differing_on_the_same_text": sum(each["same_text"] for each in differing),
    "differing": differing[:20],
  }


def loop(example: Example, completion: Completion) -> float:
  """math-verify, asked about the last box and the gold answer, one by one."""
  import math_verify

  config = math_verify.LatexExtractionConfig(
    boxed_match_priority=0, try_extract_without_anchor=False
  )
  gold, given = (
    math_verify.parse(
      rf"\boxed{{{text}}}",
      [config],
      extraction_mode="first_match",
      parsing_timeout=None,
    )
    for text in (example.answer, accuracy.extract(completion))
  )
  return float(math_verify.verify(gold, given, timeout_seconds=None))


def _same_text(example: Example, completion: Completion) -> bool:
  """Whether an answer is the gold itself, but for spaces and the like."""
  answer = accuracy.extract(completion) or ""
  return answers.normalise(answer) == answers.normalise(example.answer)


def _loop_over(rows: Sequence[Row]) -> list[float]:
  return [loop(*row) for row in rows]


def decided(rows: Sequence[Row]) -> float:
  """The share of rows for which math-verify is never asked."""
  asked = 0
  ask = verifier.equivalent.__wrapped__

  def count(*args):
    nonlocal asked
    asked += 1
    return ask(*args)

  original, verifier.equivalent = verifier.equivalent, count
  try:
    return 1.0 - sum(_asks(row, lambda: asked) for row in rows) / len(rows)
  finally:
    verifier.equivalent = original


def without_fast_path(
  pool: GraderPool,
  rows: Sequence[Row],
  looped: Sequence,
  loop_seconds: float,
) -> dict:
  """The pool alone: math-verify decides about every answer."""
  texts = [(e.answer, accuracy.extract(c) or "") for e, c in rows]
  calls = [
    Call(verifier.equivalent, (latex.clean(gold), latex.clean(answer)))
    for gold, answer in texts
  ]
  values, seconds = _timed(lambda: pool.map(calls))
  same = sum(map(operator.eq, values, looped))
  return {
    "pool_seconds": round(seconds, 2),
    "ratio": round(loop_seconds / seconds, 2),
    "same_verdicts": same,
  }


def with_hostile(rows: Sequence[Row]) -> dict:
  """Seconds that 1% of hostile answers add, at a limit of one second."""
  with GraderPool(num_workers=os.cpu_count(), timeout=HOSTILE_TIMEOUT) as pool:
    pool.warm()
    calls = [Call(accuracy.reward, row) for row in rows]
    _, plain = _timed(lambda: pool.map(calls))
    for i in range(0, len(rows), 100):
      text = HOSTILE[i // 100 % len(HOSTILE)]
      written = Completion(rf"<think></think>\boxed{{{text}}}")
      calls[i] = Call(accuracy.reward, (rows[i][0], written))
    grading = pool.submit(calls)
    _, mixed = _timed(grading.values)
  return {
    "rows": len(range(0, len(rows), 100)),
    "added_seconds": round(mixed - plain, 2),
    **grading.counts,
  }


def programs() -> dict:
  """MBPP's reference solutions, in the sandbox."""
  from r1jax.rewards.code import programs

  rows = [row for _, row in jsonl.read(DATA / "eval/code_mbpp_test.jsonl")]
  calls = []
  for row in rows[:PROGRAMS]:
    example = Example(row["prompt"], "", "code/mbpp", row["task_id"], row)
    text = f"<think></think>\n```python\n{row['reference_solution']}\n```"
    calls.append(Call(programs.reward, (example, Completion(text))))
  with GraderPool(num_workers=os.cpu_count(), timeout=30.0) as pool:
    pool.warm()
    values, seconds = _timed(lambda: pool.map(calls))
  return {
    "rows": len(calls),
    "passed": sum(value == 1.0 for value in values),
    "per_second_and_core": round(len(calls) / seconds / os.cpu_count(), 1),
  }


def of_math() -> list[Row]:
  """Completions with a box: sampled ones, and MATH's own solutions.

  Every fourth is held against another problem's answer, so that it is wrong.
  """
  sampled = [
    (Example(row["problem"], row["gold"], "math"), row["completion"])
    for _, row in jsonl.read(DATA / "train/rm_math_outcomes_qwen.jsonl")
  ]
  path = DATA / "train/math_math_test4500_with_solutions.jsonl"
  written = [
    (Example(row["problem"], row["answer"], "math"), row["solution"])
    for _, row in jsonl.read(path)
  ]
  rows = (sampled + written)[:SIZE]
  golds = [example.answer for example, _ in rows]
  return [
    (
      example._replace(answer=golds[i - 7]) if i % 4 == 3 else example,
      Completion(f"<think></think>{text}"),
    )
    for i, (example, text) in enumerate(rows)
  ]


def of_gsm8k() -> list[Row]:
  """Sampled solutions with their verdicts, and GSM8K's own."""
  sampled = []
  for _, row in jsonl.read(DATA / "eval/completions_gsm8k_dev.jsonl"):
    thought, _, answer = row["completion"].strip().rpartition("\nA: ")
    example = Example(row["problem"], row["gold"], "math/gsm8k")
    sampled.append((example, thought, answer))
  own = [
    (
      Example(row["problem"], row["answer"], "math/gsm8k"),
      row["solution"],
      row["answer"],
    )
    for _, row in jsonl.read(DATA / "train/math_gsm8k_train.jsonl")
  ]
  return [
    (example, Completion(rf"<think></think>{thought} So \boxed{{{answer}}}."))
    for example, thought, answer in (sampled + own)[:SIZE]
  ]


def _prepare_loop() -> None:
  import logging

  import math_verify  # noqa: F401  Imports are not measured.

  logging.getLogger("math_verify").setLevel(logging.ERROR)


def _asks(row: Row, asked: Callable[[], int]) -> bool:
  before = asked()
  accuracy.reward(*row)
  return asked() > before


def _pair(row: Row) -> tuple[str, str | None]:
  return row[0].answer, accuracy.extract(row[1])


def _timed(work: Callable):
  start = time.perf_counter()
  result = work()
  return result, time.perf_counter() - start


if __name__ == "__main__":
  command.run(rewards)
