"""The log of a GRPO run: timings, metrics, completions and progress."""

import collections
import contextlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from r1jax import data, rewards
from r1jax.data.packing import Placement
from r1jax.rollouts.round import Round
from r1jax.runtime import distributed, metrics
from r1jax.training import inspection, languages, measures, round_numbers
from r1jax.types import RLState

# (metric, limit, meaning): a warning is printed once a metric exceeds its
# limit.
ALERTS = (
  ("sampling/prob_diff_mean", 0.01, "sampler and trainer disagree"),
  ("completions/clipped_ratio", 0.5, "most completions end at the token limit"),
  ("reward/frac_zero_std", 0.9, "almost no group has a training signal"),
  ("reward/accuracy/none_frac", 0.02, "answers could not be graded"),
)


class RunLog:
  """Times the phases of a run, writes its metrics, and shows its progress."""

  def __init__(self, config, writer, engine, dataset, whole):
    self._config, self._writer = config, writer
    self._engine, self._dataset = engine, dataset
    self._whole = whole  # See `Run.whole`.
    self._seconds = collections.Counter()
    self._warm, self._warned, self._num_sync_bytes = set(), set(), None
    self._round_began = time.monotonic()
    inspection.report_mixture(dataset, writer.console)
    inspection.report_golds(dataset, writer.console)

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """A timed block; the first one of each name is shown as compilation."""
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

  @contextlib.contextmanager
  def outside_rounds(self) -> Iterator[None]:
    """A block whose time does not count as part of a round."""
    began = time.monotonic()
    yield
    self._round_began += time.monotonic() - began

  def sampled(self, done: int, tokens: int) -> None:
    """Shows the progress of sampling: completions done, and tokens."""
    self._writer.console.phase(f"sampling, {done} done, {tokens:,} tokens")

  def write(
    self,
    round: Round,
    scores: rewards.Scores,
    advantages: np.ndarray,
    updates: Sequence[Mapping],
    placed: Sequence[Sequence[Placement]],
    state: RLState,
  ) -> None:
    """Writes the metrics of a round and some completions, and shows progress.

    Args:
      round: the sampled completions.
      scores: of the completions [P * G].
      advantages: [P, G].
      updates: the metrics of each update.
      placed: the microbatches of each update.
      state: after the updates.
    """
    reflections = distributed.all_gather(
      round_numbers.reflection_counts(round.completions)
    ).sum(axis=0)
    spoken = None
    if "language" in scores.parts:
      spoken = distributed.all_gather(languages.count(*round[1:3])).sum(axis=0)
    if not distributed.is_first():
      return
    config, step = self._config, int(state.train.step)
    rollout, examples, completions = round[:3]
    numbers = round_numbers.merge(updates)
    numbers |= round_numbers.load_numbers(numbers.pop("router/load"))
    numbers |= round_numbers.reward_numbers(scores, advantages, examples)
    numbers |= round_numbers.length_numbers(rollout)
    numbers |= {
      f"reflection/{word}": count / len(completions)
      for word, count in zip(round_numbers.REFLECTION, reflections)
    }
    numbers |= {} if spoken is None else languages.numbers(spoken)
    numbers |= round_numbers.packing_numbers(placed)
    by_domain = dict(reward=scores.total, length=rollout.lengths.reshape(-1))
    if "accuracy" in scores.parts:
      by_domain["accuracy"] = scores.parts["accuracy"]
    domains = [example.domain for example in examples]
    numbers |= metrics.combine([metrics.by_domain(domains, **by_domain)])
    self._warn(numbers)
    seconds, self._seconds = self._seconds, collections.Counter()
    whole = time.monotonic() - self._round_began
    self._round_began = time.monotonic()
    tokens = int(rollout.lengths.sum())
    done = step // config.minibatches
    numbers |= {
      "round": done,
      "reference_step": int(state.reference_step),
      "gen/num_gen_batches": round.batches,
      "gen/discarded_samples": round.discarded,
      "gen/idle_frac": rollout.idle / max(rollout.steps, 1),
      "data/tokens": tokens,
      "data/prompts_seen": done * config.prompts_per_round,
      "perf/gen_time": seconds["sampling"],
      "perf/sync_time": seconds["syncing"],
      "perf/sync_bytes": self._sync_bytes(state),
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
        self._engine.model.config, rollout, placed, scorings
      ),
      peak=config.peak_flops,
    )
    numbers |= data.epochs(self._dataset, config.prompts_per_round, step=done)
    self._writer.write(step, **numbers)
    self._writer.updates(step, [_scalars(update) for update in updates])
    self._writer.completions(
      round_numbers.completion_rows(
        step,
        done,
        examples,
        completions,
        scores,
        advantages,
        config.group_size,
      )
    )
    self._writer.console.progress(
      done,
      config.num_steps // config.minibatches,
      reward=numbers["reward/mean"],
      accuracy=numbers.get("reward/accuracy/mean"),
      length=numbers["completions/mean_length"],
      kl=numbers.get("kl/ref"),
      tokens_per_second=tokens / max(seconds["sampling"], 1e-9),
    )
    if done == 1 or done % 20 == 0:
      known = np.array([c is not None for c in completions])
      total = np.where(known, scores.total, np.nan)
      best = int(np.argmax(np.nan_to_num(total, nan=-np.inf)))
      self._writer.console.show_completion(
        examples[best].prompt,
        completions[best].text,
        {name: values[best] for name, values in scores.parts.items()},
        title=f"round {done}, {examples[best].domain}",
      )

  def _sync_bytes(self, state: RLState) -> int:
    """The bytes that a device receives to reshard weights for the sampler."""
    if self._num_sync_bytes is None:  # It is the same in every round.
      self._num_sync_bytes = self._engine.moved(self._whole(state).train.params)
    return self._num_sync_bytes

  def _warn(self, numbers: Mapping) -> None:
    """Prints a warning for each metric beyond its limit, once per run."""
    for name, limit, meaning in ALERTS:
      if numbers.get(name, 0) > limit and name not in self._warned:
        self._warned.add(name)
        self._writer.console.note(
          f"warning: {name} is {numbers[name]:.3g}, above {limit}: {meaning}"
        )

  def summarise(self, step: int) -> None:
    """Writes summary.json, which compares the base model with the result."""
    if not distributed.is_first():
      return
    rows = metrics.read(self._writer.workdir)
    rounds = [row for row in rows if "round" in row]
    evaluating = sum(row.get("perf/eval_time", 0.0) for row in rows)
    sampled = sum(row["data/tokens"] for row in rounds)
    sampling = sum(row["perf/gen_time"] for row in rounds)
    summary = measures.summarise(
      rows,
      rl_steps=step,
      seconds_total=self._writer.seconds,
      seconds_evaluation=evaluating,
      seconds_rl=sum(row["perf/step_time"] for row in rounds),
      completion_tokens_per_second=sampled / max(sampling, 1e-9),
    )
    path = pathlib.Path(self._writer.workdir) / "summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")


def _scalars(update: Mapping) -> dict:
  """The metrics of an update that are scalars."""
  return {name: x for name, x in update.items() if np.ndim(x) == 0}
