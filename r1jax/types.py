"""The nouns of r1jax, in the order data flows through them.

    Example -> Rollout -> Experience -> TrainState     (GRPO)
    Example -> Packed                -> TrainState     (SFT, distillation)

Dimensions, here and everywhere: P prompts, G completions per prompt, B rows,
T tokens, S cached tokens, L layers, D width, N heads, R latent rank, E experts,
V vocabulary. Log-probabilities are in nats. Padding is on the right, and what
is padding is known from lengths, never from comparing with a pad id.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import chex
import numpy as np
import optax
from jaxtyping import Array, Float, Int

Params = Any  # A nested dict of arrays, as Flax makes it.
Ints = Int[Array, "..."] | Int[np.ndarray, "..."]
Floats = Float[Array, "..."] | Float[np.ndarray, "..."]

FINISH_STOP, FINISH_LENGTH = 1, 2  # Values of `Rollout.finish`.


class Example(NamedTuple):
  """A problem and what its grader needs; text, on the host."""

  prompt: str  # The question alone; the template is added when encoding.
  answer: str  # The reference answer.
  domain: str = ""  # Picks the grader, and names the task in metrics.
  id: str = ""  # Unique within its dataset.
  metadata: Mapping[str, Any] = {}  # What else the domain's grader reads.


class Completion(NamedTuple):
  """What the policy wrote, as rewards see it; text, on the host."""

  text: str  # Whole: a prefilled tag is put back; EOS is not in it.
  num_tokens: int = 0  # Tokens that the policy chose, EOS included.
  max_tokens: int = 0  # The limit it ran under; 0 if unknown.
  finish: str = "stop"  # "stop" (EOS) or "length" (cut at the limit).
  prefill: str = ""  # The part of `text` that the template had written.


@runtime_checkable
class Tokenizer(Protocol):
  """Text to token ids and back; see `r1jax.data.tokenizer`."""

  vocab_size: int
  eos_ids: tuple[int, ...]
  prefix_ids: tuple[int, ...]  # What every text begins with: BOS, or nothing.

  def encode(self, text: str) -> list[int]:
    """Token ids of `text`; adds no BOS and no EOS."""

  def decode(self, ids: Sequence[int]) -> str:
    """The text of `ids`; EOS ids are dropped."""


@chex.dataclass(frozen=True)
class Rollout:
  """G completions of each of P prompts, as the behaviour policy chose them."""

  prompts: Ints  # [P, Tp]
  prompt_lengths: Ints  # [P]
  completions: Ints  # [P, G, Tc]
  lengths: Ints  # [P, G]: tokens that the policy chose, EOS included.
  finish: Ints  # [P, G]: FINISH_STOP or FINISH_LENGTH.
  logprobs: Floats  # [P, G, Tc]: the sampler's; 0 beyond the length.
  # Who worked on the token before each one of a completion [P, G, Tc, L, k],
  # and on each of a prompt [P, Tp, L, k]; None if that was not recorded.
  experts: Ints | None = None
  prompt_experts: Ints | None = None
  steps: Ints | int = 0  # That the slots took together; 0 if that is not known.
  # Of these, those in which a shard of the slots had nothing left to do, mean
  # over the shards.
  idle: Floats | float = 0.0

  @property
  def sampled_mask(self):
    """True on tokens that the policy chose, EOS included: [P, G, Tc]."""
    return np.arange(self.completions.shape[-1]) < self.lengths[..., None]


@chex.dataclass(frozen=True)
class Packed:
  """Token rows as the model reads them, and where their values belong.

  Query t of a row sees key s when k_start[t] <= s <= t, or s < prefix_end[t].
  The model is asked for log p(targets[t]) at every t whose `origin` is not -1;
  that value belongs at `origin` of the flattened array it was packed from.
  Unused slots hold token 0, see only themselves, and have origin -1.
  """

  tokens: Ints  # [B, T]
  positions: Ints  # [B, T]: from the start of the own text, for RoPE.
  k_start: Ints  # [B, T]
  prefix_end: Ints  # [B, T]
  targets: Ints  # [B, T]: the token that follows.
  origin: Ints  # [B, T]


@chex.dataclass(frozen=True)
class Experience:
  """A rollout and what grading it told us: all that a GRPO update reads."""

  rollout: Rollout
  old_logprobs: Floats  # [P, G, Tc]: what the ratio divides by.
  reference_logprobs: Floats | None  # [P, G, Tc]; None leaves the KL out.
  advantages: Floats  # [P, G]
  weights: Floats  # [P, G, Tc]: each token's share in the loss; sums to 1.


@chex.dataclass(frozen=True)
class TrainState:
  """All that one optimizer step changes."""

  step: Int[Array, ""]
  params: Params
  optimizer_state: optax.OptState
  skipped: Int[Array, ""]  # Steps in a row whose gradient was not finite.


@chex.dataclass(frozen=True)
class RLState:
  """The one tree that a GRPO run checkpoints."""

  train: TrainState
  reference: Params  # The reference policy; None when its KL has no weight.
  reference_step: Int[Array, ""]
