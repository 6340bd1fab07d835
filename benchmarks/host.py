"""The work of hosts between sampling and updates of a round, without devices.

    python -m benchmarks.host --mean=10000

The round has log-normal lengths (sigma 1). `packing_s` places all completions
in rows, lays out their tokens and everything that a loss reads, and makes the
weights of all updates. `texts_s` decodes the share of one of `hosts` hosts, and
`texts_ratio` compares it with the tokenizer's own `decode_batch`; `records_s`
writes the share's records. The tokenizer is that of DeepSeek-R1 from `DATA`,
and the tokens are those of problems from there.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import command, timing
from r1jax.data import jsonl, packing, tokenizer
from r1jax.losses.aggregation import token_weights
from r1jax.rewards import Scores
from r1jax.rollouts import grading, records
from r1jax.training.batch import deal_prompts
from r1jax.types import FINISH_STOP, Example, Rollout, within_lengths

DATA = Path(os.environ.get("R1JAX_DATA", "../shared/data"))
WIDTHS = (40_960, 20_480, 10_240, 5_120)


def host(
  *,
  prompts: int = 512,
  group_size: int = 16,
  mean: float = 10_000.0,
  limit: int = 32_768,
  minibatches: int = 16,
  shards: int = 32,
  hosts: int = 64,
  repeats: int = 3,
) -> dict:
  """Seconds of a host's work in a round, each the best of `repeats`.

  Args:
    prompts: of the round.
    group_size: completions of each prompt.
    mean: tokens of a completion, on average.
    limit: tokens of a completion, at most.
    minibatches: updates of the round.
    shards: rows of a microbatch.
    hosts: that share texts and records.
    repeats: of each measurement.
  """
  words = tokenizer.load(str(DATA / "reference" / "deepseek_r1"))
  rollout = draw(words, prompts, group_size, mean, limit)
  share = max(1, prompts // hosts)
  own = Rollout(
    **{
      name: getattr(rollout, name)[:share]
      for name in (
        *("prompts", "prompt_lengths", "completions", "lengths", "finish"),
        *("sampled_mask", "logprobs"),
      )
    }
  )
  best = lambda work: min(timing.seconds(work) for _ in range(repeats))
  texts = lambda: [
    grading.completions(own, p, words, limit) for p in range(share)
  ]
  ids = [
    own.completions[p, g, : own.lengths[p, g]].tolist()
    for p, g in np.ndindex(own.lengths.shape)
  ]
  plain = lambda: words._model.decode_batch(ids, skip_special_tokens=False)
  by_batch, by_us = timing.in_turns(plain, texts)
  with tempfile.TemporaryDirectory() as folder:
    written = sum(texts(), [])
    recording = best(lambda: record(folder, own, written))
  return {
    "machine": {"cores": os.cpu_count()},
    "tokens": int(rollout.lengths.sum()),
    "packing_s": round(best(lambda: pack(rollout, minibatches, shards)), 3),
    "share_tokens": int(own.lengths.sum()),
    "texts_s": round(by_us, 3),
    "texts_ratio": round(by_us / by_batch, 3),
    "records_s": round(recording, 3),
    "peak_memory_bytes": timing.peak_memory(),
  }


def draw(words, prompts, group_size, mean, limit) -> Rollout:
  """A round of random lengths, whose tokens are those of the dataset MATH."""
  rng, shape = np.random.default_rng(0), (prompts, group_size)
  lengths = rng.lognormal(np.log(mean) - 0.5, 1.0, shape)
  lengths = np.clip(lengths, 1, limit).astype(np.int32)
  text = "\n".join(
    row["problem"]
    for _, row in jsonl.read(DATA / "train" / "math_math_train.jsonl")
  )
  ids = np.array(words.encode(text), np.int32)
  mask = within_lengths(lengths, limit)
  completions = np.zeros(mask.shape, np.int32)
  completions[mask] = np.resize(ids, mask.sum())
  logprobs = np.zeros(mask.shape, np.float32)
  logprobs[mask] = -rng.exponential(0.3, mask.sum())
  return Rollout(
    prompts=np.ones((prompts, 2048), np.int32),
    prompt_lengths=rng.integers(100, 300, prompts).astype(np.int32),
    completions=completions,
    lengths=lengths,
    finish=np.full(shape, FINISH_STOP, np.int32),
    sampled_mask=mask,
    logprobs=logprobs,
  )


def pack(rollout: Rollout, minibatches: int, shards: int) -> None:
  """Makes all that a round's updates read, one microbatch at a time."""
  prompts, _, size = rollout.completions.shape
  tokens, signal = rollout.sampled_mask.sum(-1), np.ones(prompts, bool)
  for part in deal_prompts(minibatches, signal, seed=0, round=0):
    mask = np.isin(np.arange(prompts), part)[:, None] & (tokens > 0)
    weights = token_weights(tokens, mask, name="completion_mean")
    placements = packing.pack_rollout(rollout, part, widths=WIDTHS, rows=shards)
    for placement in placements:
      packing.lay_out_rollout(rollout, placement)
      for values, dtype in (
        (np.arange(tokens.size), np.int32),
        (rollout.sampled_mask.reshape(-1, size), np.float32),
        (rollout.logprobs.reshape(-1, size), np.float32),
        (weights.reshape(-1), np.float32),
      ):
        packing.per_slot(placement, values, dtype)


def record(folder: str, rollout: Rollout, written: list) -> None:
  """Writes the records of completions."""
  count = rollout.lengths.size
  ones = np.ones(count)
  records.dump(
    folder,
    0,
    step=0,
    rollout=rollout,
    examples=[Example("", "", "math")] * count,
    written=written,
    scores=Scores(ones, {"accuracy": ones}, {}, [], {}),
    advantages=ones.reshape(rollout.lengths.shape),
  )


if __name__ == "__main__":
  command.run(host)
