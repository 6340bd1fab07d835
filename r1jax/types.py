"""The nouns of r1jax, in the order data flows through them.

    Example -> Rollout -> Batch -> TrainState     (RL)
    Example            -> Batch -> TrainState     (SFT, distillation)

Dimensions, here and everywhere: P prompts, G completions per prompt, B rows,
T tokens, S cached tokens, L layers, D width, N heads, R latent rank, E experts,
V vocabulary. Log-probabilities are in nats. Padding is on the right, and what
is padding is known from lengths, never from comparing with a pad id.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import chex
import jax
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from r1jax.text import Completion as Completion
from r1jax.text import Example as Example

Params = Any  # A nested dict of arrays, as Flax makes it.
# Of JAX or NumPy, or shapes alone where a program is only compiled.
Ints = Int[Array, "..."] | Int[np.ndarray, "..."] | jax.ShapeDtypeStruct
Floats = Float[Array, "..."] | Float[np.ndarray, "..."] | jax.ShapeDtypeStruct
Bools = Bool[Array, "..."] | Bool[np.ndarray, "..."] | jax.ShapeDtypeStruct
Count = Ints | np.integer | int

FINISH_STOP, FINISH_LENGTH = 1, 2  # Values of `Rollout.finish`.


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
  lengths: Ints  # [P, G]: tokens of a completion, EOS included.
  finish: Ints  # [P, G]: FINISH_STOP or FINISH_LENGTH.
  # Tokens that the policy chose, EOS included; others were given to it, such as
  # a tool's output. Only these are trained on.
  sampled_mask: Bools  # [P, G, Tc]
  logprobs: Floats  # [P, G, Tc]: the sampler's; 0 outside of the mask.
  # Who worked on the token before each one of a completion [P, G, Tc, L, k],
  # and on each of a prompt [P, Tp, L, k]; None if that was not recorded.
  experts: Ints | None = None
  prompt_experts: Ints | None = None
  steps: Ints | int = 0  # Decode steps of all slots together; 0 if unknown.
  # Of these, the steps in which a shard of the slots had nothing to do; mean
  # over the shards.
  idle: Floats | float = 0.0


def within_lengths(
  lengths: Int[np.ndarray, "*B"], size: int
) -> Bool[np.ndarray, "*B T"]:
  """True at the first `lengths` of `size` tokens: a mask without holes."""
  return np.arange(size) < np.asarray(lengths)[..., None]


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
class Batch:
  """What one update reads, in packed layout, on the devices.

  Arrays are [B, M, T]: B rows of each of M microbatches, T slots. B leads,
  because the mesh splits it. A slot holds what belongs to its target token.
  The weights carry the denominators of the whole update, so that a loss is a
  plain weighted sum, and any split into microbatches or devices adds up.
  """

  packed: Packed
  num_microbatches: Count  # That hold anything; the others come last.
  weights: Floats  # Of a target in the loss; 0 for slots without one.
  num_targets: Count = 1  # Targets with a weight, in the whole batch.
  num_tokens: Count = 1  # Tokens that the model reads, prompts included.
  # What follows is for RL.
  completions: Ints | None = None  # p * G + g, the completion of a target.
  advantages: Floats | None = None
  sampler_logprobs: Floats | None = None
  old_logprobs: Floats | None = None  # What the ratio divides by.
  reference_logprobs: Floats | None = None  # None leaves the KL out.
  experts: Ints | None = None  # [B, M, T, L, k]: those of the sampler.


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
