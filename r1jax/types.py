"""The types of r1jax, in the order in which data flows through them.

    Example -> Rollout -> Batch -> TrainState     (RL)
    Example            -> Batch -> TrainState     (SFT, distillation)

Dimensions, in all modules: P prompts, G completions per prompt, B rows, T
tokens, S cached tokens, L layers, D width, N query heads, K key/value heads, H
head size, R latent rank, F feed-forward width, E experts, V vocabulary.
Log-probabilities are in nats. Padding is on the right and is determined by
lengths, never by comparing with a pad id.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import chex
import jax
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Integer

from r1jax.text import Completion as Completion
from r1jax.text import Example as Example

Params = Any  # Parameters: a nested dict of arrays, as in Flax.
# Arrays of JAX or NumPy, or shapes of them where a program is only compiled.
Ints = Integer[Array, "..."] | Integer[np.ndarray, "..."] | jax.ShapeDtypeStruct
Floats = Float[Array, "..."] | Float[np.ndarray, "..."] | jax.ShapeDtypeStruct
Bools = Bool[Array, "..."] | Bool[np.ndarray, "..."] | jax.ShapeDtypeStruct
Count = Ints | np.integer | int
Counter = Int[Array, ""] | jax.ShapeDtypeStruct

FINISH_STOP, FINISH_LENGTH = 1, 2  # Values of `Rollout.finish`.


@runtime_checkable
class Tokenizer(Protocol):
  """The interface of tokenizers; see `r1jax.data.tokenizer`."""

  vocab_size: int
  eos_ids: tuple[int, ...]
  prefix_ids: tuple[int, ...]  # The ids that begin every text: BOS, or none.

  def encode(self, text: str) -> list[int]:
    """The token ids of `text`, without BOS and EOS."""

  def decode(self, ids: Sequence[int]) -> str:
    """The text of `ids`, without EOS."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecordedExperts:
  """The experts that processed the tokens of a rollout.

  They stay on the devices. Those of a token are a column of F numbers, of which
  the first L * k are used; each device holds some of these numbers, of all
  tokens. See `rollouts.replay`.
  """

  # Integers of any dtype; `Any`, as JAX maps them to all kinds of values.
  completions: Any  # Of the token before each of a completion [F, P, G, Tc].
  prompts: Any  # Of each token of a prompt [F, P, Tp].
  shape: tuple[int, int] = dataclasses.field(metadata=dict(static=True))  # L, k


@chex.dataclass(frozen=True)
class Rollout:
  """G completions of each of P prompts, sampled by the behaviour policy."""

  prompts: Ints  # [P, Tp]
  prompt_lengths: Ints  # [P]
  completions: Ints  # [P, G, Tc]
  lengths: Ints  # [P, G]: tokens of a completion, EOS included.
  finish: Ints  # [P, G]: FINISH_STOP or FINISH_LENGTH.
  # [P, G, Tc]: tokens that the policy sampled, EOS included. Other tokens, such
  # as the output of a tool, were inserted and are not trained on.
  sampled_mask: Bools
  logprobs: Floats  # [P, G, Tc]: of the sampler, in nats; 0 outside the mask.
  experts: RecordedExperts | None = None  # None if they were not recorded.
  steps: Ints | int = 0  # Decode steps that the engine took; 0 if unknown.
  # The decode steps in which a shard of the slots was idle, mean over shards.
  idle: Floats | float = 0.0


def within_lengths(
  lengths: Int[np.ndarray, "*B"], size: int
) -> Bool[np.ndarray, "*B T"]:
  """A mask [*B, T] that is True at the first `lengths` of T = `size` tokens."""
  return np.arange(size) < np.asarray(lengths)[..., None]


@chex.dataclass(frozen=True)
class Packed:
  """Packed rows of tokens, as the model reads them.

  A row holds several completions of one prompt, or several texts. The query at
  slot t of a row attends to the key at slot s if k_start[t] <= s <= t or s <
  prefix_end[t]. At every slot whose `origin` is not -1, the model computes log
  p(targets[t]); `origin` is the index of this value in the flattened array that
  was packed. Unused slots hold token 0, attend only to themselves, and have
  origin -1.
  """

  tokens: Ints  # [B, T]
  positions: Ints  # [B, T]: from the start of the text of each token, for RoPE.
  k_start: Ints  # [B, T]
  prefix_end: Ints  # [B, T]
  targets: Ints  # [B, T]: the next token.
  origin: Ints  # [B, T]


@chex.dataclass(frozen=True)
class Batch:
  """A microbatch of an update, in packed layout, on the devices.

  Arrays are [B, T]: B rows of T slots. The values of a slot are those of its
  target token. The weights include the denominators of the whole update, so the
  loss of an update is a plain sum over its microbatches, whatever the split
  into microbatches, rows or devices.
  """

  packed: Packed
  weights: Floats  # Weights of targets in the loss; 0 for slots without one.
  num_targets: Count = 1  # Targets with a weight, in the whole update.
  num_tokens: Count = 1  # Tokens that the model reads in it, with prompts.
  # The k likeliest tokens of a teacher at each target; None without one.
  teacher_logprobs: Floats | None = None  # [B, T, k]
  teacher_ids: Ints | None = None  # [B, T, k]
  # The remaining fields are for RL.
  completions: Ints | None = None  # The completion p * G + g of each target.
  advantages: Floats | None = None
  sampler_logprobs: Floats | None = None
  old_logprobs: Floats | None = None  # The denominator of the ratio.
  reference_logprobs: Floats | None = None  # None leaves out the KL.
  # [L, k, B, T]: experts that the sampler used; of unused slots, anything.
  experts: Ints | None = None


@chex.dataclass(frozen=True)
class TrainState:
  """The state that an optimizer step changes."""

  step: Counter
  params: Params
  optimizer_state: optax.OptState
  skipped: Counter  # Successive steps with a gradient that is not finite.


@chex.dataclass(frozen=True)
class RLState:
  """The state of a GRPO run, which its checkpoints hold."""

  train: TrainState
  reference: Params  # The reference policy; None if no KL has a coefficient.
  reference_step: Counter  # The step at which it was copied.
