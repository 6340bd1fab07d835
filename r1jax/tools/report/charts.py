"""The charts of a report, from the metrics of runs.

A `Chart` is a set of small panels with one quantity each, so that several runs
can be overlaid.
"""

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from r1jax.tools.report import figures
from r1jax.tools.report.figures import Curve, Panel, Runs

PHASES = {
    "perf/gen_time": "sampling", "perf/reward_time": "grading",
    "perf/logprob_time": "log-probabilities", "perf/train_time": "update",
}  # fmt: skip
MAX_LAYERS = 6  # The most heat maps of expert load per run.
MAX_WORDS = 9  # The most words of reflection that get a panel.
MAX_LANGUAGES = 7  # The most languages that get a panel.


class Chart(NamedTuple):
  """Panels under one caption."""

  name: str  # Name of the file, and anchor on the page.
  title: str
  caption: str
  panels: tuple[Panel, ...]


def curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
  """One curve per key of the rows of metrics.jsonl.

  If a step occurs twice, its last row is used. Values that are null, not finite
  or not numbers are left out.
  """
  points: dict[str, dict[int, Any]] = {}
  for row in rows:
    for key, value in row.items():
      if key != "step" and _is_numeric(value):
        points.setdefault(key, {})[row["step"]] = value
  result = {}
  for key, at in points.items():
    width = np.shape(at[max(at)])
    steps = [step for step in sorted(at) if np.shape(at[step]) == width]
    values = np.array([at[step] for step in steps], float)
    result[key] = Curve(np.array(steps), values)
  return result


def _is_numeric(value: Any) -> bool:
  if isinstance(value, list):
    return bool(value) and all(
      _is_numeric(v) and not isinstance(v, list) for v in value
    )
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return number and math.isfinite(value)


def tasks(metrics: Mapping[str, Curve]) -> list[str]:
  """The evaluated tasks; "+1" marks problems larger than those in training."""
  matches = (re.fullmatch(r"eval/(.+)/pass@1", key) for key in metrics)
  return sorted({match[1] for match in matches if match})


def charts(runs: Runs) -> list[Chart]:
  """All charts that have data in the metrics of `runs`, in reading order."""
  pick = functools.partial(_scalars, runs)
  names = sorted({task for m in runs.values() for task in tasks(m)})
  trained = [task for task in names if "+" not in task]
  larger = [task for task in names if "+" in task]
  smooth = "Thin lines are single rounds, thick ones a moving average."
  result = [
    Chart(
      "accuracy", "Accuracy",
      "Accuracy on held-out problems. Solid: pass@1, the mean over samples, "
      "with a band of one standard error. Dashed, or diamonds: cons@k, the "
      "majority vote of k samples.",
      _accuracy(runs, trained),
    ),
    Chart(
      "larger", "Larger problems",
      "The same measures on problems larger than any in the training set.",
      _accuracy(runs, larger),
    ),
    Chart(
      "length", "Response length",
      "Tokens per response: over training completions, then on held-out "
      "problems of each task. " + smooth,
      pick([
        ("completions/mean_length", "training, mean"),
        *((f"eval/{task}/mean_length", task) for task in trained + larger),
        ("completions/max_length", "training, longest"),
        ("completions/clipped_ratio", "share cut at the limit"),
      ]),
    ),
    Chart(
      "reflection", "Reflection",
      "Words of reflection: mean occurrences per training completion. "
      + smooth,
      _reflection(runs),
    ),
    Chart(
      "language", "Language",
      "The language of thoughts: the mean share of words in the language of "
      "the question (the reward, over all training completions); the share of "
      "thoughts that mix languages, and the share of words in each language, "
      "over some completions of each round. " + smooth,
      _languages(runs),
    ),
    Chart(
      "reward", "Reward",
      "The summed reward and its parts over training completions; accuracy "
      "per task; and the share of groups whose equal rewards teach nothing.",
      pick([
        ("reward/mean", "reward"),
        *_matching(runs, r"reward/(.+)/mean", "{} reward"),
        *_matching(runs, r"completions/tasks/(.+)/accuracy", "{}, accuracy"),
        ("reward/std", "reward, standard deviation"),
        ("reward/frac_zero_std", "groups without signal"),
        ("advantage/std", "advantage, standard deviation"),
      ]),
    ),
    Chart(
      "policy", "Policy",
      "How far the policy moves, in nats per token: KL divergence from the "
      "reference policy (it falls to zero when the reference is refreshed), "
      "entropy, and the share of tokens whose ratio is clipped.",
      pick([
        ("kl/ref", "KL from the reference"),
        ("entropy/mean", "entropy"),
        ("clip_ratio/region", "clip fraction"),
        ("clip_ratio/low", "clip fraction, low side"),
        ("clip_ratio/high", "clip fraction, high side"),
        ("ratio/max", "largest ratio"),
        ("kl/old", "KL from the behaviour policy"),
        ("sampling/logp_diff_mean", "sampler vs trainer, mean"),
        ("sampling/logp_diff_max", "sampler vs trainer, max"),
      ]),
    ),
    Chart(
      "optimization", "Loss and gradient",
      "The losses and the gradient of updates. " + smooth,
      pick([
        ("loss/nll", "loss, nats per token"),
        ("loss/total", "loss"),
        ("loss/policy", "loss, policy part"),
        ("loss/kl", "loss, KL part"),
        ("optim/grad_norm", "gradient norm"),
        ("optim/lr", "learning rate"),
      ]),
    ),
    Chart(
      "experts", "Experts",
      "Balance of the mixture of experts: the coefficient of variation of "
      "the load (0 is even), and each expert's share of tokens over training, "
      "in multiples of an even share.",
      pick([("router/load_cv", "load, coefficient of variation")])
      + _expert_loads(runs),
    ),
    Chart(
      "throughput", "Throughput",
      "Speed of training, and the seconds of each round by phase. " + smooth,
      pick([
        ("perf/tokens_per_s", "tokens per second"),
        ("perf/step_time", "seconds per round"),
      ]) + _phases(runs),
    ),
  ]  # fmt: skip
  return [chart for chart in result if chart.panels]


def _scalars(runs: Runs, wanted: Iterable[tuple[str, str]]):
  """A panel for each (key, title) of which some run has the metric."""
  return tuple(
    Panel(title, functools.partial(figures.draw_scalar, runs, key), (key,))
    for key, title in wanted
    if any(figures.is_scalar(m.get(key)) for m in runs.values())
  )


def _matching(
  runs: Runs, pattern: str, title: str = "{}"
) -> list[tuple[str, str]]:
  keys = sorted({key for m in runs.values() for key in m})
  matches = ((key, re.fullmatch(pattern, key)) for key in keys)
  return [(key, title.format(match[1])) for key, match in matches if match]


def _accuracy(runs: Runs, names: Sequence[str]) -> tuple[Panel, ...]:
  return tuple(
    Panel(
      task,
      functools.partial(figures.draw_accuracy, runs, task),
      tuple(
        key for key, _ in _matching(
          runs, rf"eval/{re.escape(task)}/((pass|cons)@\d+|pass@1_stderr)"
        )
      ),
    )
    for task in names
  )  # fmt: skip


def _reflection(runs: Runs) -> tuple[Panel, ...]:
  words = _matching(runs, r"reflection/(.+)")

  def last(word):
    return max(m[word[0]].values[-1] for m in runs.values() if word[0] in m)

  used = [
    word
    for word in words
    if any(word[0] in m and m[word[0]].values.any() for m in runs.values())
  ]
  words = sorted(used or words, key=lambda word: (-last(word), word))
  return _scalars(runs, words[:MAX_WORDS])


def _languages(runs: Runs) -> tuple[Panel, ...]:
  """Consistency, mixed thoughts, and the languages with the most words.

  A language that does not occur in a round has no value there, which is 0.
  """
  words = [key for key, _ in _matching(runs, r"language/((?!mixed).+)")]
  filled = {}
  for name, metrics in runs.items():
    here = [metrics[key].steps for key in words if key in metrics]
    steps = np.unique(np.concatenate(here)) if here else np.array([], int)
    filled[name] = dict(metrics)
    for key in words if here else ():
      values = np.zeros(len(steps))
      if key in metrics:
        at, known = metrics[key]
        values[np.searchsorted(steps, at)] = known
      filled[name][key] = Curve(steps, values)
  most = lambda key: max(
    m[key].values.mean() for m in filled.values() if key in m
  )
  words = sorted(words, key=lambda key: (-most(key), key))[:MAX_LANGUAGES]
  return _scalars(
    filled,
    [
      ("reward/language/mean", "consistency with the question"),
      ("language/mixed", "mixed thoughts"),
      *((key, f"words in {key.rpartition('/')[2]}") for key in words),
    ],
  )


def _expert_loads(runs: Runs) -> tuple[Panel, ...]:
  panels = []
  for name, metrics in runs.items():
    keys = [k for k in metrics if re.fullmatch(r"router/load/.+", k)]
    keys = [k for k in keys if metrics[k].values.ndim == 2]
    keys.sort(key=lambda k: (len(k), k))
    shown = np.linspace(0, len(keys) - 1, min(len(keys), MAX_LAYERS))
    for key in [keys[round(i)] for i in shown]:
      title = f"layer {key.rsplit('/', 1)[1]}"
      if len(runs) > 1:
        title = f"{name}, {title}"
      draw = functools.partial(figures.draw_load, metrics[key])
      panels.append(Panel(title, draw, (key,)))
  return tuple(panels)


def _phases(runs: Runs) -> tuple[Panel, ...]:
  panels = []
  for name, metrics in runs.items():
    phases = {
      label: metrics[key]
      for key, label in PHASES.items()
      if figures.is_scalar(metrics.get(key))
    }
    if phases:
      title = (
        f"{name}, seconds by phase" if len(runs) > 1 else "seconds by phase"
      )
      draw = functools.partial(figures.draw_phases, phases)
      panels.append(Panel(title, draw, tuple(PHASES)))
  return tuple(panels)
