"""Metrics of a round, computed from its arrays; see `runtime.metrics.names`."""

import collections
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from r1jax.data.packing import Placement
from r1jax.models import flops as model_flops
from r1jax.models.config import ModelConfig
from r1jax.training import languages
from r1jax.types import FINISH_STOP, Completion, Rollout

# Words of reflection, from arXiv:2501.12948, appendix C.2, and from the demo.
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


def merge(updates: Sequence[Mapping]) -> dict:
  """The metrics of a round, from those of its updates.

  Names that end in "max" or "min" take the maximum or minimum over updates,
  others the mean. Differences between sampler and trainer ("sampling/...") are
  those of the first update, in which both have the same weights.
  """
  return {
    name: updates[0][name]
    if name.startswith(("sampling/", "router/replay_mismatch"))
    else np.max([u[name] for u in updates])
    if name.endswith("max")
    else np.min([u[name] for u in updates])
    if name.endswith("min")
    else np.mean([u[name] for u in updates], axis=0)
    for name in updates[0]
  }


def reward_numbers(scores, advantages: np.ndarray, examples) -> dict:
  """Statistics of rewards and advantages over completions and groups."""
  total = scores.total.reshape(advantages.shape)
  numbers = {
    "reward/mean": nan_statistic(np.mean, total),
    "reward/std": nan_statistic(np.mean, by_group(np.std, total)),
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
    numbers[f"reward/{name}/mean"] = nan_statistic(np.mean, values)
    numbers[f"reward/{name}/std"] = nan_statistic(np.std, values)
    graded = values[scores.applies.get(name, slice(None))]
    if graded.size:
      numbers[f"reward/{name}/none_frac"] = np.mean(np.isnan(graded))
  tasks = np.array([example.domain.rpartition("/")[2] for example in examples])
  if "accuracy" in scores.parts:
    correct = scores.parts["accuracy"]
    groups = np.nan_to_num(correct.reshape(advantages.shape))
    numbers["reward/frac_all_correct"] = np.mean(groups.min(axis=1) == 1)
    numbers["reward/frac_all_wrong"] = np.mean(groups.max(axis=1) == 0)
    for task in sorted(set(tasks)):
      numbers[f"completions/tasks/{task}/accuracy"] = nan_statistic(
        np.mean, correct[tasks == task]
      )
  return numbers


def by_group(statistic: Callable, values: np.ndarray) -> np.ndarray:
  """`nan_statistic` of each group of values [P, G]."""
  return np.array([nan_statistic(statistic, group) for group in values])


def nan_statistic(statistic: Callable, values: np.ndarray) -> float:
  """A statistic of the values that are not NaN; NaN if there are none."""
  known = values[~np.isnan(values)]
  return statistic(known) if known.size else np.nan


def load_numbers(load: np.ndarray) -> dict:
  """Each expert's share of the tokens by layer, and their unevenness.

  `load` [L, E] counts tokens; without layers of experts the result is empty.
  """
  if not load.size:
    return {}
  shares = load / load.sum(axis=-1, keepdims=True)
  numbers = {f"router/load/{i}": share for i, share in enumerate(shares)}
  unevenness = shares.std(axis=-1) / shares.mean(axis=-1)
  return numbers | {"router/load_cv": unevenness.mean()}


def length_numbers(rollout: Rollout) -> dict:
  """Statistics of completion lengths in tokens, EOS included."""
  lengths = rollout.lengths.reshape(-1)
  stopped = rollout.finish.reshape(-1) == FINISH_STOP
  ended = lengths[stopped].astype(float) if stopped.any() else np.array(np.nan)
  return {
    "completions/mean_length": lengths.mean(),
    "completions/min_length": lengths.min(),
    "completions/max_length": lengths.max(),
    "completions/clipped_ratio": np.mean(~stopped),
    "completions/eos_frac": np.mean(stopped),
    "completions/terminated_mean_length": ended.mean(),
    "completions/terminated_min_length": ended.min(),
    "completions/terminated_max_length": ended.max(),
  }


def packing_numbers(updates: Sequence[Sequence[Placement]]) -> dict:
  """The fill of the packed rows of all updates, and its unevenness."""
  used = [np.concatenate([x.used for x in batches]) for batches in updates]
  slots = sum(x.rows * x.width for batches in updates for x in batches)
  return {
    "data/pack_fill": sum(x.sum() for x in used) / slots,
    "data/pack_spread": max(x.max() / x.mean() for x in used),
  }


def flops(
  config: ModelConfig,
  rollout: Rollout,
  updates: Sequence[Sequence[Placement]],
  scorings: int,
) -> float:
  """Model FLOPs of a round: sampling, `scorings` forward passes, one update.

  An update costs three forward passes. Logits are counted for sampled tokens
  only.
  """
  sampled = float(rollout.lengths.sum())
  read = float(rollout.prompt_lengths.sum())
  lengths, prompts = rollout.lengths, rollout.prompt_lengths[:, None]
  pairs = np.sum(lengths * prompts + lengths * (lengths + 1.0) / 2)
  total = (sampled + read) * model_flops.of_token(config)
  total += sampled * model_flops.of_logits(config)
  total += pairs * model_flops.of_pair(config, cached=True)
  passes = scorings + 3
  for placement in (x for batches in updates for x in batches):
    total += passes * (
      placement.used.sum() * model_flops.of_token(config)
      + placement.count.sum() * model_flops.of_logits(config)
      + placement.num_pairs * model_flops.of_pair(config)
    )
  return float(total)


def reflection_counts(
  completions: Sequence[Completion | None],
) -> Int[np.ndarray, "N"]:
  """The occurrences of each word of reflection in the known completions."""
  text = "\n".join(c.text.lower() for c in completions if c is not None)
  counts = collections.Counter(re.findall(r"[a-z]+", text))
  return np.array([counts[word] for word in REFLECTION])


def completion_rows(
  step, round, examples, completions, scores, advantages, group_size
) -> Iterator[dict]:
  """Rows for two completions of the first four groups with known texts.

  Up to two more have thoughts of which a part is in another language.
  """
  flat = advantages.reshape(-1)
  groups = range(0, len(completions), group_size)
  known = [start for start in groups if completions[start] is not None]
  shown = [i for start in known[:4] for i in range(start, start + 2)]
  shares = scores.parts.get("language", ())
  mixed = (i for i, share in enumerate(shares) if 0 < share < languages.MIXED)
  mixed = (i for i in mixed if completions[i] is not None and i not in shown)
  for i in [*shown, *itertools.islice(mixed, 2)]:
    yield {
      "step": step,
      "round": round,
      "task": examples[i].domain.rpartition("/")[2],
      "prompt": examples[i].prompt,
      "completion": completions[i].text,
      "answer": examples[i].answer,
      "rewards": {k: float(v[i]) for k, v in scores.parts.items()},
      "reward": float(scores.total[i]),
      "advantage": float(flat[i]),
      "feedback": scores.feedback[i] if scores.feedback else "",
      "length": completions[i].num_tokens,
      "finish": completions[i].finish,
    }
