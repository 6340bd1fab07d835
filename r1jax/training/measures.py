"""What the completions of test problems measure: pass@1, cons@k and so on."""

import collections
import math
from collections.abc import Mapping, Sequence

import numpy as np

from r1jax.data import worked
from r1jax.rewards import accuracy
from r1jax.rollouts import grading
from r1jax.types import Completion, Example, Rollout, Tokenizer

MIN_STYLE_SHARE = 0.05  # Styles with fewer of the samples are not rated.


def completions(
  rollout: Rollout,
  examples: Sequence[Example],
  tokenizer: Tokenizer,
  max_tokens: int,
  prefill: str = "",
) -> tuple[list[Example], list[Completion]]:
  """The example of each completion, and the completions, in order of groups."""
  groups = [
    grading.completions(rollout, p, tokenizer, max_tokens, prefill)
    for p in range(len(examples))
  ]
  members = range(rollout.lengths.shape[1])
  return (
    [example for example in examples for _ in members],
    [completion for group in groups for completion in group],
  )


def measure(
  examples: Sequence[Example],
  completions: Sequence[Sequence[Completion]],
  parts: Mapping[str, np.ndarray],
) -> dict[str, float]:
  """Metrics of k completions of each of P problems.

  Args:
    examples: [P], the problems.
    completions: [P][k], their completions.
    parts: [P, k] rewards by name. NaN where grading failed counts as 0 in the
      accuracy, and not at all in others.

  Returns:
    The mean length in tokens, the share of completions that are truncated, and
    the mean of every part, with its standard error over problems (NaN for one
    problem). The part "accuracy" (1 or 0) is reported as `accuracy_metrics`;
    a set of requests without right answers has none.
  """
  flat = [c for group in completions for c in group]
  measured = {}
  if "accuracy" in parts:
    measured |= accuracy_metrics(examples, completions, parts["accuracy"])
  measured |= {
    "mean_length": np.mean([c.num_tokens for c in flat]),
    "truncated": np.mean([c.finish == "length" for c in flat]),
  }
  for name in sorted(parts.keys() - {"accuracy"}):
    mean, error = clustered_mean(parts[name])
    measured |= {name: mean, f"{name}_stderr": error}
  return measured


def accuracy_metrics(
  examples: Sequence[Example],
  completions: Sequence[Sequence[Completion]],
  correct: np.ndarray,
) -> dict[str, float]:
  """What k answers to each of P problems say of a model.

  Args:
    examples: [P], the problems.
    completions: [P][k], their completions.
    correct: [P, k], 1 or 0. NaN counts as 0.

  Returns:
    pass@1, the mean over all completions, and its standard error over problems;
    pass@k, the share of problems solved at least once; cons@k, the share of
    problems whose most frequent answer is correct; the share of completions
    without an answer; the share of bare guesses; and pass@1 of the best style
    of working among styles with at least 5% of the completions.
  """
  correct = np.nan_to_num(correct)
  samples = correct.shape[1]
  answers = [[accuracy.extract(c) for c in group] for group in completions]
  styles = np.array(
    [worked.style(thought(c.text)) for group in completions for c in group]
  )
  by_style = {
    name: correct.reshape(-1)[styles == name].mean()
    for name in sorted(set(styles))
    if np.mean(styles == name) >= MIN_STYLE_SHARE
  }
  pass_at_1, error = clustered_mean(correct)
  return {
    "pass@1": pass_at_1,
    "pass@1_stderr": error,
    f"pass@{samples}": correct.any(axis=1).mean(),
    f"cons@{samples}": np.mean(
      [consensus(*row) for row in zip(examples, answers, correct, strict=True)]
    ),
    "unparsed": np.mean([a is None for group in answers for a in group]),
    "guess_share": np.mean(styles == "guess"),
    "best_style_pass@1": max(by_style.values(), default=math.nan),
  }


def clustered_mean(values: np.ndarray) -> tuple[float, float]:
  """The mean of values [P, k], and its standard error over the P problems.

  NaN is left out. The error is NaN for fewer than two problems with a value.

  Examples:
    >>> clustered_mean(np.array([[1.0, 0.0], [1.0, np.nan]]))
    (0.75, 0.25)
  """
  counted = ~np.isnan(values)
  some = counted.any(axis=1)
  if not some.any():
    return math.nan, math.nan
  means = np.nansum(values[some], axis=1) / counted[some].sum(axis=1)
  error = math.nan
  if len(means) > 1:
    error = float(means.std(ddof=1) / math.sqrt(len(means)))
  return float(means.mean()), error


def consensus(
  example: Example,
  answers: Sequence[str | None],
  correct: Sequence[float] | np.ndarray,
) -> float:
  """1 if the most frequent of the answers is correct, else 0 (cons@k).

  Equivalent answers are counted together, None does not vote, and ties go to
  the answer that came first.
  """
  votes = collections.Counter()
  value_of = {}
  for answer, value in zip(answers, correct, strict=True):
    if answer is not None:
      key = accuracy.canonical(example, answer)
      votes[key] += 1
      value_of[key] = max(value_of.get(key, 0.0), float(value))
  if not votes:
    return 0.0
  return value_of[votes.most_common(1)[0][0]]


def thought(text: str) -> str:
  """The text between <think> and </think>; "" if there is none."""
  return text.partition("<think>")[2].partition("</think>")[0]


def pass_at_k(samples: int, correct: int, k: int) -> float:
  """The unbiased estimate of pass@k from n samples of which c are correct.

      pass@k = 1 - C(n - c, k) / C(n, k)      (arXiv:2107.03374, eq. 1)

  Examples:
    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 1, 4)
    (0.25, 0.5, 1.0)

  Raises ValueError unless 1 <= k <= n.
  """
  if not 1 <= k <= samples:
    raise ValueError(f"pass@{k} needs 1 <= k <= {samples} samples")
  return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def summarise(rows: Sequence[dict], **totals) -> dict:
  """The content of summary.json, from the rows of metrics.jsonl.

  It compares the evaluation at step 0 (the base model) with that at the last
  evaluated step (R1-Zero). Sets whose name ends in "+1" hold problems that are
  larger than any trained on, and are listed separately, under "larger".

  Raises ValueError if step 0 was not evaluated.
  """
  evaluations = {
    row["step"]: row
    for row in rows
    if any(key.startswith("eval/") for key in row)
  }
  if 0 not in evaluations:
    raise ValueError(
      "metrics.jsonl has no evaluation of step 0, the base model; delete "
      "checkpoints/scores.json and run again to evaluate it"
    )
  base, zero = evaluations[0], evaluations[max(evaluations)]
  names = [key.split("/")[1] for key in zero if key.endswith("/pass@1")]
  tasks, larger = {}, {}
  for name in names:
    of = lambda row, key, name=name: row.get(f"eval/{name}/{key}")
    of_k = lambda row, kind, name=name: next(
      value
      for key, value in row.items()
      if key.startswith(f"eval/{name}/{kind}@")
      and key != f"eval/{name}/pass@1"
      and not key.endswith("stderr")
    )
    (larger if name.endswith("+1") else tasks)[name] = {
      "base_pass_at_1": of(base, "pass@1"),
      "zero_pass_at_1": of(zero, "pass@1"),
      "base_pass_at_1_stderr": of(base, "pass@1_stderr"),
      "zero_pass_at_1_stderr": of(zero, "pass@1_stderr"),
      "base_cons_at_16": of_k(base, "cons"),
      "zero_cons_at_16": of_k(zero, "cons"),
      "base_pass_at_16": of_k(base, "pass"),
      "base_guess_share": of(base, "guess_share"),
      "base_best_style_pass_at_1": of(base, "best_style_pass@1"),
      "base_mean_length": of(base, "mean_length"),
      "zero_mean_length": of(zero, "mean_length"),
    }
  means = {
    key: float(np.mean([task[key] for task in tasks.values()]))
    for key in next(iter(tasks.values()))
    if not key.endswith("stderr")
  }
  return {"tasks": tasks, "larger": larger} | means | totals
