"""What a GRPO run measures, writes and shows; it decides nothing."""

import collections
import contextlib
import json
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from r1jax import data, metrics, rewards
from r1jax.training import evaluate, inspection
from r1jax.training.experience import spread
from r1jax.training.exploration import Sampled
from r1jax.types import FINISH_STOP, Completion, Example, Packed, Rollout

# arXiv:2501.12948, appendix C.2, and what the demo's base says instead.
REFLECTION = (
  "wait",
  "mistake",
  "however",
  "but",
  "retry",
  "error",
  "verify",
  "wrong",
  "evaluate",
  "check",
)
# What is told when it is larger than this, and what it means.
ALERTS = (
  ("sampling/prob_diff_mean", 0.01, "sampler and trainer do not agree"),
  ("completions/clipped_ratio", 0.5, "most completions end at the token limit"),
  ("reward/frac_zero_std", 0.9, "hardly a group teaches anything"),
  ("reward/accuracy/none_frac", 0.02, "answers could not be graded"),
)


def evaluation(
  *,
  every: int,
  seed: int,
  problems: int,
  samples: int,
  problems_between: int,
  samples_between: int,
  test: Mapping,
  larger: Mapping | None = None,
) -> dict[str, list[evaluate.Problems]]:
  """The sets of problems to measure on, "whole" and "between".

  Args:
    every: steps between two measurements on the smaller sets.
    seed: of the samples.
    problems: of each task, at the start and at the end.
    samples: of each of those problems.
    problems_between: of each task, on the way.
    samples_between: of each of those.
    test: the dataset section of the test problems.
    larger: that of larger ones, measured at the start and the end, as often as
      on the way; their sets have "+1" in their name.
  """
  del every, seed
  sets = by_task(data.load(**test), problems)
  whole = [evaluate.Problems(n, e, samples) for n, e in sets.items()]
  between = [
    evaluate.Problems(n, e[:problems_between], samples_between)
    for n, e in sets.items()
  ]
  if larger is not None:
    beside = by_task(data.load(**larger), problems_between)
    whole += [
      evaluate.Problems(n + "+1", e, samples_between) for n, e in beside.items()
    ]
  return {"whole": whole, "between": between}


def by_task(dataset: Sequence[Example], count: int) -> dict[str, list[Example]]:
  """The first `count` examples of every task, in the dataset's order."""
  sets = collections.defaultdict(list)
  for example in dataset:
    name = example.domain.rpartition("/")[2]
    if len(sets[name]) < count:
      sets[name].append(example)
  return dict(sets)


class Observer:
  """Times the phases of a run, evaluates the policy, and writes the rows."""

  def __init__(self, config, writer, engine, words, pool, rounds):
    self._config, self._writer, self._engine = config, writer, engine
    self._words, self._pool, self._rounds = words, pool, rounds
    self._sets = None
    self._evaluated = {
      row["step"] for row in self._rows() if "perf/eval_time" in row
    }
    self._seconds = collections.Counter()
    self._tokens_seen = 0
    self._warm, self._warned = set(), set()
    self._round_began = time.monotonic()

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Times a block; the first of its name is shown as compiling."""
    began = time.monotonic()
    if name in self._warm or name == "grading":
      self._writer.console.phase(name)
      yield
    else:
      with self._writer.console.compiling(f"{name} step"):
        yield
      self._warm.add(name)
    self._seconds[name] += time.monotonic() - began

  def sampled(self, done: int, tokens: int) -> None:
    """Shows how far the sampling of a round is."""
    self._writer.console.phase(f"sampling, {done} done, {tokens:,} tokens")

  def evaluate_if_due(self, step: int, params) -> None:
    """Measures the policy at the start, every `evaluation.every`, and at the
    end, once each."""
    config = self._config
    last = step == config.num_steps
    whole = step == 0 or last
    if not (whole or step % config.evaluation.every == 0):
      return
    if step in self._evaluated:
      return
    if self._sets is None:
      self._sets = evaluation(**config.evaluation.to_dict())
      for problems in self._sets["whole"]:
        inspection.check_prompts(problems.examples, self._words, config)
    problems = self._sets["whole" if whole else "between"]
    console, began = self._writer.console, time.monotonic()
    total = sum(len(p.examples) * p.samples for p in problems)
    console.note(
      f"evaluating at step {step}: {total:,} completions of "
      f"{sum(len(p.examples) for p in problems)} problems"
    )
    numbers = evaluate.evaluate(
      self._engine,
      params,
      problems,
      self._words,
      self._pool,
      template=config.template,
      seed=config.evaluation.seed,
      progress=lambda done, tokens: console.phase(
        f"evaluating, {done} completions, {tokens:,} tokens"
      ),
    )
    numbers["perf/eval_time"] = time.monotonic() - began
    self._writer.write(step, **numbers)
    self._evaluated.add(step)
    for problem in problems:
      of = lambda key, name=problem.name: numbers[f"eval/{name}/{key}"]
      console.note(
        f"  {problem.name:20} pass@1 {of('pass@1'):.3f} "
        f"+- {of('pass@1_stderr'):.3f}  cons@{problem.samples} "
        f"{of(f'cons@{problem.samples}'):.3f}  "
        f"length {of('mean_length'):.1f}  truncated {of('truncated'):.3f}"
      )
    console.note(f"  in {numbers['perf/eval_time']:.1f} s")
    self._round_began = time.monotonic()

  def write(
    self,
    step: int,
    sampled: Sampled,
    scores: rewards.Scores,
    advantages: np.ndarray,
    updates: Sequence[Mapping],
    batches: Sequence[tuple[Packed, int]],
    *,
    reference_step: jax.Array,
  ) -> None:
    """Writes the row of a round, its completions, and shows progress."""
    config = self._config
    rollout, examples, written = sampled[:3]
    numbers = merge(updates)
    numbers |= of_experts(numbers.pop("router/load"))
    numbers |= of_rewards(scores, advantages, examples)
    numbers |= of_lengths(rollout)
    numbers |= of_words(written)
    numbers |= of_packing(batches)
    self._warn(numbers)
    seconds, self._seconds = self._seconds, collections.Counter()
    whole = time.monotonic() - self._round_began
    self._round_began = time.monotonic()
    tokens = int(rollout.lengths.sum())
    round = step // config.minibatches
    numbers |= {
      "round": round,
      "reference_step": int(reference_step),
      "gen/num_gen_batches": sampled.batches,
      "gen/discarded_samples": sampled.discarded,
      "data/tokens": tokens,
      "data/prompts_seen": round * config.prompts_per_round,
      "perf/gen_time": seconds["sampling"],
      "perf/reward_time": seconds["grading"],
      "perf/logprob_time": seconds["scoring"],
      "perf/train_time": seconds["learning"],
      "perf/step_time": whole,
      "perf/tokens_per_s": tokens / max(seconds["sampling"], 1e-9),
    }
    self._writer.write(step, **numbers)
    self._writer.completions(
      completion_rows(
        step, round, examples, written, scores, advantages, config.group_size
      )
    )
    self._writer.console.progress(
      round,
      self._rounds,
      reward=numbers["reward/mean"],
      accuracy=numbers.get("reward/accuracy/mean"),
      length=numbers["completions/mean_length"],
      kl=numbers.get("kl/ref"),
      tokens_per_second=numbers["perf/tokens_per_s"],
    )
    if round == 1 or round % 20 == 0:
      best = int(np.argmax(np.nan_to_num(scores.total, nan=-np.inf)))
      self._writer.console.show_completion(
        examples[best].prompt,
        written[best].text,
        {name: values[best] for name, values in scores.parts.items()},
        title=f"round {round}, {examples[best].domain}",
      )

  def _warn(self, numbers: Mapping) -> None:
    """Says, once each, what should not be as it is."""
    for name, limit, meaning in ALERTS:
      if numbers.get(name, 0) > limit and name not in self._warned:
        self._warned.add(name)
        self._writer.console.note(
          f"warning: {name} is {numbers[name]:.3g}, above {limit}: {meaning}"
        )

  def summarise(self, workdir: str, step: int) -> None:
    """Writes summary.json: what the run began with, and what it reached."""
    rows = self._rows()
    rounds = [row for row in rows if "round" in row]
    evaluating = sum(row.get("perf/eval_time", 0.0) for row in rows)
    sampled = sum(row["data/tokens"] for row in rounds)
    sampling = sum(row["perf/gen_time"] for row in rounds)
    summary = evaluate.summarise(
      rows,
      rl_steps=step,
      seconds_total=self._writer.seconds,
      seconds_evaluation=evaluating,
      seconds_rl=sum(row["perf/step_time"] for row in rounds),
      completion_tokens_per_second=sampled / max(sampling, 1e-9),
    )
    path = pathlib.Path(workdir) / "summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")

  def _rows(self) -> list[dict]:
    return metrics.read(self._writer.workdir)


def merge(updates: Sequence[Mapping]) -> dict:
  """The mean over a round's updates; the largest of maxima, least of minima.

  How far sampler and trainer differ ("sampling/...") is what the first update
  saw: there both have the same weights.
  """
  return {
    name: updates[0][name]
    if name.startswith("sampling/")
    else np.max([u[name] for u in updates])
    if name.endswith("max")
    else np.min([u[name] for u in updates])
    if name.endswith("min")
    else np.mean([u[name] for u in updates], axis=0)
    for name in updates[0]
  }


def of_rewards(scores, advantages: np.ndarray, examples) -> dict:
  """Means and deviations of the rewards, over completions and over groups."""
  total = scores.total.reshape(advantages.shape)
  numbers = {
    "reward/mean": of_known(np.mean, total),
    "reward/std": of_known(np.std, total),
    "reward/frac_zero_std": np.mean(np.all(advantages == 0, axis=1)),
    "reward/none_count": int(np.isnan(total).sum()),
    "advantage/mean": advantages.mean(),
    "advantage/std": advantages.std(),
    "advantage/min": advantages.min(),
    "advantage/max": advantages.max(),
    "reward_infra/timeout_count": scores.counts["timeouts"],
    "reward_infra/crash_count": scores.counts["crashes"],
  }
  for name, values in scores.parts.items():
    numbers[f"reward/{name}/mean"] = of_known(np.mean, values)
    numbers[f"reward/{name}/std"] = of_known(np.std, values)
    numbers[f"reward/{name}/none_frac"] = np.mean(np.isnan(values))
  tasks = np.array([example.domain.rpartition("/")[2] for example in examples])
  if "accuracy" in scores.parts:
    correct = scores.parts["accuracy"]
    groups = np.nan_to_num(correct.reshape(advantages.shape))
    numbers["reward/frac_all_correct"] = np.mean(groups.min(axis=1) == 1)
    numbers["reward/frac_all_wrong"] = np.mean(groups.max(axis=1) == 0)
    for task in sorted(set(tasks)):
      numbers[f"completions/tasks/{task}/accuracy"] = of_known(
        np.mean, correct[tasks == task]
      )
  return numbers


def of_known(statistic: Callable, values: np.ndarray) -> float:
  """A statistic of the values that are not NaN; NaN if there is none."""
  known = values[~np.isnan(values)]
  return statistic(known) if known.size else np.nan


def of_experts(load: np.ndarray) -> dict:
  """Each expert's share of the tokens, by layer, and how uneven they are."""
  if not load.size:
    return {}
  shares = load / load.sum(axis=-1, keepdims=True)
  numbers = {f"router/load/{i}": share for i, share in enumerate(shares)}
  unevenness = shares.std(axis=-1) / shares.mean(axis=-1)
  return numbers | {"router/load_cv": unevenness.mean()}


def of_lengths(rollout: Rollout) -> dict:
  """Lengths in tokens, EOS included."""
  lengths = rollout.lengths.reshape(-1)
  stopped = rollout.finish.reshape(-1) == FINISH_STOP
  return {
    "completions/mean_length": lengths.mean(),
    "completions/min_length": lengths.min(),
    "completions/max_length": lengths.max(),
    "completions/clipped_ratio": np.mean(~stopped),
    "completions/eos_frac": np.mean(stopped),
    "completions/terminated_mean_length": lengths[stopped].mean()
    if stopped.any()
    else np.nan,
  }


def of_packing(batches: Sequence[tuple[Packed, int]]) -> dict:
  """How full the packed rows of the updates are, and how evenly."""
  shares, unevenness = zip(*(spread(*batch) for batch in batches))
  return {
    "data/pack_fill": np.mean(shares),
    "data/pack_spread": np.max(unevenness),
  }


def of_words(written: Sequence[Completion]) -> dict:
  """How often a completion says each word of reflection."""
  text = "\n".join(c.text.lower() for c in written)
  counts = collections.Counter(re.findall(r"[a-z]+", text))
  return {f"reflection/{w}": counts[w] / len(written) for w in REFLECTION}


def completion_rows(
  step, round, examples, written, scores, advantages, group_size
) -> Iterator[dict]:
  """The first two completions of the first four groups of a round."""
  flat = advantages.reshape(-1)
  for start in range(0, min(len(written), 4 * group_size), group_size):
    for i in range(start, start + 2):
      yield {
        "step": step,
        "round": round,
        "task": examples[i].domain.rpartition("/")[2],
        "prompt": examples[i].prompt,
        "completion": written[i].text,
        "answer": examples[i].answer,
        "rewards": {k: float(v[i]) for k, v in scores.parts.items()},
        "reward": float(scores.total[i]),
        "advantage": float(flat[i]),
        "length": written[i].num_tokens,
        "finish": written[i].finish,
      }
