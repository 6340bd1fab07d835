"""The numbers of a run: one JSON object per line, always, and TensorBoard.

    WORKDIR/metrics.jsonl      {"step": 4, "time": 1.2, "reward/mean": 0.5, ...}
    WORKDIR/completions.jsonl  {"step": 4, "prompt": "...", "reward": 1.0, ...}

A row's step is that of the train state when it was written. A run that resumes
from step s drops the rows beyond s, so no step is ever there twice. What each
name means is in METRICS.
"""

import fnmatch
import json
import math
import numbers
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from r1jax.console import Console

Path = str | os.PathLike


# What each name means: {pattern: (unit, definition)}. A * stands for a name of
# the run's own: a reward, a task, a layer, k.
METRICS: dict[str, tuple[str, str]] = {
  "reward/mean": ("", "weighted sum of the rewards, mean over completions"),
  "reward/std": ("", "its standard deviation within a group, mean over groups"),
  "reward/frac_zero_std": ("share", "groups whose rewards are all equal"),
  "reward/frac_all_correct": ("share", "groups that are right every time"),
  "reward/frac_all_wrong": ("share", "groups that are wrong every time"),
  "reward/*/mean": ("", "one rule's reward, before its weight"),
  "reward/*/std": ("", "its standard deviation over all completions"),
  "reward/*/none_frac": ("share", "completions that the rule did not grade"),
  "advantage/mean": ("", "over completions; 0 but for rounding"),
  "advantage/std": ("", "over completions; below 1 when groups teach nothing"),
  "advantage/min": ("", "over completions"),
  "advantage/max": ("", "over completions"),
  "loss/total": ("", "what the optimizer descends"),
  "loss/policy": ("", "the clipped surrogate alone, negated"),
  "loss/kl": ("", "the KL estimate times its coefficient"),
  "loss/nll": ("nats", "next-token loss, mean over the tokens it counts"),
  "loss/mtp": ("nats", "the same for the token after, by the MTP block"),
  "loss/balance": ("", "sequence-wise balance of the experts, unweighted"),
  "kl/ref": ("nats", "k3 against the reference policy, token mean"),
  "kl/old": ("nats", "k3 against the behaviour policy, token mean"),
  "entropy/mean": ("nats", "of the policy, mean over sampled tokens"),
  "ratio/mean": ("", "policy over behaviour policy, over sampled tokens"),
  "ratio/min": ("", "its least"),
  "ratio/max": ("", "its largest"),
  "clip_ratio/low": ("share", "tokens below the clip range, advantage < 0"),
  "clip_ratio/high": ("share", "tokens above the clip range, advantage > 0"),
  "clip_ratio/region": ("share", "either: tokens that give no gradient"),
  "completions/mean_length": ("tokens", "sampled tokens, EOS included"),
  "completions/min_length": ("tokens", "of the shortest"),
  "completions/max_length": ("tokens", "of the longest"),
  "completions/terminated_mean_length": ("tokens", "of those with an EOS"),
  "completions/terminated_min_length": ("tokens", "of those with an EOS"),
  "completions/terminated_max_length": ("tokens", "of those with an EOS"),
  "completions/clipped_ratio": ("share", "cut at the token limit"),
  "completions/eos_frac": ("share", "ended by the policy itself"),
  "completions/lang_consistency": ("share", "words in the prompt's language"),
  "reflection/*": ("", 'uses of a word like "wait", per completion'),
  "sampling/logp_diff_mean": ("nats", "|trainer - sampler|, over tokens"),
  "sampling/logp_diff_max": ("nats", "its largest"),
  "sampling/prob_diff_mean": ("", "the same of probabilities"),
  "sampling/is_ratio_mean": ("", "trainer over sampler probability"),
  "sampling/is_ratio_max": ("", "its largest"),
  "sampling/is_clipped_frac": ("share", "tokens whose ratio was truncated"),
  "router/load/*": ("share", "of a layer's tokens, by expert: a list"),
  "router/load_cv": ("", "std over mean of that load, mean over layers"),
  "gen/num_gen_batches": ("", "batches sampled to fill the round"),
  "gen/discarded_samples": ("", "completions sampled but not learned from"),
  "gen/staleness_mean": ("steps", "age of the policy that sampled"),
  "optim/grad_norm": ("", "global norm of the gradient before clipping"),
  "optim/lr": ("", "learning rate"),
  "optim/update_norm": ("", "global norm of the change of the parameters"),
  "optim/skipped": ("steps", "skipped in a row: the gradient was not finite"),
  "perf/tokens_per_s": ("tokens/s", "sampled tokens over the round's time"),
  "perf/tokens_per_s_per_device": ("tokens/s", "the same, per device"),
  "perf/mfu": ("share", "model FLOPs over what the devices could do"),
  "perf/step_time": ("s", "of one round"),
  "perf/gen_time": ("s", "sampling"),
  "perf/reward_time": ("s", "waiting for grades"),
  "perf/logprob_time": ("s", "scoring with policy and reference"),
  "perf/train_time": ("s", "updates"),
  "perf/sync_time": ("s", "moving parameters to the sampler"),
  "perf/eval_time": ("s", "evaluation"),
  "perf/hbm_peak": ("bytes", "largest memory use of a device"),
  "data/epoch": ("", "passes over the prompts so far"),
  "data/round": ("", "rounds so far"),
  "data/prompts_seen": ("", "prompts drawn so far, discarded ones included"),
  "data/tokens_seen": ("tokens", "sampled, or read, so far"),
  "reward_infra/timeout_count": ("", "grades that ran out of time"),
  "reward_infra/error_count": ("", "grades that raised"),
  "reward_infra/none_count": ("", "completions without a grade"),
  "eval/nll": ("nats", "next-token loss on held-out documents"),
  "eval/*/pass@1": ("share", "mean over problems of the share that is right"),
  "eval/*/pass@1_stderr": ("share", "its standard error, over problems"),
  "eval/*/pass@*": ("share", "unbiased estimate of one of k being right"),
  "eval/*/cons@*": ("share", "the majority of k answers is right"),
  "eval/*/mean_length": ("tokens", "sampled tokens, EOS included"),
  "eval/*/truncated": ("share", "cut at the token limit"),
  "eval/*/unparsed": ("share", "no answer could be read"),
}


class TensorBoard:
  """Scalars for TensorBoard, in WORKDIR/tensorboard; lists are skipped."""

  def __init__(self, workdir: Path, step: int | None):
    from tensorboardX import SummaryWriter

    self._writer = SummaryWriter(
      str(pathlib.Path(workdir) / "tensorboard"),
      purge_step=0 if step is None else step + 1,
      flush_secs=20,
    )

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds the finite numbers of a row."""
    for name, value in values.items():
      if isinstance(value, numbers.Real) and math.isfinite(value):
        self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    """Writes what is left."""
    self._writer.close()


SINKS: dict[str, Callable] = {"tensorboard": TensorBoard}


class Writer:
  """Writes rows to `metrics.jsonl`, to sinks, and shows them on a console.

  `step` is that of the restored checkpoint; None starts the files over. Only
  the first process of a job writes.
  """

  def __init__(
    self,
    workdir: Path,
    *,
    step: int | None = None,
    sinks: Iterable[str] = ("tensorboard",),
    console: Console | None = None,
  ):
    self.workdir = workdir
    self._folder = pathlib.Path(workdir)
    self._first = jax.process_index() == 0
    self._files: dict[str, Any] = {}
    self._sinks: list[Any] = []
    past = 0.0
    if self._first:
      self._folder.mkdir(parents=True, exist_ok=True)
      for name in ("metrics.jsonl", "completions.jsonl"):
        _truncate(self._folder / name, step)
      past = max((row["time"] for row in read(workdir)), default=0.0)
      self._sinks = [SINKS[name](workdir, step) for name in sinks]
    self._began = time.monotonic() - past
    self.console = console or Console(quiet=not self._first)

  @property
  def seconds(self) -> float:
    """Seconds since the run began, those of earlier sessions included."""
    return time.monotonic() - self._began

  def write(self, step: int, /, **values) -> None:
    """Adds a row: numbers, or lists of them, from Python, NumPy or JAX."""
    if not self._first:
      return
    plain = {k: _plain(k, v) for k, v in jax.device_get(values).items()}
    row = {"step": int(step), "time": round(self.seconds, 3)} | plain
    self._append("metrics.jsonl", [row])
    for sink in self._sinks:
      sink.write(int(step), plain)

  def completions(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows to `completions.jsonl`; each must say its `step`."""
    if self._first:
      self._append("completions.jsonl", rows)

  def close(self) -> None:
    """Closes files, sinks and console."""
    for closing in (*self._files.values(), *self._sinks, self.console):
      closing.close()
    self._files, self._sinks = {}, []

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    if name not in self._files:
      self._files[name] = open(self._folder / name, "a", encoding="utf-8")
    for row in rows:
      row = {k: _finite(v) for k, v in row.items()}
      self._files[name].write(json.dumps(row) + "\n")
    self._files[name].flush()


def describe(name: str) -> tuple[str, str] | None:
  """Unit and definition of a metric; None if METRICS does not know it."""
  if name in METRICS:
    return METRICS[name]
  patterns = (p for p in METRICS if fnmatch.fnmatchcase(name, p))
  return METRICS.get(next(patterns, ""))


def read(workdir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
  """The rows of a run so far; a last line cut short by a crash is left out."""
  path = pathlib.Path(workdir) / name
  return [row for row, _ in _lines(path)] if path.exists() else []


def _lines(path: pathlib.Path) -> Iterator[tuple[dict[str, Any], bytes]]:
  """Whole rows of a file, with their bytes, up to the first broken line."""
  with open(path, "rb") as file:
    for line in file:
      if not line.endswith(b"\n"):
        return
      try:
        row = json.loads(line)
      except ValueError:
        return
      yield row, line


def _truncate(path: pathlib.Path, step: int | None) -> None:
  """Drops the rows beyond `step`; None drops all."""
  if not path.exists():
    return
  draft = path.with_suffix(".tmp")
  with open(draft, "wb") as file:
    if step is not None:
      for row, line in _lines(path):
        if row["step"] <= step:
          file.write(line)
  os.replace(draft, path)


def _plain(name: str, value: Any) -> Any:
  """A number or (nested) list of numbers; float32 keeps its short form."""
  if isinstance(value, np.ndarray | np.generic):
    if value.dtype.kind not in "biuf" and value.dtype.name != "bfloat16":
      raise TypeError(f"metric {name!r} is an array of {value.dtype}")
    if value.ndim:
      return [_plain(name, item) for item in value]
    if value.dtype.itemsize < 8 and value.dtype.kind not in "biu":
      return float(str(np.float32(value)))
    return value.item()
  if isinstance(value, list | tuple):
    return [_plain(name, item) for item in value]
  if not isinstance(value, numbers.Real):
    raise TypeError(f"metric {name!r} is {type(value).__name__}: {value!r}")
  return value


def _finite(value: Any) -> Any:
  """JSON has no NaN and no infinity: they become null."""
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, list | tuple):
    return [_finite(item) for item in value]
  if isinstance(value, Mapping):
    return {k: _finite(v) for k, v in value.items()}
  if isinstance(value, np.ndarray | np.generic):
    return _finite(_plain("", value))
  return value
