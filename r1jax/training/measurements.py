"""What a GRPO run measures, writes and shows; it decides nothing."""

import collections
import contextlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from r1jax import checkpoint, data, hosts, interrupt, metrics, rewards
from r1jax.training import evaluate, inspection, round_numbers
from r1jax.training.exploration import Sampled
from r1jax.types import Example, Packed

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

  def __init__(self, config, writer, engine, dataset, words, pool, rounds):
    self._dataset = dataset
    self._config, self._writer, self._engine = config, writer, engine
    self._words, self._pool, self._rounds = words, pool, rounds
    self._sets = None
    self._evaluated = {*checkpoint.read_scores(writer.workdir)}
    self._seconds = collections.Counter()
    self._moved = None
    self._warm, self._warned = set(), set()
    self._round_began = time.monotonic()

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Times a block; the first of its name is shown as compiling."""
    began = time.monotonic()
    with jax.profiler.TraceAnnotation(name):
      if name in self._warm or name == "grading":
        self._writer.console.phase(name)
        yield
      else:
        with self._writer.console.compiling(f"{name} step"):
          yield
        self._warm.add(name)
    self._seconds[name] += time.monotonic() - began

  def sync(self, params):
    """The weights as the sampler reads them, where it reads them."""
    if self._moved is None:
      self._moved = self._engine.moved(params)
    with self.phase("syncing"):
      return jax.block_until_ready(self._engine.prepare(params))

  def sampled(self, done: int, tokens: int) -> None:
    """Shows how far the sampling of a round is."""
    self._writer.console.phase(f"sampling, {done} done, {tokens:,} tokens")

  def is_due(self, step: int) -> bool:
    """Whether to measure the policy of `step`: at the start, at the end, and
    every `evaluation.every` steps, once each."""
    every = self._config.evaluation.every
    planned = step == self._config.num_steps or step % every == 0
    return planned and step not in self._evaluated

  def evaluate(self, step: int, params) -> None:
    """Measures the policy of `step`, and writes a row and its score.

    The score is the mean pass@1 of the tasks.
    """
    config = self._config
    if self._sets is None:
      self._sets = evaluation(**config.evaluation.to_dict())
      for problems in self._sets["whole"]:
        inspection.check_prompts(problems.examples, self._words, config)
    whole = step in (0, config.num_steps)
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
    tasks = [p.name for p in problems if not p.name.endswith("+1")]
    with interrupt.deferred():
      self._writer.write(step, **numbers)
      checkpoint.write_score(
        self._writer.workdir,
        step,
        np.mean([numbers.get(f"eval/{name}/pass@1", 0.0) for name in tasks]),
      )
      self._evaluated.add(step)
    self._round_began = time.monotonic()
    if not hosts.is_first():
      return
    for problem in problems:
      of = lambda key, name=problem.name: numbers[f"eval/{name}/{key}"]
      console.note(
        f"  {problem.name:20} pass@1 {of('pass@1'):.3f} "
        f"+- {of('pass@1_stderr'):.3f}  cons@{problem.samples} "
        f"{of(f'cons@{problem.samples}'):.3f}  "
        f"length {of('mean_length'):.1f}  truncated {of('truncated'):.3f}"
      )
    console.note(f"  in {numbers['perf/eval_time']:.1f} s")

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
    if not hosts.is_first():
      return
    config = self._config
    rollout, examples, written = sampled[:3]
    numbers = round_numbers.merge(updates)
    numbers |= round_numbers.of_experts(numbers.pop("router/load"))
    numbers |= round_numbers.of_rewards(scores, advantages, examples)
    numbers |= round_numbers.of_lengths(rollout)
    numbers |= round_numbers.of_words(written)
    numbers |= round_numbers.of_packing(batches)
    told = dict(reward=scores.total, length=rollout.lengths.reshape(-1))
    if "accuracy" in scores.parts:
      told["accuracy"] = scores.parts["accuracy"]
    domains = [example.domain for example in examples]
    numbers |= metrics.combine([metrics.by_domain(domains, **told)])
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
      "gen/idle_frac": rollout.idle / max(rollout.steps, 1),
      "data/tokens": tokens,
      "data/prompts_seen": round * config.prompts_per_round,
      "perf/gen_time": seconds["sampling"],
      "perf/sync_time": seconds["syncing"],
      "perf/sync_bytes": self._moved or 0,
      "perf/reward_time": seconds["grading"],
      "perf/logprob_time": seconds["scoring"],
      "perf/train_time": seconds["learning"],
      "perf/step_time": whole,
    }
    scorings = (config.old == "trainer") + ("kl/ref" in numbers)
    numbers |= metrics.machine() | metrics.throughput(
      tokens=tokens,
      seconds=whole,
      devices=self._engine.sampling.mesh.size,
      flops=round_numbers.flops(
        self._engine.model.config, rollout, batches, scorings
      ),
      peak=config.peak_flops,
    )
    numbers |= data.epochs(self._dataset, config.prompts_per_round, step=round)
    self._writer.write(step, **numbers)
    self._writer.updates(step, [_small(update) for update in updates])
    self._writer.completions(
      round_numbers.completion_rows(
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
      tokens_per_second=tokens / max(seconds["sampling"], 1e-9),
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
    if not hosts.is_first():
      return
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


def _small(update: Mapping) -> dict:
  """The numbers of an update, without the lists among them."""
  return {name: x for name, x in update.items() if np.ndim(x) == 0}
