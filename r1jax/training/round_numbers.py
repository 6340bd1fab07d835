"""The numbers of a round, from its arrays; see `runtime.metrics.names`."""

import collections
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from r1jax.models import flops as model_flops
from r1jax.models.config import ModelConfig
from r1jax.types import FINISH_STOP, Completion, Packed, Rollout

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


def merge(updates: Sequence[Mapping]) -> dict:
  """The mean over a round's updates; the largest of maxima, least of minima.

  How far sampler and trainer differ ("sampling/...") is what the first update
  saw: there both have the same weights.
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


def of_rewards(scores, advantages: np.ndarray, examples) -> dict:
  """Means and deviations of the rewards, over completions and over groups."""
  total = scores.total.reshape(advantages.shape)
  numbers = {
    "reward/mean": of_known(np.mean, total),
    "reward/std": of_known(np.mean, by_group(np.std, total)),
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
      numbers[f"completions/tasks/{task}/accuracy"] = of_known(
        np.mean, correct[tasks == task]
      )
  return numbers


def by_group(statistic: Callable, values: np.ndarray) -> np.ndarray:
  """`of_known` of each group of [P, G]."""
  return np.array([of_known(statistic, group) for group in values])


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


def of_packing(batches: Sequence[tuple[Packed, int]]) -> dict:
  """How full the packed rows of the updates are, and how unevenly."""
  fill, unevenness = [], []
  for packed, count in batches:
    used = (np.asarray(packed.positions[:, :count]) >= 0).sum(axis=-1)
    fill.append(used.mean() / packed.positions.shape[-1])
    unevenness.append(used.max() / max(used.mean(), 1e-9))
  return {
    "data/pack_fill": np.mean(fill),
    "data/pack_spread": np.max(unevenness),
  }


def flops(
  config: ModelConfig,
  rollout: Rollout,
  batches: Sequence[tuple[Packed, int]],
  scorings: int,
) -> float:
  """What a round cannot do without: sampling, `scorings` passes, one update.

  An update is worth three passes; logits are of sampled tokens alone.
  """
  sampled = float(rollout.lengths.sum())
  read = float(rollout.prompt_lengths.sum())
  lengths, prompts = rollout.lengths, rollout.prompt_lengths[:, None]
  pairs = np.sum(lengths * prompts + lengths * (lengths + 1.0) / 2)
  total = (sampled + read) * model_flops.of_token(config)
  total += sampled * model_flops.of_logits(config)
  total += pairs * model_flops.of_pair(config, cached=True)
  passes = scorings + 3
  for packed, _ in batches:
    used = packed.positions >= 0
    slot = np.arange(packed.positions.shape[-1])
    seen = np.where(used, slot - packed.k_start + 1 + packed.prefix_end, 0)
    total += passes * (
      used.sum() * model_flops.of_token(config)
      + (packed.origin >= 0).sum() * model_flops.of_logits(config)
      + seen.sum() * model_flops.of_pair(config)
    )
  return float(total)


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
        "feedback": scores.feedback[i] if scores.feedback else "",
        "length": written[i].num_tokens,
        "finish": written[i].finish,
      }
