"""The hours of a whole GRPO run, from bounds on its programs.

The run is cut into stages of growing mean length. Each stage is one simulated
round: its sampling, with slots that take the next completion as soon as one has
ended, and its scoring and updates, with the packing of training. All times are
those of programs whose computation and network do not overlap, so they are
lower bounds only as far as nothing else takes time. Grading runs while the
round is sampled and is not counted.
"""

import functools
import heapq
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from r1jax.tools.plan import fill as fills
from r1jax.tools.plan.chips import Topology

STAGES = 12
SAVED = 0.25e9  # Bytes per second that a chip's host writes for it.
FORM = "use lognormal:FIRST-LAST:SIGMA, such as lognormal:500-14200:1.0"
# arXiv:2501.12948v2, supplementary table 7: R1-Zero's reinforcement learning.
PAPER = "DeepSeek-R1-Zero took about 198 hours on 512 H800"

Seconds = Callable[..., float]  # Of a program, for a fill or none.


class Schedule(NamedTuple):
  """Log-normal lengths whose mean grows linearly over the run."""

  first: float
  last: float
  sigma: float

  def stages(self) -> list[float]:
    """The mean length in the middle of each stage."""
    middles = (np.arange(STAGES) + 0.5) / STAGES
    return [self.first + x * (self.last - self.first) for x in middles.tolist()]

  @property
  def mean(self) -> float:
    """The mean length over the whole run."""
    return (self.first + self.last) / 2


def schedule(spec: str) -> Schedule:
  """The schedule of a specification; see `FORM`.

  Raises ValueError for a malformed specification.
  """
  number = r"([\d.]+)"
  form = rf"lognormal:{number}(?:-{number})?:{number}"
  match = re.fullmatch(form, spec)
  if not match:
    raise ValueError(f"lengths {spec!r} are no schedule for a run; {FORM}")
  first, last, sigma = match.groups()
  return Schedule(float(first), float(last or first), float(sigma))


class Sampling(NamedTuple):
  """The decode steps of completions in slots."""

  steps: int  # Until the last completion ends.
  tail: int  # Of these, the steps after the last completion has begun.
  longest: np.ndarray  # Tokens of the longest live completion so far, by step.


def sample(lengths: np.ndarray, num_slots: int, every: int) -> Sampling:
  """The decode steps of completions of these lengths, in their order.

  `Sampling.longest` is given for every `every`-th step.
  """
  free = [0] * min(num_slots, lengths.size)
  begins = np.empty(lengths.size, np.int64)
  for i, length in enumerate(lengths.reshape(-1).tolist()):
    begins[i] = heapq.heappop(free)
    heapq.heappush(free, begins[i] + length)
  ends = begins + lengths.reshape(-1)
  steps = np.arange(0, ends.max(), every)
  # The longest so far is reached by a completion as it grows or as it ends.
  order = np.argsort(ends)
  ended = np.maximum.accumulate((ends - begins)[order])
  count = np.searchsorted(ends[order], steps, side="right")
  longest = np.where(count > 0, ended[np.maximum(count - 1, 0)], 0)
  for at, step in enumerate(steps):
    live = (begins <= step) & (ends > step)
    longest[at] = max(longest[at], step - begins[live].min(initial=step))
  return Sampling(int(ends.max()), int(ends.max() - begins.max()), longest)


def _of_update(
  seconds: Mapping[str, Seconds], fill: fills.Fill, name: str
) -> float:
  """Seconds of the microbatches of an update in a program of training."""
  return sum(
    count * seconds[f"{name} {width}"](fill)
    for width, count in fill.microbatches.items()
  )


def hours(
  config: ConfigDict,
  shards: int,
  topology: Topology,
  lengths: Schedule,
  seconds: Mapping[str, Seconds],
  *,
  short: int,
  saved: float,
) -> dict[str, Any]:
  """The hours of each part of a run and in all, as JSON.

  Args:
    config: of a GRPO run.
    shards: parts into which the rows of a microbatch are split.
    topology: of chips.
    lengths: of completions.
    seconds: of each program, by name; those of training depend on a fill.
    short: tokens of a completion in the cache of the program "decode short".
    saved: bytes of a checkpoint.
  """
  c, rng = config, np.random.default_rng(0)
  rounds = c.num_steps / c.minibatches
  parts = dict.fromkeys(
    (
      "sampling",
      "of it, the tail of each round",
      "weights to the sampler",
      "scoring",
      "updates",
      "evaluation",
      "saving",
    ),
    0.0,
  )
  steps_at_once = c.sampling.decode_steps
  few, most = seconds["decode short"](), seconds["decode"]()
  slope = (most - few) / max(c.sampling.max_tokens - short, 1)

  def decode(sampling: Sampling) -> tuple[float, float]:
    """Seconds of all steps, and of those in the tail."""
    each = np.maximum(few + (sampling.longest - short) * slope, 0)
    tail = -(-sampling.tail // steps_at_once)
    return each.sum(), each[len(each) - tail :].sum()

  reads = [name for name in seconds if name.startswith("score")]
  stages = []
  for i, mean in enumerate(lengths.stages()):
    drawn, step = (
      fills.lognormal(mean, lengths.sigma),
      i * c.num_steps // STAGES,
    )
    found = fills.simulate(c, shards, drawn, rounds=1, step=step)
    tokens = fills.draw(c, drawn, rng, c.prompts_per_round, step)
    sampling = sample(tokens, c.sampling.num_slots, steps_at_once)
    decoding, tail = decode(sampling)
    training = functools.partial(_of_update, seconds, found)
    one = {
      "sampling": decoding + c.prompts_per_round * seconds["prefill"](),
      "of it, the tail of each round": tail,
      "weights to the sampler": seconds["reshard"](),
      "scoring": c.minibatches * training("score") if reads else 0.0,
      "updates": c.minibatches
      * (training("gradient") + seconds["optimizer"]()),
    }
    stages.append({"mean": mean, "slots_in_use": found.use, "seconds": one})
    for name, value in one.items():
      parts[name] += value * rounds / STAGES / 3600
    e = c.evaluation
    count = rounds / STAGES * c.minibatches / e.every
    tested = fills.draw(c, drawn, rng, e.problems_between, step)
    tested = np.repeat(tested[:, :1], e.samples_between, axis=1)
    evaluated, _ = decode(sample(tested, c.sampling.num_slots, steps_at_once))
    parts["evaluation"] += count * evaluated / 3600
  saves = c.num_steps / c.checkpoint_every
  parts["saving"] = saves * saved / topology.num_chips / SAVED / 3600
  total = sum(v for name, v in parts.items() if not name.startswith("of it"))
  return {"hours": parts, "total": total, "stages": stages}
