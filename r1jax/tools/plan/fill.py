"""How full the packed rows of training are, by simulation on random lengths.

Rounds of random completion lengths go through the packing of training; no
device is used.
"""

import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from r1jax.data.packing import pack
from r1jax.models import flops
from r1jax.models.config import ModelConfig
from r1jax.training.run import token_limit

ROUNDS = 100
PROMPT = 200  # Tokens of a prompt, with those of the template.
FORM = (
  "use lognormal:MEAN:SIGMA, such as lognormal:3600:1.0, or a file with one "
  "length in tokens per line"
)

Lengths = Callable[..., np.ndarray]  # (rng, shape) -> lengths, not limited.


class Fill(NamedTuple):
  """Means over updates, unless something else is said."""

  use: float  # Real tokens over slots of executed microbatches, in all updates.
  least: float  # Tokens of the least loaded shard over the mean of shards.
  least_of_all: float  # The smallest such share of any update.
  microbatches: dict[int, float]  # Their number by width.
  pairs: dict[int, float]  # Query-key pairs of a row, by width.
  tokens: float  # Real tokens: a prompt counts once per group.
  values: float  # Predicted tokens.
  real_pairs: float  # Query-key pairs of real tokens.

  def forward_flops(self, sizes: ModelConfig) -> float:
    """Model FLOPs of one forward pass over the real tokens of an update."""
    return (
      self.tokens * flops.of_token(sizes)
      + self.values * flops.of_logits(sizes)
      + self.real_pairs * flops.of_pair(sizes)
    )

  def report(self) -> dict[str, Any]:
    """The shares and counts, as JSON."""
    return {
      "slots_in_use": self.use,
      "least_loaded_shard": self.least,
      "least_loaded_shard_ever": self.least_of_all,
      "microbatches": {str(w): n for w, n in self.microbatches.items()},
      "shapes": len(self.microbatches),
      "tokens": self.tokens,
    }


def lengths(spec: str) -> Lengths:
  """The function that draws lengths as `spec` says; see `FORM`.

  Raises ValueError for a malformed specification.
  """
  if match := re.fullmatch(r"lognormal:([\d.]+):([\d.]+)", spec):
    mean, sigma = map(float, match.groups())
    return lognormal(mean, sigma)
  path = pathlib.Path(spec)
  if not path.is_file():
    raise ValueError(f"lengths {spec!r} are no file; {FORM}")
  try:
    known = np.array(path.read_text().split(), int)
  except ValueError as error:
    raise ValueError(f"{path}: {error}; {FORM}") from None
  if not known.size or known.min() < 1:
    raise ValueError(f"{path} has no lengths, or one below 1; {FORM}")
  return lambda rng, shape: rng.choice(known, shape)


def lognormal(mean: float, sigma: float) -> Lengths:
  """Log-normal lengths; `mean` is that before any limit."""
  centre = np.log(mean) - sigma**2 / 2
  return lambda rng, shape: rng.lognormal(centre, sigma, shape)


def full(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """Lengths at the limit of the run."""
  return np.full(shape, np.inf)


def draw(
  config: ConfigDict,
  lengths: Lengths,
  rng: np.random.Generator,
  size: int,
  step: int,
) -> np.ndarray:
  """Lengths [size, G] within the limits of the run at a step."""
  group = config.get("group_size", 1)
  limit = max(config.rows.widths) - (PROMPT - 1)
  if config.loop == "grpo":
    limit = min(limit, token_limit(config, step))
  drawn = lengths(rng, (size, group))
  return np.clip(np.rint(drawn), 1, limit).astype(np.int64)


def simulate(
  config: ConfigDict,
  shards: int,
  lengths: Lengths,
  *,
  rounds: int = ROUNDS,
  step: int = 0,
) -> Fill:
  """How full the rows of so many rounds are.

  Args:
    config: of a run.
    shards: parts into which the rows of a microbatch are split.
    lengths: of completions or, in SFT, of answers.
    rounds: of GRPO; for SFT, updates.
    step: of the run, for the limit of completions.
  """
  per_round, updates = config.get("batch_examples", 0), 1
  if config.loop == "grpo":
    updates = config.minibatches
    per_round = config.prompts_per_round // updates
  prompts = np.full(per_round, PROMPT)
  head, rows = PROMPT - 1, shards * config.rows.shard_rows
  triangle = lambda n: n * (n + 1) / 2
  rng = np.random.default_rng(0)
  slots, least, microbatches, pairs, real = 0, [], {}, {}, []
  for _ in range(rounds * updates):
    drawn = draw(config, lengths, rng, per_round, step)
    placements = pack(prompts, drawn, widths=config.rows.widths, rows=rows)
    load = np.zeros(shards)
    for x in placements:
      slots += x.rows * x.width
      load += x.used.reshape(shards, -1).sum(axis=1)
      microbatches[x.width] = microbatches.get(x.width, 0) + 1
      pairs[x.width] = pairs.get(x.width, 0) + x.num_pairs
    least.append(load.min() / load.mean())
    alone = per_round * triangle(head) + np.sum(drawn * head + triangle(drawn))
    real.append((drawn.sum() + per_round * head, drawn.sum(), alone))
  tokens, values, real_pairs = np.mean(real, axis=0)
  count = len(least)
  widths = sorted(microbatches, reverse=True)
  return Fill(
    use=float(np.sum(real, axis=0)[0] / slots),
    least=float(np.mean(least)),
    least_of_all=float(np.min(least)),
    microbatches={w: microbatches[w] / count for w in widths},
    pairs={w: pairs[w] / microbatches[w] / rows for w in widths},
    tokens=float(tokens),
    values=float(values),
    real_pairs=float(real_pairs),
  )
