"""Continuous batching compared with static batching.

    python -m benchmarks.rollouts

The tiny Qwen2 of the other benchmarks samples completions whose lengths are
fixed in advance: log-uniform, and the same for both sides. `refilled` is one
call of the engine for all completions. `static` calls the same engine for as
many completions as it has slots, and waits for all of them before the next
call. Runs alternate, and times are medians that include prefill. `occupancy` is
the share of slots that hold an unfinished completion, over all decode steps;
`ideal_occupancy` assumes that a free slot is refilled in the next step.
"""

import functools
import sys

import jax
import numpy as np

from benchmarks import command, timing
from benchmarks.model import MODELS
from r1jax.models import transformer
from r1jax.parallel.mesh import make_mesh
from r1jax.rollouts.engine import make_engine


class Endless:
  """A tokenizer without EOS, so that completions have the full length."""

  eos_ids = prefix_ids = ()

  def __init__(self, vocab_size: int):
    self.vocab_size = vocab_size

  def encode(self, text: str) -> list[int]:
    """The bytes of the text."""
    return list(text.encode())

  def decode(self, ids: list[int]) -> str:
    """The ids as text."""
    return " ".join(map(str, ids))


def rollouts(
  *,
  requests: int = 1024,
  group_size: int = 4,
  slots: int = 64,
  decode_steps: int = 4,
  prompt: int = 32,
  shortest: int = 13,
  longest: int = 128,
) -> dict:
  """The seconds and occupancies of both sides, and their ratio.

  Args:
    requests: total number of completions.
    group_size: completions per prompt.
    slots: that decode at once; the size of a static batch.
    decode_steps: decode steps between two checks by the host.
    prompt: tokens of every prompt.
    shortest: the least tokens of a completion.
    longest: the most tokens of a completion.
  """
  if requests % slots or slots % group_size:
    raise ValueError(
      f"requests {requests} must be a multiple of slots {slots}, and slots a "
      f"multiple of group_size {group_size}"
    )
  network = transformer.Transformer(MODELS["qwen2"])
  params = transformer.init(network, jax.random.key(0))
  vocabulary = network.config.vocab_size
  engine = make_engine(
    network,
    Endless(vocabulary),
    make_mesh(data=1),
    (),
    num_slots=slots,
    decode_steps=decode_steps,
    prompt_tokens=prompt,
    max_tokens=longest,
    temperature=1.0,
  )
  params = engine.prepare(params)
  rng = np.random.default_rng(0)
  prompts = rng.integers(0, vocabulary, (requests // group_size, prompt))
  lengths = log_uniform(rng, shortest, longest, (len(prompts), group_size))
  steps = {}

  def run(name, size):
    """Runs the engine on `size` prompts at a time."""
    steps[name] = 0
    for start in range(0, len(prompts), size):
      part = slice(start, start + size)
      rollout = engine(
        params,
        prompts[part].tolist(),
        group_size,
        seed=0,
        round=start,
        max_tokens=lengths[part],
      )
      steps[name] += rollout.steps

  print("measuring both sides in turns ...", file=sys.stderr)
  refilled, static = timing.in_turns(
    functools.partial(run, "refilled", len(prompts)),
    functools.partial(run, "static", slots // group_size),
  )
  tokens = int(lengths.sum())
  occupancy = {
    name: round(tokens / (slots * taken), 3) for name, taken in steps.items()
  }
  return {
    "machine": timing.machine(),
    "tokens": tokens,
    "refilled_s": round(refilled, 3),
    "static_s": round(static, 3),
    "ratio": round(static / refilled, 2),
    "refilled_tokens_per_s": round(tokens / refilled),
    "static_tokens_per_s": round(tokens / static),
    "steps": steps,
    "occupancy": occupancy,
    "ideal_occupancy": round(tokens / (slots * ideal_steps(lengths, slots)), 3),
    "ideal_ratio": round(steps["static"] / ideal_steps(lengths, slots), 2),
  }


def log_uniform(
  rng: np.random.Generator, low: int, high: int, shape: tuple[int, ...]
) -> np.ndarray:
  """Log-uniform integers from `low` to `high`."""
  drawn = np.exp(rng.uniform(np.log(low), np.log(high + 1), shape))
  return np.minimum(np.floor(drawn), high).astype(np.int32)


def ideal_steps(lengths: np.ndarray, slots: int) -> int:
  """The decode steps for all lengths, in order, if slots never wait."""
  free_at = [0] * slots
  for length in lengths.reshape(-1).tolist():
    first = free_at.index(min(free_at))
    free_at[first] += length
  return max(free_at)


if __name__ == "__main__":
  command.run(rollouts)
