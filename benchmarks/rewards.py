"""The speed of grading answers, compared with a plain loop over math-verify.

    python -m benchmarks.rewards

The input is 8,192 completions of mathematics from `DATA`, half of them from
MATH and half from GSM8K: sampled completions as far as there are any, then the
solutions of the datasets. Every fourth of MATH is paired with the answer of
another problem. One side is a loop over math-verify, as in most frameworks; the
other is the grader pool. Both grade the same answers, and their verdicts are
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
TIMEOUT = 5.0  # Seconds.
HOSTILE_TIMEOUT = 1.0  # Seconds.
PROGRAMS = 100
# Hostile answers. Some pass the guards, and only the time limit stops them.
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
  """Seconds of both sides, ratios, and other shares, by half of the input."""
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
  """The pool's verdicts and time on one half, compared with the loop's."""
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
    # Answers equal to the reference that math-verify rejects, such as a time of
    # day with different spaces, which it parses as a formula.
    "differing_on_the_same_text": sum(each["same_text"] for each in differing),
    "differing": differing[:20],
  }


def loop(example: Example, completion: Completion) -> float:
  """The verdict of math-verify on the last box and the reference answer."""
  import math_verify

  config = math_verify.LatexExtractionConfig(
    boxed_match_priority=0, try_extract_without_anchor=False
  )
  gold, answer = (
    math_verify.parse(
      rf"\boxed{{{text}}}",
      [config],
      extraction_mode="first_match",
      parsing_timeout=None,
    )
    for text in (example.answer, accuracy.extract(completion))
  )
  return float(math_verify.verify(gold, answer, timeout_seconds=None))


def _same_text(example: Example, completion: Completion) -> bool:
  """Whether an answer equals the reference after normalisation."""
  answer = accuracy.extract(completion) or ""
  return answers.normalise(answer) == answers.normalise(example.answer)


def _loop_over(rows: Sequence[Row]) -> list[float]:
  return [loop(*row) for row in rows]


def decided(rows: Sequence[Row]) -> float:
  """The share of rows that are graded without a call of math-verify."""
  calls = 0
  equivalent = verifier.equivalent.__wrapped__

  def count(*args):
    nonlocal calls
    calls += 1
    return equivalent(*args)

  original, verifier.equivalent = verifier.equivalent, count
  try:
    called = sum(_needs_call(row, lambda: calls) for row in rows)
    return 1.0 - called / len(rows)
  finally:
    verifier.equivalent = original


def without_fast_path(
  pool: GraderPool,
  rows: Sequence[Row],
  looped: Sequence,
  loop_seconds: float,
) -> dict:
  """The pool with math-verify called for every answer."""
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
  """The seconds that 1% of hostile answers add, at a limit of one second."""
  with GraderPool(num_workers=os.cpu_count(), timeout=HOSTILE_TIMEOUT) as pool:
    pool.warm()
    calls = [Call(accuracy.reward, row) for row in rows]
    _, plain = _timed(lambda: pool.map(calls))
    for i in range(0, len(rows), 100):
      text = HOSTILE[i // 100 % len(HOSTILE)]
      completion = Completion(rf"<think></think>\boxed{{{text}}}")
      calls[i] = Call(accuracy.reward, (rows[i][0], completion))
    grading = pool.submit(calls)
    _, mixed = _timed(grading.values)
  return {
    "rows": len(range(0, len(rows), 100)),
    "added_seconds": round(mixed - plain, 2),
    **grading.counts,
  }


def programs() -> dict:
  """The rate of running MBPP's reference solutions in the sandbox."""
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
  """Completions with a box: sampled ones, and the solutions of MATH.

  Every fourth is paired with the answer of another problem, so it is wrong.
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
  """Sampled completions of GSM8K, and its solutions."""
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


def _needs_call(row: Row, calls: Callable[[], int]) -> bool:
  before = calls()
  accuracy.reward(*row)
  return calls() > before


def _pair(row: Row) -> tuple[str, str | None]:
  return row[0].answer, accuracy.extract(row[1])


def _timed(work: Callable):
  start = time.perf_counter()
  result = work()
  return result, time.perf_counter() - start


if __name__ == "__main__":
  command.run(rewards)
