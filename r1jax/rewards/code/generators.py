"""Tests for a programming problem, from programs that generate inputs.

DeepSeek-R1 (arXiv:2501.12948v2, appendix B.3.2): a model writes generators of
inputs; what they print is filtered by submissions to the problem. An input is
valid if all right submissions print the same for it. It is of use if a wrong
submission fails on it. Everything runs in the sandbox of the `code` reward.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

from r1jax.rewards.code.programs import same_output
from r1jax.rewards.code.sandbox import Ended, Limits, run_cases

MAX_BYTES = 2**20  # Of an input, and of an output.


class Tests(NamedTuple):
  """The tests of a problem, and how they came about."""

  cases: list[
    dict[str, str]
  ]  # {"input", "output"}, as the `code` reward reads.
  inputs: int  # Different inputs that the generators have printed.
  valid: int  # Of these, those on which all right submissions agree.
  caught: int  # Wrong submissions that fail on at least one of the cases.


def make_tests(
  language: str,
  generators: Sequence[str],
  right: Sequence[str],
  wrong: Sequence[str],
  *,
  seeds: int,
  max_tests: int,
  sandbox: str,
  limits: Limits,
) -> Tests:
  """The tests that tell right submissions from wrong ones.

  Cases are chosen one by one, each time the one on which most of the wrong
  submissions fail that pass all cases so far; then those on which any fails.

  Args:
    language: of the submissions; see `sandbox.LANGUAGES`.
    generators: Python programs that read a seed and print an input.
    right: submissions that solve the problem, at least one.
    wrong: submissions that do not, at least one.
    seeds: inputs that are asked of each generator: with 0, 1, ...
    max_tests: the most cases.
    sandbox: its kind.
    limits: of each run; a submission that exceeds them has failed.

  Raises ValueError without right or wrong submissions.
  """
  if not right or not wrong:
    raise ValueError(
      "generated tests need right and wrong submissions, got "
      f"{len(right)} and {len(wrong)}"
    )
  numbers = [f"{seed}\n" for seed in range(seeds)]
  printed = [
    output
    for generator in generators
    for output in outputs("python", generator, numbers, sandbox, limits)
  ]
  inputs = [*dict.fromkeys(text for text in map(_text, printed) if text)]
  first, *others = (
    outputs(language, source, inputs, sandbox, limits) for source in right
  )
  valid = {
    i: text
    for i, expected in enumerate(first)
    if (text := _text(expected)) is not None
    and all(_same(each[i], expected) for each in others)
  }
  asked = [inputs[i] for i in valid]
  failed = [
    {
      i
      for i, output in zip(
        valid, outputs(language, source, asked, sandbox, limits)
      )
      if not _same(output, first[i])
    }
    for source in wrong
  ]
  chosen = choose(failed, max_tests)
  return Tests(
    cases=[dict(input=inputs[i], output=valid[i]) for i in chosen],
    inputs=len(inputs),
    valid=len(valid),
    caught=sum(bool(fails & {*chosen}) for fails in failed),
  )


def choose(failed: Sequence[set[int]], most: int) -> list[int]:
  """Up to `most` tests on which some submission fails; see `make_tests`.

  Args:
    failed: the tests on which each submission fails.
    most: the bound.

  Examples:
    >>> choose([{0, 1}, {1}, {2}, set()], 2), choose([{0, 1}, {1}], 9)
    ([1, 2], [0, 1])
  """
  chosen, left = [], [fails for fails in failed if fails]
  tests = sorted(set().union(*failed))
  while left and len(chosen) < most:
    best = max(tests, key=lambda i: (sum(i in fails for fails in left), -i))
    chosen.append(best)
    left = [fails for fails in left if best not in fails]
  rest = [i for i in tests if i not in chosen]
  return sorted([*chosen, *rest[: most - len(chosen)]])


def outputs(
  language: str,
  source: str,
  inputs: Sequence[str],
  sandbox: str,
  limits: Limits,
) -> list[bytes | None]:
  """What a program prints for each input; None where it fails.

  It has the whole time limit for each input.
  """
  results: list[bytes | None] = []
  while len(results) < len(inputs):
    begin = len(results)
    runs = run_cases(language, source, inputs[begin:], sandbox, limits)
    with contextlib.closing(runs):
      try:
        if next(runs).status:
          return [None] * len(inputs)  # It cannot be built.
        for run in runs:
          results.append(None if run.status else run.output)
      except Ended:
        # Those before have had their share of the time; alone, it has all.
        if len(results) == begin:
          results.append(None)
  return results


def _text(output: bytes | None) -> str | None:
  """An output as the text of a test; None for one that cannot be one."""
  if output is None or len(output) > MAX_BYTES:
    return None
  try:
    return output.decode()
  except UnicodeDecodeError:
    return None


def _same(output: bytes | None, expected: bytes) -> bool:
  return output is not None and same_output(output, expected)
